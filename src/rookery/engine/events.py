"""What an engine tells of a sequence, in the order in which it happens.

C width, V vocabulary. Arrays and states in events are copies that belong to the listener.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from rookery.errors import InputError
from rookery.state import State
from rookery.stream import Draft

Array = npt.NDArray[Any]


class Busy(InputError):
    """No room in the queue. `retry_after`: seconds after which there may be."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after:.0f} s")


class Cancelled(InputError):
    """Cancelled before a word was written."""

    def __init__(self) -> None:
        super().__init__("cancelled")


@dataclass(frozen=True, slots=True)
class Score:
    """How likely the model held a token, by its own distribution: before penalties, biases and cuts. Natural logs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest tokens there, the likeliest first


@dataclass(frozen=True, slots=True)
class Read:
    """So many tokens of the prompt have been read."""

    tokens: int
    of: int


@dataclass(frozen=True, slots=True)
class Marked:
    """What the model knows after `at` tokens of the prompt."""

    at: int
    logits: Array  # [V]
    state: State


@dataclass(frozen=True, slots=True)
class Scored:
    """How likely each token of the prompt was; None for one that had nothing before it."""

    scores: list[Score | None]


@dataclass(frozen=True, slots=True)
class Wrote:
    """Draft `index` has a token more, and `text` that it completes, which may be none."""

    index: int
    text: str
    token: int
    score: Score | None
    delta: tuple[float, ...] | None  # how far each layer's state has moved since the last time: L2 over sqrt(n)


@dataclass(frozen=True, slots=True)
class Ended:
    """Draft `index` is finished; its `stop_reason` says why. A sequence without drafts ends with its prompt."""

    index: int
    draft: Draft | None
    text: str  # what was still held back
    point: tuple[Array, State] | None  # logits and state after the kept tokens, where known
    hidden: Array | None  # [C]: mean over the prompt of what the last layer gives, if that was wanted


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence is over, all its drafts with it."""

    error: Exception


Event: TypeAlias = Read | Marked | Scored | Wrote | Ended | Failed
