"""What a trace costs: decoding without one, after one was open and closed, and while all of the state is captured.

    python benchmarks/trace_cost.py [-m gosling -m FILE ...] [--rounds 60] [--tokens 64] [-t THREADS] [--json]

Tokens a second of `Model.forward`, one token at a time (no sampling, so a trace's share is the largest that there can
be). Each round runs every way once, in an order drawn anew; shown are the medians, and the median over rounds of the
time against "off" in the same round with its quartiles. "off again" is the same as "off": what it differs by is noise.
"ring" keeps the last 256 captures, "file" writes them, "monitor" measures each of them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery.lab.monitor import Monitor

Way = Callable[[], AbstractContextManager[Any]]


def ways(model: rookery.Model, folder: Path) -> dict[str, Way]:
    serial = count()

    def closed() -> AbstractContextManager[Any]:
        with model.trace("state.*", every=16):
            model.forward(1)
        return nullcontext()

    return {
        "off": nullcontext,
        "off again": nullcontext,
        "open and closed before": closed,
        "state, every 16th": lambda: model.trace("state.*", every=16),
        "state, every token": lambda: model.trace("state.*", every=1),
        "state, every 16th, ring": lambda: model.trace("state.*", every=16, last=256),
        "state, every 16th, file": lambda: model.trace("state.*", every=16, file=folder / f"{next(serial)}.trace"),
        "monitor, every 16th": lambda: Monitor(model, folder / "log", every=16),
    }


def seconds(model: rookery.Model, way: Way, tokens: int) -> float:
    """Of decoding so many tokens; what comes before the first and after the last is left out."""
    state = None
    with way():
        logits, state = model.forward([1, 2, 3])  # 3 more than the decoded ones, so captures fall as they do in use
        begin = time.perf_counter()
        for _ in range(tokens):
            logits, state = model.forward(int(logits.argmax()), state)
        return time.perf_counter() - begin


def measure(path: str, rounds: int, tokens: int, threads: int | None) -> dict[str, Any]:
    model = rookery.load(path, backend="native", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        every = ways(model, Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in every}
        for way in every.values():
            seconds(model, way, 16)
        for _ in range(rounds):
            for name in random.sample(list(every), len(every)):
                taken[name].append(seconds(model, every[name], tokens))
            for old in Path(folder).glob("*.trace"):
                old.unlink()
    off = np.array(taken["off"])
    rows = {}
    for name, each in taken.items():
        cost = 100 * (np.array(each) / off - 1)
        low, middle, high = np.percentile(cost, [25, 50, 75])
        rows[name] = {
            "tokens_per_second": tokens / float(np.median(each)),
            "percent": float(middle),
            "quartiles": [float(low), float(high)],
        }
    return {"model": path, "state_kb": model.state_size * 4 / 1e3, "threads": model.runner.engine.threads, "ways": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a trace costs while decoding.")
    parser.add_argument("-m", "--model", action="append", help="default gosling; may be given several times")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=64, help="decoded a round and way; a multiple of 16")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = [measure(m, arguments.rounds, arguments.tokens, arguments.threads) for m in arguments.model or ["gosling"]]
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for one in found:
        print(
            f"{one['model']}: state of {one['state_kb']:,.0f} kB, {one['threads']} threads, {arguments.rounds} rounds"
        )
        print(f"  {'':26} {'tokens/s':>10} {'more time, %':>13}   quartiles")
        for name, row in one["ways"].items():
            low, high = row["quartiles"]
            print(f"  {name:26} {row['tokens_per_second']:10,.1f} {row['percent']:13.2f}   {low:.2f} .. {high:.2f}")


if __name__ == "__main__":
    main()
