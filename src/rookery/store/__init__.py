"""Where talks are kept: in memory, in an SQLite file, or in a Redis that several processes share.

A store holds two kinds of things. **Talks** are the truth: a header, turns that never change, and heads that move over
them; what `add` or `move` returned for is there after a crash. **Snapshots** are a cache of states by the key of what
was read; any of them may be evicted (evict.py) or found damaged, and is computed again from the tokens. Only the state
that a talk began with, where it was one of its own, is kept for good.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from rookery.store.node import MAIN, SCHEMA, Node, Span, Talk, beginning
from rookery.store.snapshot import Prefix, Snapshot, root

__all__ = ["MAIN", "SCHEMA", "Node", "Prefix", "Snapshot", "Span", "Store", "Talk", "beginning", "open", "root"]

IN_MEMORY = ":memory:"
REDIS = ("redis://", "rediss://", "unix://")


class Store(Protocol):
    """What every store can do. `half`: states are rounded to float16; `budget`: bytes of snapshots."""

    half: bool
    budget: int

    def put(self, key: str, snapshot: Snapshot, keep: bool = False) -> None:
        """Keep a state and evict what is then too much. What is wrong with the place is counted in `stats` and said
        once, as a warning.

        `keep`: for good, to the bit and durably; it counts in the budget and is never evicted. Then what is wrong is
        raised: CannotWrite, StoreError.
        """

    def get(self, key: str) -> Snapshot | None:
        """The state, or None; a damaged one is dropped. The caller checks that it is its model's."""

    def has(self, key: str) -> bool: ...

    def create(self, talk: Talk) -> None:
        """A new talk, with the head "main" before its first turn. Raises InputError if the name is taken or is none."""

    def talk(self, name: str) -> Talk:
        """Raises StoreError if there is none, NewerFile if a later Rookery wrote it, DamagedFile."""

    def talks(self, begin: str = "", after: str | None = None, limit: int | None = None) -> list[tuple[Talk, float]]:
        """The talks with the time of their last use, the newest first: those whose names begin so, at most `limit` of
        them, those `after` the one of that name (none where it is gone). One that cannot be read is left out, and
        warned of.
        """

    def nodes(self, name: str) -> dict[str, Node]:
        """Every turn of the talk by its id. Raises as `talk` does; DamagedFile names the turn."""

    def has_turn(self, name: str, turn: str) -> bool:
        """Whether the talk has it, found without a look at the others. Raises NoSuchTalk."""

    def heads(self, name: str) -> dict[str, str | None]:
        """Where each head is: the id of a turn, or None before the first."""

    def add(self, name: str, node: Node, head: str, expected: str | None) -> bool:
        """Keep a turn and move `head` from `expected` to it, at once and durably.

        False where the head is elsewhere by now: the turn is kept all the same. Adding the same again is no error.
        Raises CannotWrite (disk full, read-only), StoreError (locked, unreachable), NoSuchTalk (the talk is not there,
        or the turn before it is not in it: it may have been deleted meanwhile).
        """

    def together(self) -> AbstractContextManager[None]:
        """A block in which many turns are added: where the store can (SQLite), all are kept at its end, quickly."""

    def move(self, name: str, head: str, expected: str | None, to: str | None) -> bool:
        """Move a head if it is where `expected` says; one that does not exist yet is at None. Raises as `add`."""

    def cut(self, name: str, turn: str) -> None:
        """Drop a turn that none follows, and its state; heads that stand on it go back to the turn before it. Raises
        InputError where turns follow it, NoSuchTalk where it is not there.
        """

    def remove(self, name: str) -> None:
        """Drop the talk, the state it began with (`beginning`), and the states of its turns that no other talk has."""

    def stats(self) -> dict[str, int]:
        """snapshots, bytes; and since this object was made: evicted, damaged, hits, misses, failed."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open(where: str | os.PathLike[str] | Store | None, half: bool = False, budget: int | None = None) -> Store:
    """The store at `where`: None or ":memory:", the address of a Redis (redis://, rediss://, unix://), else the path of
    an SQLite file, which is made if it is missing. A Store is returned as it is.

    `budget`: bytes of snapshots, by default 512 MiB in memory and 2 GiB elsewhere. Raises UnknownFormat, NewerFile,
    DamagedFile, CannotWrite, StoreError, MissingExtra.
    """
    if where is not None and not isinstance(where, str | os.PathLike):
        return where
    if where is None or where == IN_MEMORY:
        from rookery.store.memory import Memory

        return Memory(half, budget)
    if isinstance(where, str) and where.startswith(REDIS):
        from rookery.store.redis import Redis

        return Redis(where, half, budget)
    from rookery.store.sqlite import SQLite

    return SQLite(where, half, budget)
