"""Decoding token by token, without ever showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Pieces of text as ids arrive; joined, with `flush()` last, they equal `decode` of all ids at once."""

    def __init__(self, token_bytes: Callable[[int], bytes], encoding: str) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def push(self, id: int) -> str:
        """The text that this token completes, "" while a character is unfinished. Raises TokenError."""
        return self._decoder.decode(self._token_bytes(id))

    def flush(self) -> str:
        """What was left unfinished, as U+FFFD; the decoder is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
