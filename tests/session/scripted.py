"""A model without arithmetic: its state knows every token it has read, and it writes what its script says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from talks import tiny

import rookery
from rookery import State
from rookery.sampling import Sampler

OPENING = b"Assistant:"


class Scripted:
    """After the n-th `Assistant:` it writes replies[n], with the tokens that a prompt has begun, then `after`, then
    the end of text.
    """

    arithmetic = "none"

    def __init__(self, tokenizer: Any, replies: Sequence[Sequence[int]] = (), after: Sequence[int] = ()) -> None:
        self.tokenizer, self.replies, self.after = tokenizer, replies, list(after)
        self.config = replace(tiny().config, n_vocab=tokenizer.vocab_size)
        self.weights = SimpleNamespace(
            path="mock", format="mock", metadata={}, fingerprint="f" * 64, lineage="f" * 64, config=self.config
        )
        self._read: list[tuple[int, ...]] = [()]  # by the number in the state

    def state(self) -> State:
        return State.start(tiny().config, self.weights)

    def sampler(self, sampling: rookery.Sampling, seed: int | None = None) -> Sampler:
        return Sampler(sampling, self.tokenizer.vocab_size, seed)

    def history(self, state: State) -> tuple[int, ...]:
        """All that has been read at a state."""
        return self._read[int(state.flat[0])]

    def forward(self, tokens: Any, state: State | None = None, every: bool = False, progress: Any = None) -> Any:
        known = self.history(state or self.state()) + tuple(int(token) for token in np.atleast_1d(tokens))
        if known not in self._read:
            self._read.append(known)
        after = self.state()
        after.flat[0] = self._read.index(known)
        logits = np.full(self.tokenizer.vocab_size, -50.0, np.float32)
        logits[self._next(known)] = 50.0
        return logits, after

    def _next(self, known: tuple[int, ...]) -> int:
        text = self.tokenizer.decode_bytes(known)
        turn = text.count(OPENING) - 1
        if not 0 <= turn < len(self.replies):
            return 0
        begin, read = text.rindex(OPENING) + len(OPENING), 0
        written = 0
        for token in known:
            written += read >= begin
            read += len(self.tokenizer.token_bytes(token))
        script = [*self.replies[turn], *self.after]
        return script[written] if written < len(script) else 0
