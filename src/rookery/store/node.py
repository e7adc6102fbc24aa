"""What a store keeps of a talk: its header and its turns. Tokens are the truth; a state is a cache of them.

A turn never changes and is named by its content; the turns of a talk are a tree, and heads move over it. Both kinds
are read back as if a stranger had written them: a `Node` or `Talk` that exists is well-formed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from rookery import errors

SCHEMA = 1
ROLES = ("system", "user", "assistant", "tool")
STOPS = ("end", "stop", "length", "cancelled")
MAIN = "main"  # the head that every talk has

_ID = re.compile("[0-9a-f]{32}")
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Span:
    """Who said the tokens begin..end, counted within the turn."""

    role: str
    begin: int
    end: int


@dataclass(frozen=True)
class Node:
    """One turn of a talk. Raises ValueError for a field that cannot be."""

    parent: str | None  # the turn before it in the talk
    base: str | None  # the turn whose tokens these continue; None: from the start
    tokens: tuple[int, ...]  # of this turn alone: prompt and reply
    spans: tuple[Span, ...]
    tail: bytes  # of the reply, not yet tokens: encoded together with what follows
    messages: tuple[tuple[str, str], ...]  # (role, content) as given and as answered
    stop: str  # one of STOPS
    sampling: str  # a JSON object: the settings, and the sampler's state before and after
    key: str  # of the snapshot at its end
    created: float  # seconds since 1970; not part of the id
    kept: int | None = None  # of the base's own tokens those that these continue; None: all

    def __post_init__(self) -> None:
        for name in ("parent", "base"):
            value = getattr(self, name)
            _check(value is None or _matches(_ID, value), f"its {name} is not 32 hex digits")
        _check(_are_tokens(self.tokens), "its tokens are not whole numbers from 0 to 2^32 - 1")
        _check(type(self.tail) is bytes, "its tail is not bytes")
        _check(type(self.spans) is tuple and all(map(self._has, self.spans)), "a span is outside its tokens")
        _check(type(self.messages) is tuple and all(map(_is_message, self.messages)), "a message has no known role")
        _check(self.stop in STOPS, f"its stop is none of {', '.join(STOPS)}")
        _check(_is_object(self.sampling), "its sampling is not a JSON object")
        _check(_matches(_DIGEST, self.key), "its key is not 64 hex digits")
        _check(_is_time(self.created), "its time is none")
        whole = type(self.kept) is int and self.kept >= 0 and self.base is not None
        _check(self.kept is None or whole, "what it keeps of its base is no number of tokens")

    def _has(self, span: Any) -> bool:
        whole = isinstance(span, Span) and type(span.begin) is int and type(span.end) is int
        return whole and span.role in ROLES and 0 <= span.begin <= span.end <= len(self.tokens)

    @cached_property
    def id(self) -> str:
        """32 hex digits, of everything but `created`."""
        return _digest({name: value for name, value in self._plain().items() if name != "created"})[:32]

    def to_json(self) -> str:
        """One line of ASCII."""
        return _line(self._plain())

    def _plain(self) -> dict[str, Any]:
        """What JSON can say; asdict would copy a long turn's tokens one by one."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        spans = [[span.role, span.begin, span.end] for span in self.spans]
        return plain | {"spans": spans, "tail": self.tail.hex()}

    @classmethod
    def from_json(cls, text: str, id: str | None = None) -> Node:
        """What `to_json` wrote. Raises ValueError unless every field is right and, if given, its id is `id`."""
        found = _read(cls, text)
        try:
            found["spans"] = tuple(Span(*span) for span in found["spans"])
            found["messages"] = tuple(map(tuple, found["messages"]))
            found["tokens"] = tuple(found["tokens"])
            found["tail"] = bytes.fromhex(found["tail"])
        except TypeError as error:
            raise ValueError(f"a field is of the wrong type ({error})") from None
        node = cls(**found)
        _check(id is None or node.id == id, "its content is not what its id says")
        return node


@dataclass(frozen=True)
class Talk:
    """A talk's header: whose it is and how it is set up. Raises ValueError for a field that cannot be."""

    name: str
    schema: int  # SCHEMA of the Rookery that wrote it
    fingerprint: str  # of the model
    lineage: str
    tokenizer: str  # its digest
    settings: str  # a JSON object: template, system text, think mode, digest of the initial state, ...
    created: float  # seconds since 1970

    def __post_init__(self) -> None:
        for name in ("name", "fingerprint", "lineage", "tokenizer"):
            _check(isinstance(getattr(self, name), str), f"its {name} is no text")
        _check(type(self.schema) is int and self.schema > 0, "its schema is no whole number")
        _check(_is_object(self.settings), "its settings are not a JSON object")
        _check(_is_time(self.created), "its time is none")

    def to_json(self) -> str:
        """One line of ASCII, with a digest of the rest."""
        plain = asdict(self)
        return _line(plain | {"digest": _digest(plain)})

    @classmethod
    def from_json(cls, text: str, name: str | None = None) -> Talk:
        """The header that `to_json` wrote. Raises ValueError unless it is whole and, if given, of the talk `name`."""
        found = _read(cls, text, "digest")
        digest = found.pop("digest")
        _check(digest == _digest(found), "its content is not what its digest says")
        talk = cls(**found)
        _check(name is None or talk.name == name, "it is another talk's")
        return talk


def check_name(name: object, what: str = "talk") -> str:
    """The name of a talk or a head, as it is. Raises InputError for one that could be taken for a path or not shown."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 100
        or not name.isprintable()
        or name[0] == "."
        or set(name) & set("/\\")
    ):
        shown = repr(name if not isinstance(name, str) else name[:40])
        raise errors.InputError(
            f"{shown} cannot name a {what}: 1 to 100 printable characters, no / or \\, no dot first"
        )
    return name


def check_schema(where: str, name: str, schema: Any) -> None:
    """Raises NewerFile for a talk that a later Rookery wrote."""
    if isinstance(schema, int) and schema > SCHEMA:
        raise errors.NewerFile(
            where, f"talk {name!r} is of schema {schema}, this Rookery knows {SCHEMA}: a newer one reads it"
        )


def check_new(where: str, talk: Talk) -> None:
    """Raises InputError for a name that is none, NewerFile for a talk that this Rookery could not go on with."""
    check_name(talk.name)
    check_schema(where, talk.name, talk.schema)


def read_talk(where: str, name: str, schema: Any, text: str) -> Talk:
    """A stored header. Raises NewerFile, DamagedFile."""
    check_schema(where, name, schema)
    try:
        return Talk.from_json(text, name)
    except ValueError as error:
        raise errors.DamagedFile(where, f"talk {name!r} is damaged: {error}") from None


def read_turn(where: str, name: str, id: str, text: str) -> Node:
    """A stored turn. Raises DamagedFile."""
    try:
        return Node.from_json(text, id)
    except ValueError as error:
        raise errors.DamagedFile(where, f"talk {name!r}: turn {str(id)[:32]} is damaged: {error}") from None


def read_turns(where: str, name: str, rows: Iterable[tuple[str, str]]) -> dict[str, Node]:
    """The turns of a talk, stored as (id, text). Raises DamagedFile, which names the turn."""
    found = {id: read_turn(where, name, id, text) for id, text in rows}
    for id, node in found.items():
        for before in (node.parent, node.base):
            if before is not None and before not in found:
                raise errors.DamagedFile(where, f"talk {name!r}: turn {before}, which {id} follows, is not there")
    return found


def beginning(name: str) -> str:
    """The key of the state that the talk of this name began with, where it was one of its own."""
    return hashlib.sha256(b"beginning" + name.encode("utf-8", "surrogatepass")).hexdigest()


def taken(name: str) -> errors.InputError:
    return errors.InputError(f"there is a talk {name!r} already; choose another name")


def unknown(name: str, where: str) -> errors.NoSuchTalk:
    return errors.NoSuchTalk(f"{where}: no talk {name[:100]!r}")


def absent(name: str, what: str) -> errors.NoSuchTalk:
    return errors.NoSuchTalk(f"{what} is not in talk {name!r}")


def no_turn(name: str, turn: str) -> errors.NoSuchTalk:
    return errors.NoSuchTalk(f"no turn {turn[:32]!r} in talk {name!r}")


def followed(turn: str) -> errors.InputError:
    return errors.InputError(f"other turns follow turn {turn[:32]!r}; only the last of a branch can be dropped")


def _read(cls: type, text: str, *more: str) -> dict[str, Any]:
    """A JSON object that has the fields of `cls`, those named besides, and no others."""
    wanted = [field.name for field in fields(cls)] + [*more]
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({type(error).__name__})") from None
    _check(isinstance(found, dict) and sorted(found) == sorted(wanted), f"its fields are not {', '.join(wanted)}")
    return dict(found)


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_line(value).encode()).hexdigest()


def _check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _are_tokens(value: Any) -> bool:
    whole = type(value) is tuple and {*map(type, value)} <= {int}
    return whole and (not value or (min(value) >= 0 and max(value) < 2**32))


def _is_message(value: Any) -> bool:
    pair = type(value) is tuple and len(value) == 2 and all(isinstance(text, str) for text in value)
    return pair and value[0] in ROLES


def _is_object(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
