"""How clients name stored talks: by ids that cannot be guessed, and that never become paths.

    resp_<talk><turn>          a turn: 32 hex digits each; of the turn those of its note "response", or of its own id
    state_<talk>               where the head "main" of a talk stands
    state_<talk>.<head>        where another head of it stands

In the store a talk's name begins with a digest of its owner. So another's talk is one that is not there.
"""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from typing import NamedTuple

from rookery.errors import InputError, NoSuchTalk
from rookery.session import Session
from rookery.store import MAIN

RESPONSE = "response"  # in a turn's note: how its id ends
HEAD = re.compile(r"[A-Za-z0-9_~-]{1,64}")

_TURN = re.compile(r"resp_([0-9a-f]{32})([0-9a-f]{32})")
_STATE = re.compile(r"state_([0-9a-f]{32})(?:\.([A-Za-z0-9_~-]{1,100}))?")


class Id(NamedTuple):
    """What an id names: a turn or a head of a talk."""

    talk: str
    turn: str | None
    head: str


def parse(id: str) -> Id:
    """Raises NoSuchTalk for what is no id."""
    if found := _TURN.fullmatch(id):
        return Id(found[1], found[2], MAIN)
    if found := _STATE.fullmatch(id):
        return Id(found[1], None, found[2] or MAIN)
    raise unknown()


def unknown() -> NoSuchTalk:
    """The one error for what is not there, is another's, or is no id."""
    return NoSuchTalk("there is no such response or state; it may have been deleted")


def fresh(owner: str) -> str:
    """The name of a new talk in its store."""
    return stored(owner, secrets.token_hex(16))


def stored(owner: str, talk: str) -> str:
    """The name of a talk in its store."""
    return f"{shelf(owner)}{talk}"


def shelf(owner: str) -> str:
    """What the names of all talks of an owner begin with."""
    return f"{sha256(owner.encode()).hexdigest()[:32]}."


def code(name: str) -> str:
    """The 32 hex digits by which clients know the talk of this name in its store."""
    return name.rpartition(".")[2]


def response(name: str, turn: str) -> str:
    """The id of a turn. `turn`: 32 hex digits."""
    return f"resp_{code(name)}{turn}"


def state(name: str, head: str = MAIN) -> str:
    """The id of a head."""
    return f"state_{code(name)}" + (f".{head}" if head != MAIN else "")


def of(session: Session) -> str:
    """The id of the head that a session moves."""
    return state(session.name, session.head)


def check_head(name: str) -> str:
    """Raises InputError for what cannot name a head in an id."""
    if not HEAD.fullmatch(name):
        raise InputError(f"{name[:64]!r} cannot name a branch: 1 to 64 of A-Z a-z 0-9 _ ~ -")
    return name
