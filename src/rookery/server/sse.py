"""Server-sent events: frames, and the answer that sends them.

A silent stream is kept alive by comments. It ends, and with it the making of its events, as soon as the client is gone
or has taken nothing for a while.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rookery.server.errors import as_api, body, gone, places

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
AHEAD = 1 << 16  # bytes made before the client has taken any

log = logging.getLogger("rookery.server")
T = TypeVar("T")


def frame(data: Any, event: str | None = None) -> bytes:
    """One event; `data` becomes JSON on one line. Raises ValueError for NaN and Infinity."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """Sends what `events` yields (async generators are closed at the end, whatever ends it).

    An error before anything was sent is answered as any other; a later one is the last frame.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], ping: float = 15.0, stuck: float = 30.0) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # no length: there is no body yet
        self._events, self._ping, self._stuck = events, ping, stuck
        self._made: list[bytes] = []
        self._more, self._taken = asyncio.Event(), asyncio.Event()
        self._error: Exception | None = None
        self._over = self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(self._make()), asyncio.create_task(self._watch(receive))]
        try:
            await self._run(send)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self) -> None:
        """Run ahead of the client, but not far."""
        try:
            async with aclosing(self._events) as events:  # type: ignore[type-var]
                async for piece in events:
                    self._made.append(piece)
                    self._more.set()
                    while sum(map(len, self._made)) > AHEAD:
                        self._taken.clear()
                        await self._taken.wait()
        except Exception as error:
            self._error = error
        self._over = True
        self._more.set()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._more.set()

    async def _run(self, send: Send) -> None:
        started = False
        try:
            while not self._gone:
                piece = await self._next()
                if self._gone or (self._error is not None and not started):
                    break
                if not started:
                    headers = self.raw_headers
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                over = self._over and not self._made
                if over and self._error is not None:
                    piece += self._last_words(self._error)
                await self._send(send, piece, over)
                if over:
                    return
        except TimeoutError:
            log.warning("a reader took nothing for %g s; its stream is ended", self._stuck)
            raise ClientDisconnect from None
        except asyncio.CancelledError:
            if started and not self._gone:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._send(send, frame(body(gone())), True), 1.0)
            raise
        if self._error is not None and not self._gone:
            raise self._error
        raise ClientDisconnect

    async def _next(self) -> bytes:
        """What has been made since, all at once; a comment where that is nothing for a while."""
        try:
            async with asyncio.timeout(self._ping):
                await self._more.wait()
        except TimeoutError:
            return PING
        self._more.clear()
        piece = b"".join(self._made)
        self._made.clear()
        self._taken.set()
        return piece

    async def _send(self, send: Send, piece: bytes, over: bool) -> None:
        async with asyncio.timeout(self._stuck):
            await send({"type": "http.response.body", "body": piece, "more_body": not over})

    @staticmethod
    def _last_words(error: Exception) -> bytes:
        if as_api(error) is None:
            log.error("a stream failed: %s\n%s", type(error).__name__, places(error))
        return frame(body(error))


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
