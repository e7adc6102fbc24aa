"""HTTP below the routes: what h11 refuses is answered in OpenAI's shape, headers have a time limit, and a client that
is still sending when it is refused gets to read why.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rookery.server.errors import ApiError, body

LINGER, SPARE = 2.0, 1 << 20  # seconds and bytes for which a refused client may still send before it is cut off
FLUSH = 30.0  # seconds in which a client has to take what is left for it
STATUS = {400: "malformed HTTP", 431: "the headers are too large"}


def protocol(connections: int, header_seconds: float) -> type[asyncio.Protocol]:
    """The class for uvicorn: at most so many `connections`, and so long for a request's headers."""

    class Limited(Protocol):
        most, patience = connections, header_seconds

    return Limited


class Protocol(H11Protocol):
    """One connection."""

    most, patience = 1024, 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = Lingering(transport, self)
        super().connection_made(cast(asyncio.Transport, self._lingering))
        self._headers_due: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            self._refuse(ApiError(503, "too many connections", headers={"Retry-After": "2"}))
        else:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self._lingering.discard(len(data))
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif not self.transport.is_closing():
            self._wait_for_headers()

    @property
    def sending(self) -> bool:
        """Whether the client has more of its request to send."""
        return self.conn.their_state is h11.SEND_BODY

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where h11 has raised for what the client sent."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        status = status if status in STATUS else 400
        self._refuse(ApiError(status, STATUS[status], code="bad_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; where an answer has begun already, only close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = json.dumps(body(error)).encode()
            headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
            answer = h11.Response(status_code=error.status, headers=list((headers | error.headers).items()))
            for event in (answer, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait_for_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(self.patience, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _too_slow(self) -> None:
        self._headers_due = None
        if not self.conn.trailing_data[0]:
            self.transport.close()  # it has begun nothing; an answer might be taken for that to its first request
        elif not self.transport.is_closing():
            self._refuse(ApiError(408, f"no whole request within {self.patience:g} s", code="request_timeout"))


class Lingering:
    """A transport whose `close` waits a little for a client in the middle of sending: closed at once, the connection
    would be reset, and the answer lost with it.
    """

    def __init__(self, transport: asyncio.Transport, owner: Protocol) -> None:
        self._transport, self._owner, self._ending, self._left = transport, owner, False, SPARE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._ending or self._transport.is_closing()

    def close(self) -> None:
        if self._ending:
            return
        self._ending = True
        if self._owner.sending and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
            asyncio.get_running_loop().call_later(LINGER, self._close)
        else:
            self._close()

    def _close(self) -> None:
        self._transport.close()
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH, self._transport.abort)

    def discard(self, count: int) -> None:
        """So many bytes more were sent in vain."""
        self._left -= count
        if self._left < 0:
            self._close()
