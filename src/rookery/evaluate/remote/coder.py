"""A server's tokenizer, over /tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from rookery.errors import BackendError, InputError, TokenError
from rookery.evaluate.remote.client import Client
from rookery.evaluate.remote.completions import Completions

KEPT = 1024  # texts whose tokens are remembered: choices share their context
BYTES = "bytes:"  # begins the name of a token that is a part of a character


class Coder:
    """`name`: what the server calls it; `vocab_size`: of the model, as evaluate.requests.Coder wants it."""

    def __init__(self, client: Client, completions: Completions, model: str, vocab_size: Any) -> None:
        self._client, self._completions, self._model = client, completions, model
        try:
            info = client.get("/tokenizer_info")
        except InputError:  # a route that others lack
            info = {}
        size = info.get("vocab_size") if vocab_size is None else vocab_size
        if not isinstance(size, int) or not 0 < size < 1 << 31:
            raise BackendError(f"{client.url}: the server does not say how many tokens its model has")
        self.name, self.vocab_size = str(info.get("tokenizer_class", "")), size
        self._encoding = "utf-16-le" if self.name == "utf16le" else "utf-8"
        end = info.get("eos_token")  # as a prompt this is the token, as content it is its letters
        self.end: int | None = next(iter(self._tokens(prompt=end)), None) if isinstance(end, str) else None
        self._encode = lru_cache(KEPT)(lambda text: tuple(self._tokens(content=text)))

    def encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("the text has half a surrogate pair; wanted whole characters") from None
        return list(self._encode(text))

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Exact, also for parts of characters."""
        if not ids:
            return b""
        text = self._client.post("/detokenize", {"model": self._model, "tokens": self.checked(ids)}).get("content")
        if isinstance(text, str) and "\ufffd" not in text:
            return text.encode(self._encoding, "surrogatepass")
        names = self._completions.names(list(ids))
        return b"".join(self._bytes(id, name) for id, name in zip(ids, names, strict=True))

    def checked(self, ids: Iterable[int]) -> list[int]:
        """`ids`, all of the vocabulary. Raises TokenError."""
        found = list(ids)
        for id in found:
            if not 0 <= id < self.vocab_size:
                said = f"outside the vocabulary of {self._model} (0 to {self.vocab_size - 1})"
                raise TokenError(f"token {id} is {said}")
        return found

    def _bytes(self, id: int, name: str) -> bytes:
        if id == self.end:
            return b""
        if not name.startswith(f"{BYTES}\\x"):
            return name.encode(self._encoding, "surrogatepass")
        try:
            return bytes.fromhex(name.removeprefix(BYTES).replace("\\x", ""))
        except ValueError:
            raise BackendError(f"{self._client.url}: the server names a token {name[:40]!r}; wanted bytes") from None

    def _tokens(self, **asked: str) -> list[int]:
        given = self._client.post("/tokenize", {"model": self._model, **asked}).get("tokens")
        if not isinstance(given, list) or not all(type(id) is int and 0 <= id < self.vocab_size for id in given):
            raise BackendError(f"{self._client.url}/tokenize: the server answers with what are no tokens of its model")
        return given
