"""A model that says what it is told to: for tests of what a server makes of certain replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rookery.model import Model
from rookery.tokenizer import Bytes

OPENING, STOP = b"Assistant:", b"\n\nUser:"


class Puppet:
    """A runner without arithmetic; its state is the number of a history it has read.

    After the n-th "Assistant:" it writes replies[n], of which the prompt may have begun some, and then a stop text.
    """

    name, arithmetic, dtype = "puppet", "none", np.dtype(np.float32)

    def __init__(self, replies: Sequence[str]) -> None:
        self._scripts = [reply.encode() + STOP for reply in replies]
        self._read: list[bytes] = [b""]
        self._numbers = {b"": 0}

    def step(self, rows: Sequence[Any], states: Sequence[Any], every: bool = False) -> list[Any]:
        out = []
        for ids, state in zip(rows, states, strict=True):
            known, each = self._read[int(state[0])], []
            for id in ids:
                known += bytes([int(id)])
                each.append(self._logits(known))
            if known not in self._numbers:
                self._numbers[known] = len(self._read)
                self._read.append(known)
            state[0] = self._numbers[known]
            out.append(np.stack(each) if every else each[-1])
        return out

    @property
    def family(self) -> Puppet:
        return self

    def listen(self, listener: Any, names: Any = ()) -> None:
        """Nobody has asked for its inner points yet."""

    def _logits(self, known: bytes) -> Any:
        logits = np.zeros(256, np.float32)
        turn, written = known.count(OPENING) - 1, known.rpartition(OPENING)[2]
        if 0 <= turn < len(self._scripts) and self._scripts[turn].startswith(written):
            rest = self._scripts[turn][len(written) :]
            if rest:
                logits[rest[0]] = 50.0
        return logits


def puppet(like: Model, *replies: str) -> Model:
    """`like`, a model on bytes, with a puppet's mind."""
    return Model(like.weights, Puppet(replies), Bytes())
