"""Text to token ids and back: RWKV World, bytes, UTF-16LE bytes, or a vocabulary file.

Every tokenizer works on bytes: `decode_bytes(encode(b)) == b` for any bytes, whether they are text or not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from rookery import _native, errors

if TYPE_CHECKING:
    from rookery.tokenizer.simple import UTF16LE, Bytes
    from rookery.tokenizer.stream import StreamDecoder
    from rookery.tokenizer.world import World

_native.check()

_HOME = {"Bytes": "simple", "StreamDecoder": "stream", "UTF16LE": "simple", "World": "world"}
NAMES = {"bytes": "Bytes", "utf16le": "UTF16LE", "world": "World"}

__all__ = ["UTF16LE", "Bytes", "StreamDecoder", "Tokenizer", "World", "load"]


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def end(self) -> int | None:
        """The id that ends a text, None where there is none."""

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids; bytes are taken as they are. Raises InputError for a str with half a surrogate pair."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text; what is not valid becomes U+FFFD. Raises TokenError."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes, exact. Raises TokenError."""

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, none for the end of text. Raises TokenError."""

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time."""


def load(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer "world", "bytes" or "utf16le", or that of a World-style vocabulary file.

    Raises TokenizerError, and FileError for a path that cannot be read.
    """
    if isinstance(name, str) and name in NAMES:
        tokenizer: Tokenizer = __getattr__(NAMES[name])()
        return tokenizer
    from rookery.tokenizer.world import World

    try:
        return World(name)
    except errors.MissingFile:
        wanted = f"{', '.join(NAMES)} or the path of a vocabulary file"
        raise errors.MissingFile(name, f"is neither a tokenizer nor a file; wanted {wanted}") from None


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
