"""Which states go when the budget is spent: the same answer in every store.

A turn's state is worth more where it cannot be made from its neighbour's: at a leaf (a talk goes on there), at a fork
(two talks pass through it) and at a head. All others lie on the way to one of those and go first, the least recently
used before the others. Whatever goes can be computed again from the tokens, which are never dropped. What cannot, the
state that a talk began with, is put to be kept: it never goes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from rookery import errors
from rookery.store.snapshot import Snapshot


def is_kept(children: int, has_head: bool) -> bool:
    """Whether the state of a turn with so many turns after it is of those that go last."""
    return children != 1 or has_head


def victims(
    rows: Iterable[tuple[str, int]], excess: int, goes_last: Callable[[str], bool] = lambda key: False
) -> Iterator[str]:
    """Keys to drop until `excess` bytes are free. `rows`: (key, bytes), the least recently used first; `goes_last`:
    which of them are dropped after all others, where the order does not say it.
    """
    last = []
    for key, size in rows:
        if excess <= 0:
            return
        if goes_last(key):
            last.append((key, size))
        else:
            excess -= size
            yield key
    if last:
        yield from victims(last, excess)


class Cache:
    """What every store does alike with snapshots: a cache that may lose any of them, counts, and never raises.

    A store adds `_write`, `_has`, `_read`, `_drop` (which raise RookeryError) and `_size`.
    """

    def __init__(self, half: bool, budget: int) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise errors.InputError(f"a budget of {budget!r}: a whole number of bytes, 0 or more, is wanted")
        self.half, self.budget = half, budget
        self._counts = dict.fromkeys(("evicted", "damaged", "hits", "misses", "failed"), 0)
        self._warned = False

    def put(self, key: str, snapshot: Snapshot, keep: bool = False) -> None:
        """Keep a state, halved if the store halves; then evict. What the place refuses is counted, and said once; of
        one that is to be kept it is raised.
        """
        data = snapshot.encode(self.half and not keep)
        try:
            if len(data) > self.budget:
                raise errors.StoreError(f"a state of {len(data)} bytes is beyond the store's budget of {self.budget}")
            self._counts["evicted"] += self._write(key, data, keep)
        except errors.RookeryError as error:
            if keep:
                raise
            self._failed(error)

    def get(self, key: str) -> Snapshot | None:
        """The state, with read-only arrays; None where it is not here or damaged (then it is dropped)."""
        found = None
        try:
            data = self._read(key)
            if data is not None:
                found = Snapshot.decode(data)
        except errors.DamagedFile:
            self._counts["damaged"] += 1
            self._forget(key)
        except errors.RookeryError as error:
            self._failed(error)
        self._counts["misses" if found is None else "hits"] += 1
        return found

    def has(self, key: str) -> bool:
        """Whether `get` would find something, damaged or not."""
        try:
            return self._has(key)
        except errors.RookeryError as error:
            self._failed(error)
            return False

    def stats(self) -> dict[str, int]:
        """snapshots and bytes held; evicted, damaged, hits, misses and failed since this object was made."""
        count, size = self._size()
        return {"snapshots": count, "bytes": size, **self._counts}

    def _forget(self, key: str) -> None:
        try:
            self._drop(key)
        except errors.RookeryError as error:
            self._failed(error)

    def _failed(self, error: errors.RookeryError) -> None:
        self._counts["failed"] += 1
        if not self._warned:
            self._warned = True
            warnings.warn(f"{error}; states are not kept and will be computed again", stacklevel=3)

    def _write(self, key: str, data: bytes, keep: bool) -> int:
        """Keep the bytes and evict; how many snapshots went. Raises StoreError where what is kept leaves no room."""
        raise NotImplementedError

    def _no_room(self, size: int) -> errors.StoreError:
        return errors.StoreError(f"a state of {size} bytes: what is kept for good leaves no room for it in the budget")

    def _has(self, key: str) -> bool:
        raise NotImplementedError

    def _read(self, key: str) -> bytes | None:
        raise NotImplementedError

    def _drop(self, key: str) -> None:
        raise NotImplementedError

    def _size(self) -> tuple[int, int]:
        """Number and bytes of the snapshots."""
        raise NotImplementedError

    def together(self) -> AbstractContextManager[None]:
        """See Store."""
        return nullcontext()

    def close(self) -> None:
        """Let go of files and connections; nothing is lost."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
