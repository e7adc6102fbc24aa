"""A text while it is being written: logits to a token, a token to text and to the next logits, until it ends.

Shapes: V logits, the rows of the model's head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, TokenError
from rookery.sampling import Sampler
from rookery.state import State
from rookery.tokenizer import Tokenizer

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]  # tokens read so far, tokens in all


class Reader(Protocol):
    """What a stream needs of a model."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def forward(
        self, tokens: Any, state: State | None = None, every: bool = False, progress: Progress | None = None
    ) -> tuple[Array, State]: ...


class Constraint(Protocol):
    """What may be written, token by token, such as the texts of a grammar."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[V]: the tokens that may come next; the token that ends a text where it may end here."""

    def accept(self, token: int) -> None:
        """`token` was taken."""

    @property
    def complete(self) -> bool:
        """Whether nothing more can come."""

    def copy(self) -> Constraint:
        """The same at its beginning."""


class Draft:
    """A text while it is being written, apart from who computes: given logits, it draws the next token.

    `stop`: texts that end it and are not shown. `constraint`: what may be written.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        sampler: Sampler,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.stop_reason: str | None = None  # "end", "stop" (a stop text) or "length" when finished
        self.sampler, self.constraint = sampler, constraint
        self._tokenizer, self._max = tokenizer, max_tokens
        self._text = tokenizer.stream(stop)
        self._known: npt.NDArray[np.bool_] | None = None  # rows of the head that have a token; None: not yet seen
        self._gaps = False  # whether some have none
        self._cut: int | None = None  # bytes of `tokens` before the stop text
        self._points: list[tuple[int, Array, State]] = []  # states inside what is held back, by tokens read

    @property
    def full(self) -> bool:
        """Whether no further token is wanted."""
        return len(self.tokens) >= self._max

    @property
    def kept(self) -> int:
        """How many of `tokens` lie wholly before the stop text; all of them where there is none."""
        if self._cut is None:
            return len(self.tokens)
        length = 0
        for n, token in enumerate(self.tokens):
            length += len(self._tokenizer.token_bytes(token))
            if length > self._cut:
                return n
        return len(self.tokens)

    @property
    def data(self) -> bytes:
        """The bytes of `tokens` before the stop text."""
        return self._tokenizer.decode_bytes(self.tokens)[: self._cut]

    @property
    def tail(self) -> bytes:
        """The bytes between the kept tokens and the stop text."""
        return self.data[len(self._tokenizer.decode_bytes(self.tokens[: self.kept])) :]

    def resume(self, tokens: Sequence[int]) -> str:
        """Take these as written before: the first logits are those after them. Returns their text."""
        self._max += len(tokens)
        self.tokens += tokens
        if self.constraint is not None:
            for token in tokens:
                self.constraint.accept(token)
        return "".join(map(self._text.push, tokens))

    def draw(self, logits: Array) -> str:
        """Draw a token for `logits` [V] and return the text that it completes. Where that was the last, or there is
        none, `stop_reason` says so; else the last of `tokens` is to be fed for the next logits.
        """
        if self.full:
            self.stop_reason = "length"
            return ""
        token, piece = self._draw(logits)
        if token is None:
            self.stop_reason = "end"
            return piece
        self.tokens.append(token)
        if self._text.stopped:
            self.stop_reason, self._cut = "stop", self._text.text_bytes
        elif self.constraint is not None and self.constraint.complete:
            self.stop_reason = "end"
        elif self.full:
            self.stop_reason = "length"
        return piece

    def end(self, reason: str) -> str:
        """Write no more; the text that was still held back. `reason`: why, unless it has ended by itself."""
        self.stop_reason = self.stop_reason or reason
        return self._text.flush()

    @property
    def holds(self) -> bool:
        """Whether text is held back: a stop text may have begun before the last token."""
        return self._text.held > 0

    def remember(self, logits: Array, state: State) -> None:
        """Keep what the model knew before the last token, while a stop text may begin there. To be told before that
        token is fed; both must stay as they are.
        """
        first, missing = len(self.tokens), self._text.held
        while missing > 0:
            first -= 1
            missing -= len(self._tokenizer.token_bytes(self.tokens[first]))
        self._points.append((len(self.tokens) - 1, logits, state))
        self._points = [point for point in self._points if point[0] >= first]

    def remembered(self) -> tuple[Array, State] | None:
        """Logits and state after the kept tokens, if they were among those to remember."""
        return next(((logits, state) for count, logits, state in self._points if count == self.kept), None)

    def _draw(self, logits: Array) -> tuple[int | None, str]:
        """The next token and the text that it completes; None where the text has ended."""
        if self._known is None:
            self._known = np.arange(len(logits)) < self._tokenizer.vocab_size
            self._gaps = not self._known.all()
        while True:
            if self.constraint is not None and self.constraint.complete:
                return None, ""
            allowed = self._known
            if self.constraint is not None:
                allowed = allowed & self.constraint.allowed()
                if not allowed.any():
                    raise InputError(
                        "the grammar allows no token of this vocabulary here; allow more, or shorter steps"
                    )
            masked = self._gaps or self.constraint is not None
            token = self.sampler.sample(np.where(allowed, logits, -np.inf) if masked else logits)
            if token == self._tokenizer.end:
                return None, ""
            try:
                piece = self._text.push(token)
            except TokenError:  # a gap in the vocabulary: draw again without it
                self._known[token], self._gaps = False, True
                continue
            self.sampler.accept(token)
            if self.constraint is not None:
                self.constraint.accept(token)
            return token, piece


class Stream(Draft):
    """A draft and the model that computes for it. Iterate it once for its pieces of text, whole characters only.

    It begins with `prompt` ([T] ids) read from `state`, or, for an empty prompt, with the `logits` [V] at `state`.
    """

    def __init__(
        self,
        model: Reader,
        prompt: npt.NDArray[np.int64] | Sequence[int],
        max_tokens: int,
        sampler: Sampler,
        state: State | None = None,
        *,
        logits: Array | None = None,
        progress: Progress | None = None,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__(model.tokenizer, max_tokens, sampler, stop, constraint)
        self.prompt_tokens = len(prompt)
        self.prefill_seconds = self.decode_seconds = 0.0
        self._model, self._progress = model, progress
        self._pending: Any = prompt if len(prompt) else None  # drawn or given, and not yet fed
        self._logits, self._state = logits, state  # after all that was fed
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def state(self) -> State:
        """The state after the prompt and all of `tokens`."""
        self._feed()
        assert self._state is not None
        return self._state

    def at_kept(self) -> tuple[Array, State] | None:
        """Logits and state after the kept tokens, None where that was passed and must be read anew."""
        if self.kept == len(self.tokens):
            self._feed()
        elif self._pending is None or self.kept < len(self.tokens) - 1:
            return self.remembered()
        return None if self._logits is None or self._state is None else (self._logits, self._state)

    def _feed(self) -> Array | None:
        if self._pending is not None:
            self._logits, self._state = self._model.forward(self._pending, self._state, progress=self._progress)
            self._pending = self._progress = None
        return self._logits

    def _run(self) -> Generator[str, None, None]:
        begin = time.perf_counter()
        logits = self._feed()
        self.prefill_seconds = time.perf_counter() - begin
        while logits is not None and self.stop_reason is None:
            begin = time.perf_counter()
            drawn = len(self.tokens)
            piece = self.draw(logits)
            if len(self.tokens) > drawn:
                self._pending = self.tokens[-1]
            if self.stop_reason is None:
                assert self._state is not None
                self.remember(logits, self._state)
                logits = self._feed()
            self.decode_seconds += time.perf_counter() - begin
            if piece:
                yield piece
        if rest := self.end("length"):
            yield rest
