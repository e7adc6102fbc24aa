"""Text to token ids and back: RWKV World, bytes, UTF-16LE bytes, a vocabulary file or a Hugging Face tokenizer.json.

Every tokenizer but Hugging Face's works on bytes: `decode_bytes(encode(b)) == b` for any bytes, text or not.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from rookery import _native, errors

if TYPE_CHECKING:
    from rookery.tokenizer.huggingface import HuggingFace
    from rookery.tokenizer.simple import UTF16LE, Bytes
    from rookery.tokenizer.stream import StreamDecoder
    from rookery.tokenizer.world import World

_native.check()

_HOME = {
    "Bytes": "simple",
    "HuggingFace": "huggingface",
    "StreamDecoder": "stream",
    "UTF16LE": "simple",
    "World": "world",
}
CARRIED = "rookery.vocabulary"  # metadata: the text of a vocabulary file, in formats whose metadata is text
NAMES = {"bytes": "Bytes", "utf16le": "UTF16LE", "world": "World"}

__all__ = ["UTF16LE", "Bytes", "HuggingFace", "StreamDecoder", "Tokenizer", "World", "load"]


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

    def stream(self, stop: Sequence[str] = ()) -> StreamDecoder:
        """A decoder that takes one id at a time and ends where one of the texts `stop` begins."""


def load(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer "world", "bytes" or "utf16le", that of a World-style vocabulary file or of a tokenizer.json, or
    the one in a Hugging Face folder.

    Raises TokenizerError, FileError for a path that cannot be read, and MissingExtra.
    """
    if isinstance(name, str) and name in NAMES:
        tokenizer: Tokenizer = __getattr__(NAMES[name])()
        return tokenizer
    from rookery.formats.raw import map_file
    from rookery.tokenizer import stored
    from rookery.tokenizer.world import World

    if os.path.isdir(name):
        found = stored.of_folder(os.fspath(name))
        if found is None:
            raise errors.NotAFile(name, f"is a folder without {stored.VOCABULARY} and {stored.TOKENIZER}")
        return found
    try:
        head = map_file(name)[:64].tobytes()
    except errors.MissingFile:
        wanted = f"{', '.join(NAMES)} or the path of a vocabulary file"
        raise errors.MissingFile(name, f"is neither a tokenizer nor a file; wanted {wanted}") from None
    if head.startswith(b"\x1f\x8b"):
        raise errors.TokenizerError(f"{os.fspath(name)}: is packed with gzip; unpack it first (gunzip) and give that")
    return stored.of_json(name) if head.lstrip()[:1] == b"{" else World(name)


_digests: weakref.WeakKeyDictionary[Tokenizer, str] = weakref.WeakKeyDictionary()


def digest(tokenizer: Tokenizer) -> str:
    """What tells two vocabularies apart: a sha256 over every token's bytes and the token that ends a text, hex. Found
    once a tokenizer: 0.03 s for World.
    """
    if tokenizer in _digests:
        return _digests[tokenizer]
    made = sha256(repr((tokenizer.vocab_size, tokenizer.end)).encode())
    for id in range(tokenizer.vocab_size):
        try:
            token = tokenizer.token_bytes(id)
        except errors.TokenError:  # a gap
            token = b"\xff\xff"
        made.update(len(token).to_bytes(4, "little") + token)
    _digests[tokenizer] = made.hexdigest()
    return _digests[tokenizer]


def of_model(path: str, format: str, metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The vocabulary that came with a model: in its metadata, or in the folder that is the model."""
    if format not in ("gguf", "hf") and CARRIED not in metadata:
        return None
    from rookery.tokenizer.stored import find

    return find(path, format, metadata)


def fitting(
    path: str, format: str, metadata: Mapping[str, Any], n_vocab: int, given: Tokenizer | None = None
) -> Tokenizer:
    """The tokenizer of a model of `n_vocab` tokens: `given`, else the one that Rookery noted in the file, else the
    vocabulary that came with the weights, else a guess by size. Raises TokenizerError.
    """
    tokenizer = _known(path, format, metadata, n_vocab) if given is None else given
    if tokenizer.vocab_size > n_vocab:
        raise errors.TokenizerError(
            f"{path}: the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, the model "
            f"only {n_vocab}; name another: --tokenizer bytes|utf16le|world|FILE"
        )
    return tokenizer


def _known(path: str, format: str, metadata: Mapping[str, Any], n_vocab: int) -> Tokenizer:
    name = metadata.get("rookery.tokenizer")
    if not name and (stored := of_model(path, format, metadata)):
        return stored
    name = name or ("world" if n_vocab == 65536 else None)
    if name not in NAMES:  # never a path: a model file must not choose what else is opened
        said = f"names an unknown tokenizer {str(name)[:40]!r}" if name else "says nothing of its tokenizer"
        raise errors.TokenizerError(
            f"{path}: {said} ({n_vocab} tokens); name it: --tokenizer bytes|utf16le|world|FILE"
            + (", here likely the tokenizer.json of 20B" if n_vocab == 50277 else "")
        )
    return load(str(name))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
