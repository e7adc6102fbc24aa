"""The pure-Python stand-in for the native trie: the same ids and the same complaints, more slowly."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rookery._core import Trie as NativeTrie

LARGEST_ID = 1 << 20

# What repr() writes for a str and for a bytes object (native/vocabulary.cpp).
_RAW = rb"[^\\\x00-\x1f"
_TEXT = rb"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_BYTES = rb"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2})"
_LITERAL = re.compile(
    b"|".join(
        prefix + quote + b"(?:" + _RAW + quote + beyond + b"]|" + escape + b")*" + quote
        for prefix, beyond, escape in ((b"", b"", _TEXT), (b"b", rb"\x80-\xff", _BYTES))
        for quote in (b"'", b'"')
    )
)
_NUMBER = re.compile(rb"[0-9]{1,20}")


class Trie:
    """As `rookery._core.Trie`. Not a trie: per first two bytes, the lengths to try in one dictionary of all tokens."""

    def __init__(self, text: bytes) -> None:
        self._tokens = _parse(text)
        self._ids: dict[bytes, int] = {}
        for line, (id, token) in enumerate(self._tokens.items(), 1):
            if self._ids.setdefault(token, id) != id:
                raise ValueError(f"line {line}: the token was given before")
        for byte in range(256):
            if bytes((byte,)) not in self._ids:
                raise ValueError(f"no token for the single byte {byte}: wanted one for each of the 256")
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            if len(token) > 1:
                lengths.setdefault(token[:2], set()).add(len(token))
        self._lengths = {head: sorted(found, reverse=True) for head, found in lengths.items()}
        self.largest_id = max(self._tokens)
        self._tokens[0] = b""

    def encode(self, text: bytes) -> list[int]:
        found, ids, lengths, nothing = [], self._ids, self._lengths, ()
        at, end = 0, len(text)
        while at < end:
            for length in lengths.get(text[at : at + 2], nothing):
                id = ids.get(text[at : at + length])
                if id is not None:  # beyond the end only where the piece is all the rest
                    at += length
                    break
            else:
                id = ids[text[at : at + 1]]
                at += 1
            found.append(id)
        return found

    def decode(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.token, ids))

    def token(self, id: int) -> bytes:
        try:
            return self._tokens[index(id)]
        except KeyError:
            raise IndexError(f"no token has id {id}") from None


class FromZero:
    """A trie, whose ids begin with 1, for a vocabulary whose id 0 is a token like any other."""

    def __init__(self, trie: Trie | NativeTrie) -> None:
        self._trie = trie
        self.largest_id: int = trie.largest_id - 1

    def encode(self, text: bytes) -> list[int]:
        return [id - 1 for id in self._trie.encode(text)]

    def decode(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.token, ids))

    def token(self, id: int) -> bytes:
        if index(id) < 0:
            raise IndexError(f"no token has id {id}")
        return self._trie.token(index(id) + 1)


def _parse(text: bytes) -> dict[int, bytes]:
    """Token bytes by id, in file order."""
    tokens: dict[int, bytes] = {}
    rows = text.split(b"\n")
    if not rows[-1]:
        rows.pop()
    for line, row in enumerate(rows, 1):
        try:
            id, token = _parse_row(row.removesuffix(b"\r"))
            if id in tokens:
                raise ValueError(f"id {id} was given before")
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None
        tokens[id] = token
    return tokens


def _parse_row(row: bytes) -> tuple[int, bytes]:
    first, last = row.find(b" "), row.rfind(b" ")
    if first == last:
        raise ValueError("wanted `id literal length`")
    id = _number(row[:first])
    if not 1 <= id <= LARGEST_ID:
        raise ValueError(f"the id must be a number from 1 to {LARGEST_ID}")
    token = _token(row[first + 1 : last])
    if not token:
        raise ValueError("the token is empty")
    if _number(row[last + 1 :]) != len(token):
        raise ValueError(f"the length is wrong, the token has {len(token)} bytes")
    return id, token


def _number(text: bytes) -> int:
    return int(text) if _NUMBER.fullmatch(text) else -1


def _token(literal: bytes) -> bytes:
    try:
        if not _LITERAL.fullmatch(literal):
            raise ValueError
        if b"\\" in literal:
            value = ast.literal_eval(literal.decode())
            return value.encode() if isinstance(value, str) else bytes(value)
        body = literal[literal.startswith(b"b") + 1 : -1]
        body.decode()
        return body
    except (ValueError, SyntaxError):
        raise ValueError("the token is not a string or bytes literal as Python's repr() writes it") from None
