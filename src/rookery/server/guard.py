"""Around everything: a request's id, one line in the log, its counts, and what a fault in a handler becomes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rookery.server.errors import answer, gone, places
from rookery.server.metrics import Metrics

GONE = 499  # in log and metrics: the client went away before its answer
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
QUIET = ("/health", "/metrics")  # asked every second by machines

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

log = logging.getLogger("rookery.server")


class Guard:
    """The outermost ASGI middleware. `scope["state"]["request_id"]` is the id from here on."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        name = request_id(scope)
        scope.setdefault("state", {})["request_id"] = name
        begin, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the time to finish is over
            if not status:
                await answer(gone())(scope, receive, send_with_id)
            raise
        except ClientDisconnect:
            status = GONE
        except Exception as error:
            log.error("%s failed: %s\n%s", name, type(error).__name__, places(error))
            if status:
                raise  # in the middle of an answer: only a broken connection can say so
            await answer(error)(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, status or GONE, time.perf_counter() - begin, name)

    def _note(self, scope: Scope, status: int, seconds: float, name: str) -> None:
        route = getattr(scope.get("route"), "path", "none")  # never the path itself: there are endlessly many
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        path = scope.get("raw_path", b"").decode("ascii", "replace").partition("?")[0][:200]
        level = logging.DEBUG if path.startswith(QUIET) else logging.INFO
        log.log(level, "%s %s %d %.1f ms %s", method, path, status, 1000 * seconds, name)


def request_id(scope: Scope) -> str:
    """The id that the client gave, if it is one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
