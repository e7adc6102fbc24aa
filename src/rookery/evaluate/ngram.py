"""An n-gram model over token ids: what counting alone reaches, beside which a network's figures are read.

Interpolated Witten-Bell smoothing: with c(h) tokens seen after the history h, t(h) of them different, and g = h without
its first token,

    p(w | h) = (c(h, w) + t(h) p(w | g)) / (c(h) + t(h));     below one token stands 1 / V

(Bell, Cleary and Witten 1990; Chen and Goodman 1998, section 2.5). Order 0 is the uniform distribution. n tokens, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, TokenError
from rookery.evaluate.requests import Answer, Coder, Continue, Likelihood, Likely, Read, Request, ids, pair

Ids = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]
NONE = -1  # the number of a gram that was never seen, or that a text is too short for


@dataclass(frozen=True)
class Level:
    """The grams of one length. A gram's number is its place in `keys`; its key, the number of all but its last token,
    times V, plus that token.
    """

    keys: Ids  # sorted
    counts: Ids  # of each gram
    seen: Ids  # by history: tokens after it
    kinds: Ids  # by history: different ones

    def find(self, keys: Ids) -> Ids:
        """The grams' numbers, NONE for those not seen."""
        at = np.searchsorted(self.keys, keys)
        at[at == len(self.keys)] = 0
        return np.where(self.keys[at] == keys, at, NONE)


class NGram:
    """p(token | the `order - 1` before it), counted in texts that do not run into each other."""

    def __init__(self, vocab: int, levels: Sequence[Level]) -> None:
        self.vocab, self.levels = vocab, tuple(levels)

    @property
    def order(self) -> int:
        return len(self.levels)

    @classmethod
    def counted(cls, texts: Iterable[Sequence[int]], vocab: int, order: int = 4) -> NGram:
        """Of texts as ids below `vocab`. Memory: some 150 bytes a token. Raises InputError and TokenError."""
        if order < 0:
            raise InputError(f"an n-gram model of order {order}; wanted 0 or more")
        arrays = [_checked(text, vocab) for text in texts]
        tokens = np.concatenate([np.zeros(0, np.int64), *arrays])
        if not len(tokens):
            raise InputError("no tokens to count")
        place = np.concatenate([np.arange(len(text)) for text in arrays])
        levels: list[Level] = []
        history, histories = np.zeros(len(tokens), np.int64), 1
        for length in range(min(order, place.max() + 1)):  # of longer grams there are none
            whole = place >= length
            keys, gram, counts = np.unique(
                history[whole] * vocab + tokens[whole], return_inverse=True, return_counts=True
            )
            seen = np.bincount(history[whole], minlength=histories)
            kinds = np.bincount(keys // vocab, minlength=histories)
            levels.append(Level(keys, counts, seen, kinds))
            numbers = np.full(len(tokens), NONE)
            numbers[whole] = gram
            history, histories = _before(numbers), len(keys)
        return cls(vocab, levels)

    def logprobs(self, tokens: Sequence[int], first: int = 0) -> Probabilities:
        """[n - first] in nats, of every token from `first` on after all those before it. Raises TokenError."""
        found = _checked(tokens, self.vocab)
        p = np.full(len(found), 1 / self.vocab)
        history = np.zeros(len(found), np.int64)
        for level in self.levels:
            known = np.flatnonzero(history != NONE)
            numbers = np.full(len(found), NONE)
            numbers[known] = level.find(history[known] * self.vocab + found[known])
            seen, kinds = level.seen[history[known]], level.kinds[history[known]]
            count = np.where(numbers[known] == NONE, 0, level.counts[numbers[known]])
            followed = seen > 0  # a gram that only ends texts has nothing after it
            some = known[followed]
            p[some] = (count + kinds * p[known])[followed] / (seen + kinds)[followed]
            history = _before(numbers)
        logprobs: Probabilities = np.log(p[first:])
        return logprobs

    def after(self, tokens: Sequence[int]) -> Probabilities:
        """[V]: the probability of every token after `tokens`. Raises TokenError."""
        text = _checked(tokens, self.vocab)
        p = np.full(self.vocab, 1 / self.vocab)
        for length, level in enumerate(self.levels[: len(text) + 1]):
            history = self._number(text[len(text) - length :])
            if history == NONE or not level.seen[history]:
                break
            first, last = np.searchsorted(level.keys, [history * self.vocab, (history + 1) * self.vocab])
            p *= level.kinds[history]
            p[level.keys[first:last] % self.vocab] += level.counts[first:last]
            p /= level.seen[history] + level.kinds[history]
        return p

    def _number(self, gram: Ids) -> int:
        number = 0
        for level, token in zip(self.levels, gram, strict=False):
            if number != NONE:
                number = int(level.find(np.asarray([number * self.vocab + token]))[0])
        return number


class Counter:
    """An n-gram model that answers requests, as evaluate.Local does of a network; it writes nothing (Continue)."""

    def __init__(self, model: NGram, coder: Coder, prefix: Sequence[int] = ()) -> None:
        self.model, self.coder, self.prefix = model, coder, tuple(prefix)

    @property
    def about(self) -> dict[str, Any]:
        grams = [len(level.keys) for level in self.model.levels]
        return {"architecture": f"{self.model.order}-gram", "grams": grams, "prefix": list(self.prefix)}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        if isinstance(request, Continue):
            raise InputError("an n-gram model scores texts and writes none; choose a task that asks for likelihoods")
        if isinstance(request, Likelihood):
            before, scored = pair(self, request)
            whole = [*before, *scored]
            logprobs = self.model.logprobs(whole, len(before))
            greedy = all(self.model.after(whole[:at]).argmax() == whole[at] for at in range(len(before), len(whole)))
            return Likely(float(logprobs.sum()), greedy, len(scored))
        found = ids(self.coder, request.text)
        logprobs = self.model.logprobs([*self.prefix, *found], len(self.prefix))
        if not self.prefix:
            logprobs[:1] = np.nan
        return Read(np.asarray(found, np.int64), logprobs)


def _before(numbers: Ids) -> Ids:
    """The number of the gram that ends just before each token; the first token of all has none, as texts go apart."""
    return np.concatenate([np.full(min(1, len(numbers)), NONE), numbers[:-1]])


def _checked(text: Sequence[int], vocab: int) -> Ids:
    found = np.asarray(text, np.int64).reshape(-1)
    wrong = found[(found < 0) | (found >= vocab)]
    if len(wrong):
        raise TokenError(f"token {wrong[0]} is outside the vocabulary of {vocab}")
    return found
