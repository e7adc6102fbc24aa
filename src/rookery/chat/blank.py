"""A constrained reply as RWKV writes replies: with the one space that follows the speaker's colon."""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt

from rookery.chat.grammar import Grammar
from rookery.errors import TokenError
from rookery.tokenizer import Tokenizer

Bools = npt.NDArray[np.bool_]
_known: weakref.WeakKeyDictionary[Tokenizer, dict[int, int | None]] = weakref.WeakKeyDictionary()


class AfterBlank:
    """A `rookery.stream.Constraint`: what `inner` allows, with or without a space before it.

    The space may be a token alone or the beginning of one (" Yes"), which is then allowed where the rest of it is.
    """

    def __init__(self, inner: Grammar, tokenizer: Tokenizer) -> None:
        self._inner, self._tokenizer = inner, tokenizer
        self._rest: dict[int, int | None] | None = _led_by_blank(tokenizer)  # None once something was written

    def allowed(self) -> Bools:
        mask = self._inner.allowed()
        if self._rest is not None:
            mask = mask.copy()
            for token, rest in self._rest.items():
                if token < len(mask) and (rest is None or (rest < len(mask) and self._inner.allowed()[rest])):
                    mask[token] = True
        return mask

    def accept(self, token: int) -> None:
        rest, self._rest = self._rest, None
        if rest is None or token not in rest or self._inner.allowed()[token]:
            self._inner.accept(token)
        elif (without := rest[token]) is not None:
            self._inner.accept(without)

    @property
    def complete(self) -> bool:
        return self._inner.complete

    def copy(self) -> AfterBlank:
        return AfterBlank(self._inner.copy(), self._tokenizer)


def _led_by_blank(tokenizer: Tokenizer) -> dict[int, int | None]:
    """Tokens that begin with a space: the token of the rest, None where there is no rest. Those whose rest is no token
    are left out. Found once a tokenizer: 0.06 s for World.
    """
    if tokenizer in _known:
        return _known[tokenizer]
    ids: dict[bytes, int] = {}
    for id in range(tokenizer.vocab_size):
        try:
            ids.setdefault(tokenizer.token_bytes(id), id)
        except TokenError:  # a gap
            continue
    found: dict[int, int | None] = {}
    for data, id in ids.items():
        if data == b" ":
            found[id] = None
        elif data[:1] == b" " and data[1:] in ids:
            found[id] = ids[data[1:]]
    _known[tokenizer] = found
    return found
