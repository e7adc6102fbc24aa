"""What a task asks of a model, and what comes back.

Texts may be given as token ids too. What is asked is read after the scorer's prefix (its `prefix` ids), as the
reference does: `[0] + encode(context)`, then `encode(continuation)`, each encoded by itself, so that no token lies
across the two. Blanks that end a context belong to the continuation, as in lm-eval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError

Text: TypeAlias = str | tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """How likely `continuation` is after `context`: a Likely."""

    context: Text
    continuation: Text


@dataclass(frozen=True)
class Passage:
    """How likely every token of `text` is after those before it, the state carried all along: a Read."""

    text: Text


@dataclass(frozen=True)
class Continue:
    """What the model writes after `prompt` when it always takes the likeliest token: a str.

    At most `max_tokens`; it ends before a text of `stop`, or where the end of text is drawn.
    """

    prompt: Text
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likely:
    """`logprob`: nats, of the whole continuation. `greedy`: whether each of its `tokens` was the likeliest one."""

    logprob: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Read:
    """Of a passage's `ids` [n]: `logprobs` [n] in nats, NaN for a first token that nothing stands before."""

    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]


Request: TypeAlias = Likelihood | Passage | Continue
Answer: TypeAlias = Likely | Read | str


class Coder(Protocol):
    """What a task may know of a model's tokens."""

    @property
    def vocab_size(self) -> int:
        """Tokens of the model; ids below it may be asked for."""

    @property
    def end(self) -> int | None:
        """The token that ends a text, if there is one."""

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: list[int]) -> bytes: ...


class Scorer(Protocol):
    """A model that answers: in this process (local.Local) or behind a server (remote.Remote)."""

    @property
    def coder(self) -> Coder: ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """Token ids read before everything that is asked."""

    @property
    def about(self) -> dict[str, Any]:
        """What a manifest says of it; the same for the same numbers."""

    def answer(self, requests: list[Request]) -> list[Answer]:
        """In the order of the requests, of any kinds. Raises InputError and TokenError."""


def ids(coder: Coder, text: Text) -> list[int]:
    return coder.encode(text) if isinstance(text, str) else list(text)


def pair(scorer: Scorer, asked: Likelihood) -> tuple[list[int], list[int]]:
    """The ids that are read first, the prefix among them, and those that are scored. Raises InputError for nothing."""
    context, continuation = asked.context, asked.continuation
    if isinstance(context, str) and isinstance(continuation, str):
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
    before, scored = [*scorer.prefix, *ids(scorer.coder, context)], ids(scorer.coder, continuation)
    if not scored:
        raise InputError("an empty continuation: nothing to score")
    if not before:
        raise InputError("nothing stands before what is scored: give a context, or a prefix (--prefix 0)")
    return before, scored
