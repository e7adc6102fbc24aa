"""What lists say of stored talks and their turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from rookery.server import talk_ids
from rookery.session.turns import Turn
from rookery.store import Talk


@dataclass(frozen=True)
class Listed:
    """A talk in a list; times in seconds since 1970."""

    id: str  # of its main head
    created: float
    used: float
    title: str
    system: str | None


@dataclass(frozen=True)
class Entry:
    """A turn in a tree of turns; `parent` is the response before it, texts are cut."""

    id: str
    parent: str | None
    role: str
    said: str
    reply: str
    tokens: int  # read and written
    created: float
    stop_reason: str


@dataclass(frozen=True)
class Info:
    """One talk: `id`, the head that was asked for; `at`, the response it stands at; `heads`: all of them, by name."""

    talk: Listed
    id: str
    at: str | None
    turns: list[Entry]  # in drawing order: a turn before those that follow it
    heads: dict[str, str | None]


def listed(talk: Talk, used: float) -> Listed:
    said = json.loads(talk.settings)
    return Listed(talk_ids.state(talk.name), talk.created, used, said.get("title", ""), said.get("system"))


def entry(turn: Turn, ids: Mapping[str, str], preview: int) -> Entry:
    """`ids`: of responses, by those of turns."""
    return Entry(
        id=ids[turn.id],
        parent=None if turn.parent is None else ids[turn.parent],
        role=turn.role,
        said=_cut(turn.user, preview),
        reply=_cut(turn.reply, preview),
        tokens=turn.tokens,
        created=turn.created,
        stop_reason=turn.stop_reason,
    )


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: max(0, size - 1)]}…"
