"""The turns of a talk as people look at them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rookery.chat import Message, Template
from rookery.errors import InputError
from rookery.store import Node
from rookery.store.node import ROLES


@dataclass(frozen=True)
class Turn:
    """What was said and answered."""

    id: str
    role: str  # of the last that was said: "user", "tool" or "system"
    user: str  # all that was said, joined by a blank line
    reply: str
    parent: str | None  # the turn before it
    stop_reason: str
    tokens: int  # read and written
    created: float  # seconds since 1970
    messages: tuple[Message, ...]  # what was said, as it was given
    note: Mapping[str, Any]  # what whoever said it noted


def turn(node: Node, template: Template) -> Turn:
    """The turn that a node holds."""
    *said, (_, reply) = node.messages
    return Turn(
        id=node.id,
        role=said[-1][0],
        user="\n\n".join(content for _, content in said),
        reply=template.shown(reply),
        parent=node.parent,
        stop_reason=node.stop,
        tokens=len(node.tokens),
        created=node.created,
        messages=tuple(message(*pair) for pair in said),
        note=json.loads(node.sampling).get("note", {}),
    )


def message(role: str, content: str) -> Message:
    """As templates take them."""
    return {"role": role, "content": content}  # type: ignore[typeddict-item]  # the template checks the role


def said(what: str | Sequence[Message], role: str) -> tuple[tuple[str, str], ...]:
    """What is said in one turn: a text of `role`, or messages. Raises InputError."""
    if isinstance(what, str):
        pairs = [(role, what)]
    else:
        given: Any = what
        if not isinstance(given, Sequence) or not all(isinstance(each, Mapping) for each in given):
            raise InputError(f"say() takes a text, or a list of messages, not {type(given).__name__}")
        pairs = [(each.get("role"), each.get("content")) for each in given]
    for n, (who, content) in enumerate(pairs):
        if not isinstance(content, str) or who not in ROLES:
            raise InputError(f"message {n + 1}: wanted a content that is text, and a role: {', '.join(ROLES)}")
    if not pairs:
        raise InputError("nothing was said: give at least one message")
    if pairs[-1][0] == "assistant":
        raise InputError("the last word is the assistant's: a reply is the model's own; say as user, tool or system")
    return tuple(pairs)


def drawn(nodes: Mapping[str, Node], heads: Mapping[str, str | None]) -> list[tuple[int, Node, list[str]]]:
    """All turns in drawing order: depth, turn, the heads that stand on it. The depth grows only where a turn has more
    than one that follows it.
    """
    standing: dict[str | None, list[str]] = {}
    for head, at in heads.items():
        standing.setdefault(at, []).append(head)
    following: dict[str | None, list[Node]] = {}
    for node in sorted(nodes.values(), key=lambda node: node.created):
        following.setdefault(node.parent, []).append(node)
    order: list[tuple[int, Node, list[str]]] = []
    waiting = [(0, node) for node in reversed(following.get(None, []))]
    while waiting:
        depth, node = waiting.pop()
        order.append((depth, node, standing.get(node.id, [])))
        after = following.get(node.id, [])
        waiting += [(depth + (len(after) > 1), later) for later in reversed(after)]
    return order
