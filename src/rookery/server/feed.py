"""From the engine's thread to the event loop: what a sequence's listener hears, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from rookery.engine import Ended, Engine, Event, Failed, Sequence, Wrote

WAITING = 1 << 18  # tokens and log-probabilities of one sequence that may wait for a slow reader; about 100 bytes each

Queue = asyncio.Queue[Event]
Make = Callable[[Callable[[Event], None]], Sequence]


class Outbox:
    """Events on their way to the loop, carried over once a step however many there are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
        self._loop, self._lock = loop, threading.Lock()
        self._out: list[tuple[Queue, Event]] = []
        engine.after_step = self.flush

    def put(self, queue: Queue, event: Event) -> None:
        with self._lock:
            self._out.append((queue, event))

    def flush(self) -> None:
        """Called in the engine's thread after each step."""
        with self._lock:
            waiting = bool(self._out)
        if waiting and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            out, self._out = self._out, []
        for queue, event in out:
            queue.put_nowait(event)


class Feed:
    """The events of one sequence: iterate them to the last, one by one or as `batches`. Where too many of them wait for
    their reader the sequence is cancelled, and `slow` says so.
    """

    def __init__(self, engine: Engine, outbox: Outbox, make: Make) -> None:
        self.slow = False
        self._engine, self._outbox = engine, outbox
        self._queue: Queue = asyncio.Queue()
        self._heard = self._told = 0  # counted in the engine's thread, and in the loop's
        self._sequence = make(self._hear)
        self._left = self._sequence.places  # drafts that have not ended
        engine.submit(self._sequence)

    def _hear(self, event: Event) -> None:
        self._heard += _size(event)
        if self._heard - self._told > WAITING and not self.slow:
            self.slow = True
            self._engine.cancel(self._sequence)
        self._outbox.put(self._queue, event)

    @property
    def over(self) -> bool:
        return not self._left

    def cancel(self) -> None:
        """End it within one step of the engine; its last events still come."""
        if not self.over:
            self._engine.cancel(self._sequence)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self.over:
            raise StopAsyncIteration
        return self._note(await self._queue.get())

    async def batches(self) -> AsyncIterator[list[Event]]:
        """All events that are there by now, at least one: what a slow client has missed comes at once."""
        async for event in self:
            found = [event]
            while not (self.over or self._queue.empty()):
                found.append(self._note(self._queue.get_nowait()))
            yield found

    def _note(self, event: Event) -> Event:
        self._told += _size(event)
        if isinstance(event, Failed):
            self._left = 0
        elif isinstance(event, Ended):
            self._left -= 1
        return event


def _size(event: Event) -> int:
    return 1 + len(event.score.top) if isinstance(event, Wrote) and event.score else 1


class Serves(Protocol):
    """What a feed needs of the service."""

    @property
    def engine(self) -> Engine: ...

    @property
    def outbox(self) -> Outbox: ...


@asynccontextmanager
async def open(service: Serves, make: Make) -> AsyncIterator[Feed]:
    """Submit the sequence that `make(listen)` returns; it is cancelled where the block is left before its last event.

    Raises Busy.
    """
    feed = Feed(service.engine, service.outbox, make)
    try:
        yield feed
    finally:
        feed.cancel()
