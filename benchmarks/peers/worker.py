"""The side of peers_cpu.py that runs in an engine's own Python: one loaded model that answers lines of JSON.

Standard library only. Between two requests a worker sleeps in a read. It is timed here, alike for every engine; tokens
are random and drawn before the clock starts, so no engine waits for a choice among its logits.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

CHECKED = [510, 3158, 8, 40, 77, 1024, 261, 33]  # small enough for byte vocabularies of a few hundred, modulo


class Engine(Protocol):
    """One model. What `prompt` and `step` were given has been worked off, logits included, when they return."""

    name: str
    vocabulary: int

    def start(self, sequences: int) -> None:
        """Forget all; from now on so many sequences, empty."""

    def prompt(self, ids: Sequence[int]) -> None:
        """Feed the only sequence; logits after the last token."""

    def step(self, ids: Sequence[int]) -> None:
        """Feed each sequence one token; logits of each."""

    def logits(self) -> Sequence[float]:
        """The last ones, of the first sequence."""


def serve(load: Callable[[str, int], Engine]) -> None:
    """Load the model of sys.argv (FILE THREADS), feed it a token, say so, and answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is not an answer
    path, threads = sys.argv[1], int(sys.argv[2])
    begin = time.perf_counter()
    engine = load(path, threads)
    engine.start(1)
    engine.prompt([0])
    answer = {"engine": engine.name, "seconds": time.perf_counter() - begin}
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        used = time.process_time()
        try:
            answer = _answer(engine, json.loads(line)) | {"cpu": time.process_time() - used}
        except NotImplementedError as error:
            answer = {"error": str(error)}


def _answer(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    draw = random.Random(asked.get("seed", 0))
    ids = lambda count: [draw.randrange(engine.vocabulary) for _ in range(count)]  # noqa: E731
    if asked["do"] == "memory":
        return memory()
    if asked["do"] == "check":
        engine.start(1)
        engine.prompt([i % engine.vocabulary for i in CHECKED])
        row = engine.logits()
        return {"logits": [float(row[i]) for i in range(0, len(row), max(1, len(row) // 64))]}
    if asked["do"] == "prefill":
        engine.start(1)
        prompt = ids(asked["tokens"])
        return timed(lambda: engine.prompt(prompt))
    sequences = asked.get("sequences", 1)
    engine.start(sequences)
    if asked.get("depth"):
        engine.prompt(ids(asked["depth"]))
    engine.step(ids(sequences))  # not timed: the first step of a width may prepare for those that follow
    steps = [ids(sequences) for _ in range(asked["tokens"])]

    def run() -> None:
        for row in steps:
            engine.step(row)

    return timed(run)


def timed(run: Callable[[], None]) -> dict[str, Any]:
    begin = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - begin}


def memory() -> dict[str, Any]:
    """Bytes: the most that was ever resident, and what is now without pages of files. Linux only."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: 1024 * int(fields[key].split()[0]) for name, key in (("peak", "VmHWM"), ("anonymous", "RssAnon"))}
