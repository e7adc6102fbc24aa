"""One response in the making: a task of its own, which no connection can take along when it breaks.

It reads and writes through the engine, makes the events that a client may be told, and keeps the turn. Only then is the
response over: what is told of as completed is in the store.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool

from rookery.engine import Cancelled, Ended, Failed, Marked, Sequence, Start, Wrote
from rookery.engine import Event as Heard
from rookery.server import feed
from rookery.server.errors import ApiError, as_api, places
from rookery.server.prompt import check_length
from rookery.server.responses_answer import STATUS, Answer, Told
from rookery.server.responses_events import Event
from rookery.server.service import Service
from rookery.server.sse import frame
from rookery.session import Session
from rookery.session.reply import Reply
from rookery.session.tree import Point, Reading

DELTAS = 4  # tokens from one event of the state's motion to the next
LAST = {"completed": "response.completed", "failed": "response.failed"}  # of the stream; else response.incomplete

log = logging.getLogger("rookery.server")


class Work:
    """`owner`: among whom the engine is shared."""

    def __init__(
        self,
        service: Service,
        session: Session,
        reply: Reply,
        answer: Answer,
        told: Told,
        *,
        owner: str,
        request_id: str,
    ) -> None:
        self.answer, self.owner = answer, owner
        self.store = True  # whether it becomes a turn
        self.streamed = False  # whether its events are wanted
        self.deltas = False  # and among them the state's motion
        self.status = "in_progress"
        self._service, self._session, self._reply = service, session, reply
        self._reading: Reading | None = None  # what the reply has to read first
        self._told, self._request_id = told, request_id
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._error: Exception | None = None
        self._accepted = asyncio.Event()
        self._over = asyncio.Event()
        self._puts: list[asyncio.Task[None]] = []
        self._clock = service.metrics.sequence()
        self._first = 0.0
        self._stopped = self._cancelled = False
        self._feed: feed.Feed | None = None
        self._ended: Ended | None = None

    # for the route

    async def begin(self) -> None:
        """Set it going. Raises Busy."""
        self._service.works[self.answer.id] = self
        self._service.spawn(self._run())
        await self._accepted.wait()
        if self._error is not None and self._feed is None:
            raise self._error

    async def finished(self) -> dict[str, Any]:
        """The whole answer. Raises what went wrong. It is stopped where nobody waits for it any more."""
        try:
            await self._over.wait()
        finally:
            self.stop()
        if self._error is not None:
            raise self._error
        return self.answer.body(self.status)

    async def frames(self) -> AsyncIterator[bytes]:
        """The stream. Raises what goes wrong before the first token is read; it is stopped where it is closed early."""
        number = 0
        try:
            while (event := await self._events.get()) is not None:
                yield frame(event | {"sequence_number": number}, event["type"])
                number += 1
            if self._error is not None:
                if not number:
                    raise self._error
                failed: Event = {"type": LAST["failed"], "response": self.answer.body("failed", _told_of(self._error))}
                yield frame(failed | {"sequence_number": number}, failed["type"])
        finally:
            self.stop()

    def stop(self) -> None:
        """Let it end with the engine's next step, if it has not; what was written is kept."""
        self._stopped = True
        if self._feed is not None:
            self._feed.cancel()

    def cancel(self) -> None:
        """Stop it, for one who knows its id and so has been told that it began."""
        self._cancelled = True
        self.stop()

    # in its own task

    async def _run(self) -> None:
        """The task's own end, with the server, stops the work, and then waits for it."""
        work = asyncio.ensure_future(self._guarded())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self.stop()
            await work

    async def _guarded(self) -> None:
        try:
            await self._make()
            await self._keep()
        except Cancelled as error:  # before a word was written: there is no turn
            self._clock.ended("cancelled")
            if self._cancelled:
                self._tell(self._told.end("cancelled"))
                self._end("cancelled")
            else:
                self._error = error
        except Exception as error:
            self._clock.ended("failed")
            self._error = error
            if as_api(error) is None:
                log.error("%s failed: %s\n%s", self._request_id, type(error).__name__, places(error))
        finally:
            del self._service.works[self.answer.id]
            self._over.set()
            self._accepted.set()
            self._events.put_nowait(None)

    async def _make(self) -> None:
        async with feed.open(self._service, self._sequence) as self._feed:
            self._accepted.set()
            if self._stopped:
                self._feed.cancel()
            async for event in self._feed:
                self._hear(event)

    def _sequence(self, listen: Callable[[Heard], None]) -> Sequence:
        return Sequence(
            self._start, listen, owner=self.owner, deltas=DELTAS if self.deltas else 0, model=self._session.model
        )

    def _start(self) -> Start:
        """In a thread of the engine's, when there is room: those who wait hold no state."""
        reply, note, service = self._reply, self.answer.note, self._service
        self._reading = reading = reply.prepare()
        check_length(reading.tokens, service.settings.max_prompt_tokens)
        note.read, note.cached = reply.known_tokens, max(0, reply.known_tokens - reply.read_tokens)
        service.metrics.prompt(note.read, note.cached)
        point, tokens, marks, _ = reading
        return Start(point.state.copy(), tokens, point.logits, tuple(at for at, _ in marks), (reply.draft(),))

    def _hear(self, event: Heard) -> None:
        if isinstance(event, Failed):
            raise event.error
        if self.status == "in_progress" and not self._first:
            self._first = time.monotonic()
            self._tell_begun()
        if isinstance(event, Marked):
            self._mark(event)
        elif isinstance(event, Wrote):
            self._wrote(event)
        elif isinstance(event, Ended):
            self._ended = event
            self._tell(self._told.push(event.text))
        else:
            self._clock.read()

    def _tell_begun(self) -> None:
        for type in ("response.created", "response.in_progress"):
            self._tell([{"type": type, "response": self.answer.body("in_progress")}])

    def _mark(self, event: Marked) -> None:
        """A state worth keeping; the store is not waited for."""
        if self.store:
            put = run_in_threadpool(self._reply.passed, event.at, Point(event.logits, event.state))
            self._puts.append(asyncio.ensure_future(put))

    def _wrote(self, event: Wrote) -> None:
        note = self.answer.note
        self._clock.wrote()
        if not note.written:
            self._first = time.monotonic()
        note.written += 1
        self._tell(self._told.push(event.text))
        note.thoughts += self._told.thinking
        if event.delta is not None:
            seconds = max(time.monotonic() - self._first, 1e-6)
            moved = {"layers": event.delta, "tokens": note.written, "tokens_per_second": (note.written - 1) / seconds}
            self._tell([{"type": "rookery.state_delta", **moved}])

    async def _keep(self) -> None:
        """Become a turn, and say so."""
        ended, note = self._ended, self.answer.note
        assert ended is not None
        assert ended.draft is not None
        stop = ended.draft.stop_reason or "end"
        self._tell(self._told.end(stop))
        note.ended = int(time.time())
        await asyncio.gather(*self._puts, return_exceptions=True)  # of the cache: nothing is lost without
        if self.store:
            self._reply.note.update(asdict(note))
            await run_in_threadpool(self._reply.close, stop, ended.draft, ended.point)
        self._clock.ended(stop)
        self._record(ended, stop)
        self._end(stop)

    def _record(self, ended: Ended, stop: str) -> None:
        records, sampling = self._service.records, self._session.sampling
        if not records.on:
            return
        assert ended.draft is not None
        assert self._reading is not None
        records.write(
            request=self._request_id,
            route="/v1/responses",
            owner=self.owner,
            model=self._session.model.weights.fingerprint,
            sampling=sampling.plain() | {"seed": ended.draft.sampler.seed},
            entered={"tokens": [*map(int, self._reading.tokens)], "cached": self.answer.note.cached},
            changed={
                "before": self.answer.note.asked["previous_response_id"],
                "after": self.answer.id if self.store else None,
                "delta": self._delta(ended),
            },
            left={"tokens": ended.draft.tokens, "stop_reason": stop},
        )

    def _delta(self, ended: Ended) -> list[float] | None:
        if self._reading is None or ended.point is None:
            return None
        moved: list[float] = ended.point[1].delta_by_layer(self._reading.point.state).tolist()
        return moved

    def _end(self, stop: str) -> None:
        self.status = STATUS[stop]
        last = LAST.get(self.status, "response.incomplete")
        self._tell([{"type": last, "response": self.answer.body(self.status)}])

    def _tell(self, events: list[Event]) -> None:
        for event in events if self.streamed else ():
            self._events.put_nowait(event)


def _told_of(error: Exception) -> dict[str, Any]:
    """What a failed response says of its error, in the codes that the client knows."""
    known = as_api(error) or ApiError(500, "a fault of the server; its log has more under this request's id")
    return {"code": "server_error" if known.status >= 500 else "invalid_prompt", "message": known.message}
