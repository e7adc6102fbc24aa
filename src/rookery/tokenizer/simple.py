"""Tokenizers without a vocabulary: the bytes of a text are its ids, 0 to 255, and no id ends it."""

from __future__ import annotations

from collections.abc import Sequence

from rookery import errors
from rookery.tokenizer.stream import StreamDecoder


def encode_text(text: str, encoding: str) -> bytes:
    """Raises InputError for a str that no encoding of Unicode can hold."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise errors.InputError(
            f"character {error.start} of the text is half a surrogate pair (U+{ord(text[error.start]):04X}), "
            "which is no character; pass bytes if that is meant"
        ) from None


def unknown_token(id: object, vocab_size: int) -> errors.TokenError:
    return errors.TokenError(f"{id} is no token of this vocabulary of {vocab_size}")


class Bytes:
    """The UTF-8 bytes of the text."""

    name = "bytes"
    encoding = "utf-8"
    vocab_size = 256
    end: int | None = None

    def encode(self, text: str | bytes) -> list[int]:
        return list(encode_text(text, self.encoding) if isinstance(text, str) else text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode(self.encoding, "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        ids = [*ids]  # bytes() of an array would be its buffer
        try:
            return bytes(ids)
        except (ValueError, TypeError):
            return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, id: int) -> bytes:
        try:
            return bytes((id,))
        except (ValueError, TypeError):
            raise unknown_token(id, self.vocab_size) from None

    def stream(self, stop: Sequence[str] = ()) -> StreamDecoder:
        return StreamDecoder(self.token_bytes, self.encoding, stop)


class UTF16LE(Bytes):
    """The UTF-16LE bytes of the text, as the trained rwkv.cpp v6 fixture wants them. Bytes are taken as they are."""

    name = "utf16le"
    encoding = "utf-16-le"
