"""Decoding token by token, without ever showing half a character or the beginning of a text that is to end it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from rookery.errors import InputError


class StreamDecoder:
    """Pieces of text as ids arrive; joined, with `flush()` last, they equal `decode` of all ids at once.

    stop: texts that end it. They are looked for in the bytes, across tokens; `stopped` is then True, what stands
    before the first of them has been shown, and nothing after it ever is.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], encoding: str, stop: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop={stop!r}: wanted a list of texts, none of them empty")
        try:
            self._stops = [text.encode(encoding) for text in stop]
        except UnicodeEncodeError:
            raise InputError(f"stop={stop!r}: half a surrogate pair is no character and is never written") from None
        self._unit = 2 if encoding.startswith("utf-16") else 1  # bytes: a stop text begins only at a multiple of it
        self._held = b""
        self.text_bytes = 0  # of the text that has been let through
        self.stopped = False

    @property
    def held(self) -> int:
        """Bytes not shown because they may be the beginning of a stop text."""
        return len(self._held)

    def push(self, id: int) -> str:
        """The text that this token completes, "" while a character is unfinished. Raises TokenError."""
        data = self._token_bytes(id)
        if self.stopped:
            return ""
        return self._decoder.decode(self._before_stop(data) if self._stops else data)

    def flush(self) -> str:
        """What was left unfinished, with half a character as U+FFFD; the decoder is then as new."""
        text = self._decoder.decode(self._held, final=True)
        self._decoder.reset()
        self._held, self.text_bytes, self.stopped = b"", 0, False
        return text

    def _before_stop(self, data: bytes) -> bytes:
        """What of the held bytes and `data` can no longer be part of a stop text, or lies before one."""
        data = self._held + data
        found = [at for stop in self._stops if (at := self._find(data, stop)) >= 0]
        if found:
            self.stopped, safe, self._held = True, min(found), b""
        else:
            safe = len(data) - self._beginning(data)
            self._held = data[safe:]
        self.text_bytes += safe
        return data[:safe]

    def _find(self, data: bytes, stop: bytes) -> int:
        at = data.find(stop)
        while at >= 0 and (self.text_bytes + at) % self._unit:
            at = data.find(stop, at + 1)
        return at

    def _beginning(self, data: bytes) -> int:
        """Length of the longest end of `data` with which a stop text begins."""
        longest = max(map(len, self._stops)) - 1
        for n in range(min(longest, len(data)), 0, -1):
            if any(stop.startswith(data[-n:]) for stop in self._stops):
                return n
        return 0
