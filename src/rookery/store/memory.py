"""A store that ends with the process; threads may share it. Also the plainest statement of what a store does."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field

from rookery.store.evict import Cache, is_kept, victims
from rookery.store.node import (
    MAIN,
    Node,
    Talk,
    absent,
    beginning,
    check_name,
    check_new,
    followed,
    no_turn,
    taken,
    unknown,
)

BUDGET = 512 << 20


@dataclass
class _Kept:
    """One talk: its turns, how many turns come after each, its heads."""

    header: Talk
    used: float
    nodes: dict[str, Node] = field(default_factory=dict)
    children: Counter[str] = field(default_factory=Counter)
    heads: dict[str, str | None] = field(default_factory=lambda: {MAIN: None})


class Memory(Cache):
    """`half`: states are rounded to float16; `budget`: bytes of snapshots, 512 MiB by default."""

    def __init__(self, half: bool = False, budget: int | None = None) -> None:
        super().__init__(half, BUDGET if budget is None else budget)
        self._lock = threading.RLock()
        self._talks: dict[str, _Kept] = {}
        self._payloads: OrderedDict[str, bytes] = OrderedDict()  # the least recently used first
        self._total = 0
        self._keep: set[str] = set()
        self._turns: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)  # key -> (talk, turn)

    # snapshots

    def _has(self, key: str) -> bool:
        with self._lock:
            return key in self._payloads

    def _write(self, key: str, data: bytes, keep: bool) -> int:
        with self._lock:
            kept = keep or key in self._keep
            if len(data) + sum(len(self._payloads[other]) for other in self._keep if other != key) > self.budget:
                raise self._no_room(len(data))
            self._drop(key)
            rows = ((other, len(payload)) for other, payload in self._payloads.items() if other not in self._keep)
            gone = list(victims(rows, self._total + len(data) - self.budget, self._goes_last))
            for other in gone:
                self._drop(other)
            self._payloads[key] = data
            self._total += len(data)
            if kept:
                self._keep.add(key)
            return len(gone)

    def _read(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._payloads:
                self._payloads.move_to_end(key)
            return self._payloads.get(key)

    def _drop(self, key: str) -> None:
        with self._lock:
            self._total -= len(self._payloads.pop(key, b""))
            self._keep.discard(key)

    def _size(self) -> tuple[int, int]:
        with self._lock:
            return len(self._payloads), self._total

    def _goes_last(self, key: str) -> bool:
        def of(talk: str, turn: str) -> bool:
            kept = self._talks[talk]
            return is_kept(kept.children[turn], turn in kept.heads.values())

        return any(of(*turn) for turn in self._turns.get(key, ()))

    # talks

    def create(self, talk: Talk) -> None:
        check_new("memory", talk)
        with self._lock:
            if talk.name in self._talks:
                raise taken(talk.name)
            self._talks[talk.name] = _Kept(talk, time.time())

    def talk(self, name: str) -> Talk:
        return self._of(name).header

    def talks(self, begin: str = "", after: str | None = None, limit: int | None = None) -> list[tuple[Talk, float]]:
        with self._lock:
            newest = reversed(self._talks.values())  # of two with the same time, too
            rows = sorted(((t.header, t.used) for t in newest), key=lambda row: -row[1])
        names = [talk.name for talk, _ in rows]
        if after is not None:
            rows = rows[names.index(after) + 1 :] if after in names else []
        return [row for row in rows if row[0].name.startswith(begin)][:limit]

    def nodes(self, name: str) -> dict[str, Node]:
        with self._lock:
            return dict(self._of(name).nodes)

    def has_turn(self, name: str, turn: str) -> bool:
        with self._lock:
            return turn in self._of(name).nodes

    def heads(self, name: str) -> dict[str, str | None]:
        with self._lock:
            return dict(self._of(name).heads)

    def add(self, name: str, node: Node, head: str, expected: str | None) -> bool:
        with self._lock:
            kept = self._of(name)
            check_name(head, "head")
            before = {turn for turn in (node.parent, node.base) if turn is not None}
            if not before <= kept.nodes.keys():
                raise absent(name, "the turn before it")
            if node.id not in kept.nodes:
                kept.nodes[node.id] = node
                kept.children.update(before)
                self._turns[node.key].add((name, node.id))
            return self.move(name, head, expected, node.id)

    def move(self, name: str, head: str, expected: str | None, to: str | None) -> bool:
        with self._lock:
            kept = self._of(name)
            check_name(head, "head")
            if to is not None and to not in kept.nodes:
                raise absent(name, f"turn {to}")
            kept.used = time.time()
            if kept.heads.get(head) not in (expected, to):
                return False
            kept.heads[head] = to
            return True

    def cut(self, name: str, turn: str) -> None:
        with self._lock:
            kept = self._of(name)
            if turn not in kept.nodes:
                raise no_turn(name, turn)
            if kept.children[turn]:
                raise followed(turn)
            node = kept.nodes.pop(turn)
            kept.children.subtract({before for before in (node.parent, node.base) if before is not None})
            kept.heads.update({head: node.parent for head, at in kept.heads.items() if at == turn})
            self._leave(name, node)

    def remove(self, name: str) -> None:
        with self._lock:
            for node in self._of(name).nodes.values():
                self._leave(name, node)
            self._drop(beginning(name))
            del self._talks[name]

    def _leave(self, name: str, node: Node) -> None:
        """A turn is gone; its state with the last that ends there."""
        sharing = self._turns[node.key]
        sharing.discard((name, node.id))
        if not sharing:
            del self._turns[node.key]
            self._drop(node.key)

    def _of(self, name: str) -> _Kept:
        with self._lock:
            if check_name(name) not in self._talks:
                raise unknown(name, "memory")
            return self._talks[name]
