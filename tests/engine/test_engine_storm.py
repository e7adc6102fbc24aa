"""Whatever happens to sequences, in whatever order: the engine lives, no place is lost, the others are each alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loads import SAMPLINGS, Ask, drive, tiny

from rookery.engine import Busy, Cancelled, Ended, Engine, Event, Failed, Start
from rookery.errors import InputError
from rookery.stream import Draft


class Panic(BaseException):
    """As a library written in Rust raises it."""


class Held:
    """A constraint that allows everything and at its `last` token raises."""

    complete = False

    def __init__(self, vocab: int, last: int, error: BaseException) -> None:
        self.left, self.error, self.all = last, error, np.ones(vocab, np.bool_)

    def allowed(self) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.all

    def accept(self, token: int) -> None:
        pass

    def copy(self) -> Held:
        return self


def raises(error: BaseException) -> Callable[[], Start]:
    def start() -> Start:
        raise error

    return start


def wrong(kind: str) -> Callable[[], Start]:
    """A beginning that cannot be."""
    model, drafts = tiny(), Ask(tiny(), [1]).drafts
    return {
        "unknown token": lambda: Start(model.state(), [1, model.config.n_vocab], drafts=drafts),
        "negative token": lambda: Start(model.state(), [1, -1], drafts=drafts),
        "no number": lambda: Start(model.state(), ["a"], drafts=drafts),  # type: ignore[list-item]
        "two dimensions": lambda: Start(model.state(), np.ones((2, 2), np.int64), drafts=drafts),
        "no marks": lambda: Start(model.state(), [1], marks=(1, None), drafts=drafts),  # type: ignore[arg-type]
        "another's state": lambda: Start(tiny("v6").state(), [1], drafts=drafts),
        "short logits": lambda: Start(model.state(), [], logits=np.zeros(3, np.float32), drafts=drafts),
        "nothing": lambda: None,  # type: ignore[return-value]
        "panic": raises(Panic("out of memory")),
    }[kind]


KINDS = ("unknown token", "negative token", "no number", "two dimensions", "no marks", "another's state",
         "short logits", "nothing", "panic")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_that_cannot_be_ends_only_its_own(kind: str) -> None:
    model = tiny()
    engine, good, bad = Engine(model), Ask(model, [1, 2, 3], 40), Ask(model, [4])
    bad.sequence.start = wrong(kind)
    engine.submit(good.sequence)
    drive(engine, lambda: len(good.drafts[0].tokens) > 3)
    engine.submit(bad.sequence)
    drive(engine, lambda: good.over and bad.over)
    assert isinstance(bad.events[-1], Failed)
    assert good.drafts[0].tokens == good.alone().tokens
    assert engine.stats()["places"] == 0


def test_a_panic_while_drawing_ends_only_its_own() -> None:
    model = tiny()
    engine, good, bad = Engine(model), Ask(model, [1, 2, 3], 40), Ask(model, [4], n=2)
    bad.drafts[1].constraint = Held(model.config.n_vocab, 2, Panic("in a grammar"))
    for ask in (good, bad):
        engine.submit(ask.sequence)
    drive(engine, lambda: good.over and bad.over)
    assert isinstance(bad.events[-1], Failed)
    assert "in a grammar" in str(bad.events[-1].error)
    assert good.drafts[0].tokens == good.alone().tokens
    assert engine.stats()["places"] == 0


def test_what_is_told_after_a_step_may_fail() -> None:
    model = tiny()
    engine, ask = Engine(model), Ask(model, [1, 2, 3], 5)
    calls: list[int] = []
    engine.after_step = lambda: calls.append(1 // 0)
    engine.submit(ask.sequence)
    drive(engine, lambda: ask.over)
    assert ask.drafts[0].tokens == ask.alone().tokens
    assert engine.stats()["places"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_storm(seed: int) -> None:
    """Several threads submit, cancel at any moment, fail in every place; then all is as it was."""
    model, rng = tiny(), random.Random(seed)
    engine = Engine(model, max_batch=4, max_waiting=30, prefill_rows=16)
    engine.start()
    calm, wild = [], []
    for k in range(80):
        ask = Ask(
            model, [rng.randrange(1, 250) for _ in range(rng.choice((1, 3, 40, 300)))], rng.choice((1, 5, 30)),
            n=rng.choice((1, 1, 2, 4)), seed=k, sampling=rng.choice(SAMPLINGS), stop=rng.choice(((), ("a",), ("b ",))),
            owner=rng.choice("abc"), marks=(1,) if k % 3 else (), scores=rng.choice((None, 2)),
            prompt_scores=rng.choice((None, None, 0)), deltas=rng.choice((0, 3)), hidden=rng.random() < 0.1,
        )  # fmt: skip
        fate = rng.choice(("calm", "calm", "start", "draw", "listen", "cancel", "cancel"))
        (calm if fate == "calm" else wild).append((ask, fate))
        spoil(ask, fate, engine, rng, model)
    threads = [threading.Thread(target=submit, args=(engine, calm + wild, n, rng.random())) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for_all(engine, [ask for ask, _ in calm + wild])
    assert engine.alive
    assert {name: engine.stats()[name] for name in ("places", "waiting", "running", "reading")} == dict.fromkeys(
        ("places", "waiting", "running", "reading"), 0
    )
    engine.close()
    for ask, _ in calm:
        for k in range(ask.n):
            assert ask.drafts[k].tokens == ask.alone(k).tokens
    for ask, _ in wild:
        check_ends(ask)


def spoil(ask: Ask, fate: str, engine: Engine, rng: random.Random, model: Any) -> None:
    if fate == "start":
        ask.sequence.start = raises(rng.choice((InputError("no"), Panic("no"), OSError("no"))))
    elif fate == "draw":
        last = rng.randrange(3)
        ask.drafts[-1].constraint = Held(model.config.n_vocab, last, rng.choice((InputError("no"), Panic("no"))))
    elif fate == "listen":
        ask.sequence.listen = lambda event: (ask.events.append(event), 1 // 0)
    elif fate == "cancel":
        after = rng.randrange(6)

        def cancels(event: Event) -> None:
            ask.events.append(event)
            if len(ask.events) > after:
                engine.cancel(ask.sequence)

        ask.sequence.listen = cancels


def submit(engine: Engine, load: list[tuple[Ask, str]], which: int, seed: float) -> None:
    rng = random.Random(seed)
    for ask, fate in load[which::3]:
        while True:
            try:
                engine.submit(ask.sequence)
                break
            except Busy:
                continue
        if fate == "cancel" and rng.random() < 0.5:
            engine.cancel(ask.sequence)


def ends(ask: Ask) -> tuple[int, int]:
    return sum(isinstance(e, Failed) for e in ask.events), sum(isinstance(e, Ended) for e in ask.events)


def over(ask: Ask) -> bool:
    failed, ended = ends(ask)
    return bool(failed) or ended == max(1, ask.n)


def wait_for_all(engine: Engine, load: list[Ask]) -> None:
    done = threading.Event()
    engine.after_step = lambda: done.set() if all(map(over, load)) else None
    engine.cancel(Ask(tiny(), [1]).sequence)  # not one of them: it has to look once more, even if all were over
    assert done.wait(60), [ask.events[-1:] for ask in load if not over(ask)]


def check_ends(ask: Ask) -> None:
    """Its end is told once: as that of all its drafts, or as a failure of the whole."""
    failed, ended = ends(ask)
    assert failed <= 1
    assert failed or ended == ask.n
    last = ask.events[-1]
    assert isinstance(last, Failed | Ended)
    if isinstance(last, Ended):
        assert isinstance(last.draft, Draft)


def test_closed_it_begins_nothing_more() -> None:
    model = tiny()
    engine, begun, go_on = Engine(model), [], threading.Event()

    def slow() -> Start:
        begun.append(1)
        go_on.wait(60)
        return Start(model.state(), [1])

    load = [Ask(model, [1], n=0) for _ in range(10)]
    for ask in load:
        ask.sequence.start = slow
        engine.submit(ask.sequence)
    engine.step()
    closing = threading.Thread(target=engine.close)
    closing.start()
    while True:
        try:
            engine.submit(Ask(model, [1]).sequence)
        except Busy:
            continue
        except Cancelled:
            break
    go_on.set()
    closing.join()
    assert len(begun) < 10
    assert [type(ask.events[-1]) for ask in load] == [Failed] * 10
    assert engine.stats()["places"] == 0
