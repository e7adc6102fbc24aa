"""Who runs how many tokens in the next step. It sees numbers only, never a tensor.

Every branch that writes runs one token a step, so no prompt, however long, holds up a reply for more than
`prefill_rows` rows. The rows for prompts go to the shortest first, for they are the ones whose answer can begin; a
share of them always goes to the one that waits longest, so that none starves. The waiting are admitted in turns among
their owners, each owner's in order.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol, TypeVar

from rookery.engine.events import Busy
from rookery.engine.sequence import Sequence
from rookery.errors import InputError

OLDEST = 4  # the longest waiting prompt gets one row of so many
SHORTEST, LONGEST = 1.0, 60.0  # seconds that Busy may name


class Runs(Protocol):
    """What the scheduler knows of a branch."""

    writing: bool

    @property
    def left(self) -> int: ...

    @property
    def room(self) -> int: ...


R = TypeVar("R", bound=Runs)


class Scheduler:
    """max_batch: branches side by side; max_waiting: sequences in the queue; rows: of a step, in all;
    prefill_rows: of these for prompts while others write.
    """

    def __init__(self, max_batch: int, max_waiting: int, rows: int, prefill_rows: int) -> None:
        for name, value in (("max_batch", max_batch), ("rows", rows), ("prefill_rows", prefill_rows)):
            if value < 1:
                raise InputError(f"{name} {value}: a whole number, 1 or more, is wanted")
        self.max_batch, self.max_waiting, self.rows, self.prefill_rows = max_batch, max_waiting, rows, prefill_rows
        self.waiting = self.places = 0  # sequences in the queue; places that are taken
        self._queues: dict[str, deque[Sequence]] = {}  # by owner, in the order of their turns
        self._held = 1.0  # seconds a sequence holds its places, lately

    def submit(self, sequence: Sequence) -> None:
        """Queue it. Raises Busy if the queue is full, InputError if it wants more places than there are."""
        if sequence.places > self.max_batch:
            raise InputError(f"{sequence.places} replies at once: at most {self.max_batch} run side by side here")
        if self.waiting >= self.max_waiting:
            ahead = self.waiting * self._held / self.max_batch
            raise Busy(self.waiting, min(max(ahead, SHORTEST), LONGEST))
        self._queues.setdefault(sequence.owner, deque()).append(sequence)
        self.waiting += 1

    @property
    def ready(self) -> bool:
        """Whether someone waits for whom there is room."""
        queue = next(iter(self._queues.values()), None)
        return queue is not None and self.places + queue[0].places <= self.max_batch

    def clear(self) -> list[Sequence]:
        """Empty the queue."""
        found = [sequence for queue in self._queues.values() for sequence in queue]
        self._queues, self.waiting = {}, 0
        return found

    def admit(self) -> list[Sequence]:
        """Those whose turn has come and for whom there is room; it is theirs until `release`."""
        found: list[Sequence] = []
        while self.ready:
            found.append(self._pop(next(iter(self._queues))))
            found[-1].admitted = time.monotonic()
            self.places += found[-1].places
        return found

    def withdraw(self, sequence: Sequence) -> bool:
        """Take it from the queue, if it is there."""
        queue = self._queues.get(sequence.owner, deque())
        if sequence not in queue:
            return False
        queue.remove(sequence)
        self.waiting -= 1
        if not queue:
            del self._queues[sequence.owner]
        return True

    def release(self, sequence: Sequence) -> None:
        """It is over."""
        self.places -= sequence.places
        self._held += 0.1 * (time.monotonic() - sequence.admitted - self._held)

    def plan(self, running: list[R]) -> list[tuple[R, int]]:
        """Each branch that runs in the next step, and with how many tokens."""
        work = [(branch, 1) for branch in running if branch.writing]
        readers = [branch for branch in running if not branch.writing]
        if not readers:
            return work
        rows = self.prefill_rows if work else self.rows
        given = {readers[0]: min(readers[0].room, max(1, rows // OLDEST))}
        rows -= given[readers[0]]
        for branch in sorted(readers, key=lambda branch: branch.left):
            more = min(branch.room - given.get(branch, 0), rows)
            if more:
                given[branch] = given.get(branch, 0) + more
                rows -= more
        return [*work, *given.items()]

    def _pop(self, owner: str) -> Sequence:
        """The owner's next; then it is the others' turn."""
        queue = self._queues.pop(owner)
        sequence = queue.popleft()
        self.waiting -= 1
        if queue:
            self._queues[owner] = queue
        return sequence
