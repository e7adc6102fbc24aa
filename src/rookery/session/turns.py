"""The turns of a talk as people look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rookery.chat import Template
from rookery.store import Node


@dataclass(frozen=True)
class Turn:
    """What was said and answered."""

    id: str
    role: str  # "user", "tool" or "system"
    user: str
    reply: str
    parent: str | None  # the turn before it
    stop_reason: str
    tokens: int  # read and written
    created: float  # seconds since 1970


def turn(node: Node, template: Template) -> Turn:
    """The turn that a node holds."""
    (role, said), (_, reply) = node.messages
    shown = template.shown(reply)
    return Turn(node.id, role, said, shown, node.parent, node.stop, len(node.tokens), node.created)


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
