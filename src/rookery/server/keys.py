"""Who calls: keys from a file, of which only hashes are held, and what each may do.

A line of the file is `sha256:HEX SCOPES NAME` (`rookery serve --hash-key` writes it) or `KEY SCOPES NAME`; SCOPES are
read, chat or admin, and each may do what those before it may.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fastapi import Request

from rookery.errors import InputError, MissingFile, NoPermission, NotAFile
from rookery.server.errors import ApiError

Scope = Literal["read", "chat", "admin"]
LADDER: tuple[Scope, ...] = ("read", "chat", "admin")
ALL = frozenset(LADDER)
SHORTEST = 16  # characters of a key that --hash-key takes: a hash hides only what cannot be guessed
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

_HASHED = re.compile("sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True)
class Caller:
    """One key's bearer. `owner` is the same for the same key, and "" without one; it does not tell the key."""

    owner: str
    scopes: frozenset[str] = ALL
    name: str = ""


def digest(key: str) -> bytes:
    """The SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def presented(headers: Mapping[str, str]) -> str:
    """The key that a request shows, "" for none: Authorization: Bearer, else x-api-key."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()


class Keys:
    """The keys that are known; none at all: anyone may do anything."""

    def __init__(self, known: Iterable[tuple[bytes, frozenset[str], str]] = ()) -> None:
        self._known = tuple(known)

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return not self._known

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        """Who shows this key; None for an unknown or missing one. It takes the same time for every key."""
        key = presented(headers)
        hashed = digest(key)
        owner = hashlib.sha256(b"owner" + hashed).hexdigest()[:32] if key else ""
        if self.open:
            return Caller(owner)
        found: Caller | None = None
        for known, scopes, name in self._known:
            if hmac.compare_digest(known, hashed):
                found = Caller(owner, scopes, name)
        return found


def refused(headers: Mapping[str, str] = NO_HEADERS) -> ApiError:
    """What is said to one without a key."""
    return ApiError(
        401,
        "no key, or one that this server does not know; send it as Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer", **headers},
    )


def needs(scope: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, if the key has this scope. Raises ApiError 401, 403."""

    async def check(request: Request) -> Caller:
        caller: Caller | None = request.state.caller
        if caller is None:
            raise refused()
        if scope not in caller.scopes:
            raise ApiError(403, f"this key has not the scope {scope!r}", code="insufficient_scope")
        return caller

    return check


def line(key: str, scopes: str = "chat", name: str = "unnamed") -> str:
    """What the file says of a key."""
    return f"sha256:{digest(key).hex()} {scopes} {name}"


def load(path: str, warn: Callable[[str], None]) -> Keys:
    """The keys in a file, which nobody else may read. Raises FileError, InputError."""
    try:
        with open(path, encoding="utf-8") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(1 << 20)
    except FileNotFoundError:
        raise MissingFile(path, "no such file; one line for each key: KEY SCOPES NAME") from None
    except IsADirectoryError:
        raise NotAFile(path, "is a folder; wanted a file with one line for each key") from None
    except PermissionError:
        raise NoPermission(path, "may not be read; check its owner and mode") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text; wanted one line for each key: KEY SCOPES NAME") from None
    if os.name == "posix" and mode & 0o077:
        raise NoPermission(path, f"can be read by others; make it private: chmod 600 {path}")
    known = []
    for number, written in enumerate(text.splitlines(), 1):
        if written.strip() and not written.lstrip().startswith("#"):
            known.append(_entry(f"{path}, line {number}", written.split(), warn))
    if not known:
        raise InputError(f"{path}: has no key; wanted lines KEY SCOPES NAME")
    if len({hashed for hashed, _, _ in known}) < len(known):
        raise InputError(f"{path}: one key stands there twice")
    return Keys(known)


def _entry(where: str, parts: list[str], warn: Callable[[str], None]) -> tuple[bytes, frozenset[str], str]:
    if len(parts) != 3:
        raise InputError(f"{where}: has {len(parts)} words; wanted three: KEY SCOPES NAME")
    key, listed, name = parts
    scopes = listed.split(",")
    if not set(scopes) <= ALL:
        raise InputError(f"{where}: the scopes {listed!r} are not known; wanted read, chat or admin")
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: the name has odd characters; wanted letters, digits and . _ @ -")
    hashed = _HASHED.fullmatch(key)
    if key.startswith("sha256:") and not hashed:
        raise InputError(f"{where}: sha256: is not followed by 64 hex digits")
    if not hashed:
        warn(f"{where}: the key stands there in the open; write its hash: rookery serve --hash-key")
    highest = max(map(LADDER.index, scopes))
    return bytes.fromhex(hashed[1]) if hashed else digest(key), frozenset(LADDER[: highest + 1]), name
