"""The runs that are timed, on one loaded model. Each begins from the same state and returns seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.bench.settings import Settings
from rookery.model import CHUNK, Model

Array = npt.NDArray[Any]
PASSES = 4  # decode steps to one pass of the bare stream


class Runs:
    """`read(tokens)` hears how many tokens were fed since it was last called."""

    def __init__(self, model: Model, settings: Settings, read: Callable[[int], None] = lambda tokens: None) -> None:
        self.model, self.settings, self.read = model, settings, read
        self.engine: Any = getattr(model.runner, "engine", None)  # the native core, where the back end has it
        self._random = np.random.default_rng(settings.seed)
        self._states: dict[int, Array] = {0: model.state().flat}

    def warm_up(self) -> None:
        """What is made or paged in at the first use of each width."""
        if self.settings.prefill:
            self._feed(self._tokens(min(self.settings.prefill, CHUNK)), self._states[0].copy())
        for rows in self.settings.rows if self.settings.decode else ():
            self._decode(self._tokens(2, rows), [self._states[0].copy() for _ in range(rows)])

    def prefill(self) -> float:
        tokens, state = self._tokens(self.settings.prefill), self._states[0].copy()
        begin = time.perf_counter()
        self._feed(tokens, state)
        seconds = time.perf_counter() - begin
        self.read(self.settings.prefill)
        return seconds

    def decode(self, depth: int, rows: int) -> float:
        tokens = self._tokens(self.settings.decode, rows)
        states = [self._state(depth).copy() for _ in range(rows)]
        seconds = self._decode(tokens, states)
        self.read(self.settings.decode * rows)
        return seconds

    def stream(self) -> float | None:
        """Seconds that the engine's threads need to read the weights once and do nothing else."""
        if not hasattr(self.engine, "stream"):
            return None
        passes = max(1, self.settings.decode // PASSES)
        return float(sum(self.engine.stream() for _ in range(passes)) / passes)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads, whatever its rows: all but the embedding, of which a row is."""
        if hasattr(self.engine, "weight_bytes"):
            return int(self.engine.weight_bytes)
        weights = self.model.weights
        read = sum(weights.tensors[p.name].size for p in weights.params if p.kind != "embedding")
        return read * self.model.runner.dtype.itemsize

    def _tokens(self, *shape: int) -> Array:
        return self._random.integers(self.model.config.n_vocab, size=shape)

    def _state(self, depth: int) -> Array:
        """The state after `depth` tokens, grown from the deepest one known before it."""
        if depth not in self._states:
            nearest = max(known for known in self._states if known < depth)
            self._states[depth] = state = self._states[nearest].copy()
            self._feed(self._tokens(depth - nearest), state, self.read)
        return self._states[depth]

    def _feed(self, tokens: Array, state: Array, read: Callable[[int], None] | None = None) -> None:
        for at in range(0, len(tokens), CHUNK):
            chunk = tokens[at : at + CHUNK]
            self.model.runner.step([chunk], [state])
            if read:
                read(len(chunk))

    def _decode(self, tokens: Array, states: Sequence[Array]) -> float:
        """`tokens` [steps, rows]: what is fed does not wait for a choice among the logits."""
        step = self.model.runner.step
        begin = time.perf_counter()
        for row in tokens[:, :, None]:
            step(list(row), states)
        return time.perf_counter() - begin
