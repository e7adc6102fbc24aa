"""The RWKV World tokenizer: greedy longest match over bytes, of 65,529 tokens or of those in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rookery import _native, errors
from rookery.formats.raw import map_file
from rookery.tokenizer import trie
from rookery.tokenizer.simple import encode_text, unknown_token
from rookery.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    from rookery._core import Trie as NativeTrie

# The published vocabulary of 2023-04-24 with LF line ends; CRLF copies are in circulation too.
DIGEST = "e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89"
# Models have 65,536 rows; the vocabulary has ids 1 to 65,529, and 0 is the end of text.
MODEL_ROWS = 65_536
MAX_FILE = 1 << 24


class World:
    """Token 0 ends a text and stands for no bytes; every other token is a string of bytes.

    Lines of a vocabulary file: `id literal length`, the literal as repr() writes str or bytes, the length in bytes.
    Raises TokenizerError for a damaged or absent vocabulary, FileError for a path that cannot be read.
    """

    end: int | None = 0
    _trie: NativeTrie | trie.Trie | trie.FromZero

    def __init__(self, path: str | os.PathLike[str] | None = None, *, native: bool | None = None) -> None:
        text = shipped_vocabulary() if path is None else _read_vocabulary(path)
        try:
            self._trie = _trie(text, native)
        except ValueError as error:
            raise errors.TokenizerError(f"{path}: {error}; wanted a World-style vocabulary") from None
        self.name = "world" if path is None else Path(path).stem
        self.vocab_size = MODEL_ROWS if path is None else self._trie.largest_id + 1

    @classmethod
    def from_text(cls, text: bytes, name: str, path: str, *, native: bool | None = None) -> World:
        """The text of a vocabulary file that lies in another file, `path`. Raises TokenizerError."""
        made = cls.__new__(cls)
        try:
            made._trie = _trie(text, native)
        except ValueError as error:
            raise errors.TokenizerError(f"{path}: its vocabulary is damaged: {error}") from None
        made.name, made.vocab_size = name, made._trie.largest_id + 1
        return made

    def text(self) -> str:
        """The vocabulary as the text of a file. Raises TokenizerError for one whose id 0 is no end of text."""
        if isinstance(self._trie, trie.FromZero):
            raise errors.TokenizerError(
                f"the vocabulary {self.name} begins with id 0; a vocabulary file cannot say that"
            )
        lines = []
        for id in range(1, self.vocab_size):
            with suppress(errors.TokenError):  # a gap
                token = self.token_bytes(id)
                lines.append(f"{id} {token!r} {len(token)}\n")
        return "".join(lines)

    @classmethod
    def from_tokens(
        cls, tokens: Sequence[bytes], name: str, end: int | None, path: str, *, native: bool | None = None
    ) -> World:
        """A vocabulary that is no file of its own: the bytes of each id, none for an id that stands for no text.

        `path`, of the file it was found in, is for messages. Raises TokenizerError.
        """
        first = 1 if tokens and tokens[0] else 0  # a trie's ids begin with 1
        ids: dict[bytes, int] = {}
        for id, token in enumerate(tokens):
            if token and ids.setdefault(token, id) != id:
                raise errors.TokenizerError(f"{path}: tokens {ids[token]} and {id} of its vocabulary are the same")
        text = b"\n".join(b"%d %r %d" % (id + first, token, len(token)) for token, id in ids.items())
        made = cls.from_text(text, name, path, native=native)
        if first:
            made._trie = trie.FromZero(_trie(text, native))
        made.end, made.vocab_size = end, made._trie.largest_id + 1
        return made

    def encode(self, text: str | bytes) -> list[int]:
        return self._trie.encode(encode_text(text, "utf-8") if isinstance(text, str) else bytes(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        ids = [*ids]  # an iterator could not be walked a second time for the one that is wrong
        try:
            return self._trie.decode(ids)
        except (IndexError, OverflowError, TypeError):
            return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, id: int) -> bytes:
        try:
            return self._trie.token(id)
        except (IndexError, OverflowError, TypeError):
            raise unknown_token(id, self.vocab_size) from None

    def stream(self, stop: Sequence[str] = ()) -> StreamDecoder:
        return StreamDecoder(self.token_bytes, "utf-8", stop)


def _trie(text: bytes, native: bool | None) -> NativeTrie | trie.Trie:
    """Raises ValueError("line N: why") for a damaged vocabulary text."""
    if native is None and not (native := _native.available()):
        _native.announce_missing()
    return _native.core.Trie(text) if native else trie.Trie(text)


def shipped_vocabulary() -> bytes:
    """Found without importing the package that ships it, which would cost 0.2 s and 235 MB."""
    spec = find_spec("pyrwkv_tokenizer")
    remedy = "reinstall it: pip install --force-reinstall 'pyrwkv-tokenizer>=0.9'"
    if spec is None or spec.origin is None:
        raise errors.TokenizerError(f"the World vocabulary comes with pyrwkv-tokenizer, which is missing; {remedy}")
    path = Path(spec.origin).with_name("rwkv_vocab_v20230424.txt")
    try:
        text = _read_vocabulary(path).replace(b"\r\n", b"\n")
    except errors.FileError as error:
        raise errors.TokenizerError(f"the World vocabulary of pyrwkv-tokenizer: {error}; {remedy}") from None
    if sha256(text).hexdigest() != DIGEST:
        raise errors.TokenizerError(f"{path}: is not the World vocabulary of 2023-04-24; {remedy}")
    return text


def _read_vocabulary(path: str | os.PathLike[str]) -> bytes:
    raw = map_file(path)
    if raw.size > MAX_FILE:
        raise errors.TooLarge(path, f"has {raw.size} bytes; a vocabulary has at most {MAX_FILE}")
    text = raw.tobytes()
    if text.lstrip()[:1] == b"{":
        raise errors.TokenizerError(
            f"{os.fspath(path)}: looks like a Hugging Face tokenizer.json, not a World-style vocabulary text; "
            "rookery.tokenizer.load reads both"
        )
    return text
