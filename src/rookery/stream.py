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


class Stream:
    """A reply while it is being written. Iterate it once for its pieces of text, whole characters only.

    It begins with `prompt` ([T] ids) read from `state`, or, for an empty prompt, with the `logits` [V] at `state`.
    `stop`: texts that end it and are not shown. `constraint`: what may be written.
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
        self.tokens: list[int] = []
        self.prompt_tokens = len(prompt)
        self.stop_reason: str | None = None  # "end", "stop" (a stop text) or "length" when finished
        self.prefill_seconds = self.decode_seconds = 0.0
        self.sampler, self.constraint = sampler, constraint
        self._model, self._max, self._progress = model, max_tokens, progress
        self._pending: Any = prompt if len(prompt) else None  # drawn or given, and not yet fed
        self._logits, self._state = logits, state  # after all that was fed
        self._points: list[tuple[int, Array, State]] = []  # states inside what is held back, by tokens read
        self._text = model.tokenizer.stream(stop)
        self._cut: int | None = None  # bytes of `tokens` before the stop text
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def state(self) -> State:
        """The state after the prompt and all of `tokens`."""
        self._feed()
        assert self._state is not None
        return self._state

    @property
    def kept(self) -> int:
        """How many of `tokens` lie wholly before the stop text; all of them where there is none."""
        if self._cut is None:
            return len(self.tokens)
        length = 0
        for n, token in enumerate(self.tokens):
            length += len(self._model.tokenizer.token_bytes(token))
            if length > self._cut:
                return n
        return len(self.tokens)

    @property
    def data(self) -> bytes:
        """The bytes of `tokens` before the stop text."""
        return self._model.tokenizer.decode_bytes(self.tokens)[: self._cut]

    @property
    def tail(self) -> bytes:
        """The bytes between the kept tokens and the stop text."""
        return self.data[len(self._model.tokenizer.decode_bytes(self.tokens[: self.kept])) :]

    def at_kept(self) -> tuple[Array, State] | None:
        """Logits and state after the kept tokens, None where that was passed and must be read anew."""
        if self.kept == len(self.tokens):
            self._feed()
        elif self._pending is None or self.kept < len(self.tokens) - 1:
            return next(((x, state) for count, x, state in self._points if count == self.kept), None)
        return None if self._logits is None or self._state is None else (self._logits, self._state)

    def resume(self, tokens: Sequence[int]) -> str:
        """Take these as written before: `logits` and `state` are those after them. Returns their text."""
        self._max += len(tokens)
        self.tokens += tokens
        if self.constraint is not None:
            for token in tokens:
                self.constraint.accept(token)
        return "".join(map(self._text.push, tokens))

    def _feed(self) -> Array | None:
        if self._pending is not None:
            self._logits, self._state = self._model.forward(self._pending, self._state, progress=self._progress)
            self._pending = self._progress = None
        return self._logits

    def _run(self) -> Generator[str, None, None]:
        begin = time.perf_counter()
        logits = self._feed()
        self.prefill_seconds = time.perf_counter() - begin
        if logits is not None:
            known = np.arange(len(logits)) < self._model.tokenizer.vocab_size  # rows of the head that have a token
        while logits is not None and len(self.tokens) < self._max and self.stop_reason is None:
            begin = time.perf_counter()
            token, piece = self._draw(logits, known)
            if token is not None:
                self.tokens.append(token)
                self._pending = token
                logits = self._go_on()
            self.decode_seconds += time.perf_counter() - begin
            if piece:
                yield piece
        self.stop_reason = self.stop_reason or "length"
        if rest := self._text.flush():
            yield rest

    def _draw(self, logits: Array, known: npt.NDArray[np.bool_]) -> tuple[int | None, str]:
        """The next token and the text that it completes; None with a `stop_reason` where there is none."""
        end = self._model.tokenizer.end
        while True:
            if self.constraint is not None and self.constraint.complete:
                self.stop_reason = "end"
                return None, ""
            allowed = known if self.constraint is None else known & self.constraint.allowed()
            if self.constraint is not None and not allowed.any():
                raise InputError("the grammar allows no token of this vocabulary here; allow more, or shorter steps")
            token = self.sampler.sample(np.where(allowed, logits, -np.inf))
            if token == end:
                self.stop_reason = "end"
                return None, ""
            try:
                piece = self._text.push(token)
            except TokenError:  # a gap in the vocabulary: draw again without it
                known[token] = False
                continue
            self.sampler.accept(token)
            if self.constraint is not None:
                self.constraint.accept(token)
            return token, piece

    def _go_on(self) -> Array | None:
        """Feed the token just drawn, unless it is the last one."""
        if self._text.stopped:
            self.stop_reason, self._cut = "stop", self._text.text_bytes
        elif self.constraint is not None and self.constraint.complete:
            self.stop_reason = "end"
        if self.stop_reason is not None or len(self.tokens) == self._max:
            return None
        self._remember()
        return self._feed()

    def _remember(self) -> None:
        """Keep the states from the first token on that reaches into the text held back: a stop text may begin there."""
        first, missing = len(self.tokens), self._text.held
        while missing > 0:
            first -= 1
            missing -= len(self._model.tokenizer.token_bytes(self.tokens[first]))
        if self._logits is not None and self._state is not None:
            self._points.append((len(self.tokens) - 1, self._logits, self._state))
        self._points = [point for point in self._points if point[0] >= first]
