"""Rookery as a worker of peers_cpu.py: python ours.py FILE THREADS BACKEND DTYPE."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from worker import serve

import rookery
from rookery.model import CHUNK


class Ours:
    def __init__(self, path: str, threads: int) -> None:
        backend, dtype = sys.argv[3:5]
        self.model = rookery.load(path, backend, threads, dtype=None if dtype == "own" else dtype)
        self.runner, self.vocabulary = self.model.runner, self.model.config.n_vocab
        isa = getattr(getattr(self.runner, "engine", None), "isa", "")
        self.name = " ".join(filter(None, ["rookery", rookery.__version__, self.model.backend, isa]))
        self.states: list[Any] = []
        self.rows: list[Any] = []

    def start(self, sequences: int) -> None:
        self.states = [self.model.state().flat for _ in range(sequences)]

    def prompt(self, ids: Sequence[int]) -> None:
        tokens = np.asarray(ids, np.int64)
        for at in range(0, len(tokens), CHUNK):
            self.rows = self.runner.step([tokens[at : at + CHUNK]], self.states)

    def step(self, ids: Sequence[int]) -> None:
        self.rows = self.runner.step(list(np.asarray(ids, np.int64)[:, None]), self.states)

    def logits(self) -> Any:
        return self.rows[0]


if __name__ == "__main__":
    serve(Ours)
