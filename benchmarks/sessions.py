"""What a talk costs: going back in short and long ones, prefixes that several share, room in the store.

    python benchmarks/sessions.py [--model gosling] [--tokens 1000 100000] [--repeats 9]

Going back: the time of rewind(1) and of the first piece of the next reply, with the state at hand (memory), from an
SQLite file, and, for comparison, with nothing kept, when every token is read anew. Medians, the kinds in turn.
Shared prefix: several talks that begin with the same system text, in one store and each in its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rookery
from rookery.session.tree import Place
from rookery.store import Store, open
from rookery.store.memory import Memory

SENTENCE = "The fox went over the hill to see what the geese were doing there. "


class Forgetful(Memory):
    """Keeps talks and no states."""

    def get(self, key: str) -> None:
        return None


def long_talk(model: rookery.Model, store: Store, tokens: int, turn: int = 500) -> rookery.Session:
    talk = rookery.Session(model, store=store, name=f"{tokens}")
    each = max(1, min(turn, tokens // 3) // len(model.tokenizer.encode(SENTENCE)))
    while talk._tree.prefix(Place(talk.at)).count < tokens:
        _ = talk.say(SENTENCE * each, max_tokens=4).text
    return talk


def back(talk: rookery.Session) -> tuple[float, float, int]:
    """Milliseconds of rewind(1) and of the first piece of another reply, and the tokens read for it."""
    talk._tree._live.clear()
    begin = time.perf_counter()
    talk.rewind(1)
    rewound = time.perf_counter()
    reply = talk.say("And then?", max_tokens=2)
    next(iter(reply))
    answered = time.perf_counter()
    _ = reply.text
    return 1e3 * (rewound - begin), 1e3 * (answered - rewound), reply.read_tokens


def rewinds(model: rookery.Model, lengths: list[int], repeats: int, folder: Path) -> None:
    print(f"{'tokens':>8} {'kept':<8}{'rewind, ms':>12}{'first piece, ms':>17}{'tokens read':>13}")
    kinds: dict[str, Callable[[], Store]] = {
        "memory": Memory,
        "sqlite": lambda: open(folder / "talks.db"),
        "nothing": Forgetful,
    }
    for tokens in lengths:
        talks = {kind: long_talk(model, make(), tokens) for kind, make in kinds.items()}
        seen: dict[str, list[Any]] = {kind: [] for kind in kinds}
        for _ in range(repeats):
            for kind, talk in talks.items():
                seen[kind].append(back(talk))
        for kind, rows in seen.items():
            rewind, piece, read = (statistics.median(column) for column in zip(*rows, strict=True))
            count = talks[kind]._tree.prefix(Place(talks[kind].at)).count
            print(f"{count:>8} {kind:<8}{rewind:>12.2f}{piece:>17.2f}{read:>13.0f}")


def shared(model: rookery.Model, talks: int) -> None:
    system = SENTENCE * 200
    print(f"\n{talks} talks that begin with the same {len(model.tokenizer.encode(system))} tokens")
    for what, stores in (("each its own store", None), ("one store", Memory())):
        begin, read, asked = time.perf_counter(), 0, 0
        for n in range(talks):
            talk = rookery.Session(model, system=system, store=stores or Memory())
            reply = talk.say(f"Question {n}: what did the fox see?", max_tokens=1)
            _ = reply.text
            read, asked = read + reply.read_tokens, asked + reply.prompt_tokens
        took = time.perf_counter() - begin
        print(f"  {what:<20}{read:>8} of {asked} tokens read, {took:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--talks", type=int, default=20)
    o = parser.parse_args()
    model = rookery.load(o.model)
    _ = model.weights.fingerprint  # a pass over the weights, once a process
    with tempfile.TemporaryDirectory() as folder:
        rewinds(model, o.tokens, o.repeats, Path(folder))
    shared(model, o.talks)


if __name__ == "__main__":
    main()
