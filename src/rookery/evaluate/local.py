"""A model in this process that answers requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from rookery import tokenizer as tokenizers
from rookery.errors import InputError, TokenError, TokenizerError
from rookery.evaluate.requests import Answer, Continue, Likelihood, Likely, Passage, Read, Request, ids, pair
from rookery.evaluate.tree import Row, read
from rookery.model import Model
from rookery.tokenizer import Tokenizer

STATES = 256 << 20  # bytes of states that are read side by side
MOST = 64  # sequences side by side: more rows bring nothing


class Local:
    """Answers by `model`. `prefix`: ids read before everything; None: the end of text where the tokenizer has one, as
    the reference does. `told(tokens)` hears after each batch how many ids have been asked about so far.
    """

    def __init__(
        self, model: Model, prefix: Sequence[int] | None = None, told: Callable[[int], None] | None = None
    ) -> None:
        self.model, self._told, self._asked = model, told, 0
        self.coder = _Coder(model)
        self.prefix = tuple(prefix if prefix is not None else [] if self.coder.end is None else [self.coder.end])
        self._check(self.prefix)
        self._at_once = max(1, min(MOST, STATES // (model.state_size * model.runner.dtype.itemsize)))

    @property
    def about(self) -> dict[str, Any]:
        weights = self.model.weights
        return {
            "architecture": self.model.config.name,
            "parameters": weights.parameters,
            "fingerprint": weights.fingerprint,
            "lineage": weights.lineage,
            "adapters": [adapter.fingerprint for adapter in weights.adapted],
            "arithmetic": self.model.arithmetic,
            "dtype": str(self.model.runner.dtype),
            "tokenizer": self.coder.name,
            "vocabulary": self.coder.digest,
            "prefix": list(self.prefix),
        }

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        rows = [self._row(request) for request in requests]
        read(self.model, rows, self._at_once)
        texts = iter(self._continued([(a, row) for a, row in zip(requests, rows, strict=True) if row.ends]))
        self._asked += sum(len(row.ids) for row in rows)
        if self._told:
            self._told(self._asked)
        return [next(texts) if row.ends else self._answer(a, row) for a, row in zip(requests, rows, strict=True)]

    def _row(self, request: Request) -> Row:
        if isinstance(request, Likelihood):
            before, scored = pair(self, request)
            found, first = [*before, *scored], len(before)
        else:
            text = request.text if isinstance(request, Passage) else request.prompt
            found = [*self.prefix, *ids(self.coder, text)]
            first = max(1, len(self.prefix)) if isinstance(request, Passage) else len(found)
        if not found and isinstance(request, Continue):
            raise InputError("nothing to go on with: give a text, or a prefix (--prefix 0)")
        self._check(found)
        return Row(found, first, ends=isinstance(request, Continue))

    def _check(self, ids: Sequence[int]) -> None:
        """Before any is read; the last of a row never is."""
        wrong = next((id for id in ids if not 0 <= id < self.coder.vocab_size), None)
        if wrong is not None:
            raise TokenError(f"token {wrong} is outside the model's vocabulary (0 to {self.coder.vocab_size - 1})")

    def _answer(self, request: Request, row: Row) -> Answer:
        if isinstance(request, Likelihood):
            return Likely(float(row.logprobs.sum()), row.greedy, len(row.logprobs))
        found = np.asarray(row.ids[len(self.prefix) :], np.int64)
        return Read(found, np.concatenate([np.full(len(found) - len(row.logprobs), np.nan), row.logprobs]))

    def _continued(self, asked: Sequence[tuple[Request, Row]]) -> list[str]:
        """The likeliest tokens after each row, side by side; a row that has ended leaves."""
        texts = [_Text(self.coder, request, row) for request, row in asked if isinstance(request, Continue)]
        while going := [text for text in texts if text.take()]:
            for at in range(0, len(going), self._at_once):
                group = going[at : at + self._at_once]
                after = self.model.forward_batch([[text.token] for text in group], [text.state for text in group])
                for text, (logits, state) in zip(group, after, strict=True):
                    text.logits, text.state = logits, state
        return ["".join(text.pieces) for text in texts]


class _Coder:
    """The model's tokenizer, with the model's own number of tokens."""

    def __init__(self, model: Model) -> None:
        try:
            self._tokenizer: Tokenizer | _Wordless = model.tokenizer
        except TokenizerError as error:
            self._tokenizer = _Wordless(error)
        of = self._tokenizer
        self.vocab_size, self.end, self.name = model.config.n_vocab, of.end, of.name
        self.encode, self.decode_bytes, self.stream = of.encode, of.decode_bytes, of.stream

    @property
    def digest(self) -> str:
        return "" if isinstance(self._tokenizer, _Wordless) else tokenizers.digest(self._tokenizer)


class _Wordless:
    """In the place of a tokenizer that is not known: ids may be asked about, texts not."""

    name, end = "none", None

    def __init__(self, why: TokenizerError) -> None:
        self._why = why

    def encode(self, *_: object) -> NoReturn:
        raise self._why

    decode_bytes = stream = encode


class _Text:
    """A text that is being written."""

    def __init__(self, coder: _Coder, asked: Continue, row: Row) -> None:
        self.left, self.end = asked.max_tokens, coder.end
        self.logits, self.state = row.logits, row.state
        self.pieces: list[str] = []
        self.token = -1
        self._decoder = coder.stream(asked.stop)
        self._ended = False

    def take(self) -> bool:
        """Take the likeliest token; whether another may follow it."""
        if self._ended:
            return False
        if self.left > 0 and self.logits is not None:
            self.left, self.token = self.left - 1, int(self.logits.argmax())
            if self.token != self.end:
                self.pieces.append(self._decoder.push(self.token))
                if self.left and not self._decoder.stopped:
                    return True
        self._ended = True
        if not self._decoder.stopped:
            self.pieces.append(self._decoder.flush())
        return False
