"""Streams: frames, pings, and what ends one; run against the ASGI interface itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from serving import Here, wait_for
from starlette.requests import ClientDisconnect, Request

from rookery.errors import InputError
from rookery.server import protocol
from rookery.server.sse import AHEAD, PING, EventStream, frame, while_connected


class Client:
    """The other side of one request: what it was sent; it leaves when told, and takes nothing while it `sleeps`."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone, self.awake = asyncio.Event(), asyncio.Event()
        self.awake.set()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.awake.wait()
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    async def take(self, stream: EventStream) -> None:
        await stream({"type": "http"}, self.receive, self.send)  # type: ignore[arg-type]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


class Events:
    """An async generator of pieces that tells whether it was closed."""

    def __init__(self, *pieces: bytes, then: Exception | None = None, forever: bool = False) -> None:
        self.pieces, self.then, self.forever = pieces, then, forever
        self.go_on = asyncio.Event()  # to what comes `then`
        self.made, self.closed = 0, False

    async def __call__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                self.made += 1
                yield piece
            if self.then is not None:
                await self.go_on.wait()
                raise self.then
            while self.forever:
                await asyncio.sleep(3600)
        finally:
            self.closed = True


def test_frames() -> None:
    assert frame({"a": "é\n\u2028"}) == 'data: {"a":"é\\n\u2028"}\n\n'.encode()
    assert frame([], "done") == b"event: done\ndata: []\n\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        frame({"a": float("nan")})


def test_events_that_are_ready_go_together_and_in_order() -> None:
    async def test() -> None:
        events, client = Events(b"1", b"2", b"3"), Client()
        await client.take(EventStream(events()))
        assert b"".join(client.bodies) == b"123"
        assert len(client.sent) == 2  # the head, then all of it
        assert client.sent[-1]["more_body"] is False
        headers = dict(client.sent[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[b"cache-control"] == b"no-cache"
        assert b"content-length" not in headers

    run(test)


def test_an_event_is_not_held_back_for_the_next() -> None:
    async def test() -> None:
        go_on = asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"1"
            await go_on.wait()
            yield b"2"

        client = Client()
        work = asyncio.create_task(client.take(EventStream(events())))
        while client.bodies != [b"1"]:
            await asyncio.sleep(0)
        go_on.set()
        await work
        assert client.bodies == [b"1", b"2"]

    run(test)


def test_a_silent_stream_is_pinged_and_a_busy_one_is_not() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.35)
        yield b"1"

    async def busy() -> AsyncIterator[bytes]:
        for _ in range(10):
            await asyncio.sleep(0.02)
            yield b"1"

    async def test() -> None:
        client = Client()
        await client.take(EventStream(silent(), ping=0.1))
        assert client.bodies[0] == PING
        assert client.bodies[-1] == b"1"
        client = Client()
        await client.take(EventStream(busy(), ping=5.0))
        assert PING not in client.bodies

    run(test)


def test_the_client_gone_ends_the_work() -> None:
    async def test() -> None:
        events, client = Events(b"1", forever=True), Client()
        work = asyncio.create_task(client.take(EventStream(events())))
        while not client.bodies:
            await asyncio.sleep(0)
        client.gone.set()
        with pytest.raises(ClientDisconnect):
            await work
        assert events.closed

    run(test)


def test_a_reader_that_takes_nothing_is_dropped_and_little_is_made_for_it() -> None:
    async def test() -> None:
        events, client = Events(*[bytes(1000)] * 1000), Client()
        client.awake.clear()
        stream = EventStream(events(), stuck=0.2)

        async def start(message: Any) -> None:
            if message["type"] != "http.response.start":
                await client.send(message)

        with pytest.raises(ClientDisconnect):
            await stream({"type": "http"}, client.receive, start)  # type: ignore[arg-type]
        assert events.closed
        assert events.made * 1000 <= 2 * AHEAD + 2000

    run(test)


@pytest.mark.parametrize("pieces", [[], [b"1"]])
def test_an_error_before_anything_was_sent_is_an_ordinary_answer(pieces: list[bytes]) -> None:
    async def test() -> None:
        events, client = Events(*pieces, then=InputError("no")), Client()
        events.go_on.set()
        with pytest.raises(InputError):
            await client.take(EventStream(events()))
        assert client.sent == []
        assert events.closed

    run(test)


@pytest.mark.parametrize(
    ("error", "message"),
    [(InputError("no such thing"), "no such thing"), (KeyError("SECRET"), "a fault of the server")],
)
def test_a_later_error_is_the_last_frame(error: Exception, message: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        events, client = Events(b"data: 1\n\n", then=error), Client()
        work = asyncio.create_task(client.take(EventStream(events())))
        while not client.bodies:
            await asyncio.sleep(0)
        events.go_on.set()
        await work
        last = b"".join(client.bodies).removeprefix(b"data: 1\n\ndata: ")
        assert message in json.loads(last)["error"]["message"]
        assert client.sent[-1]["more_body"] is False

    run(test)
    assert "SECRET" not in caplog.text


def test_a_stream_that_is_cut_off_says_so() -> None:
    async def test() -> None:
        events, client = Events(b"1", forever=True), Client()
        work = asyncio.create_task(client.take(EventStream(events())))
        while not client.bodies:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert b"going down" in client.bodies[-1]
        assert client.sent[-1]["more_body"] is False
        assert events.closed

    run(test)


def test_work_goes_on_while_its_client_is_there() -> None:
    async def test() -> None:
        client = Client()
        request = Request({"type": "http"}, client.receive)  # type: ignore[arg-type]

        async def work() -> int:
            await asyncio.sleep(0.01)
            return 5

        assert await while_connected(request, work()) == 5

        async def fails() -> None:
            raise InputError("no")

        with pytest.raises(InputError):
            await while_connected(request, fails())

    run(test)


def test_work_ends_with_its_client() -> None:
    async def test() -> None:
        client, cancelled = Client(), asyncio.Event()
        request = Request({"type": "http"}, client.receive)  # type: ignore[arg-type]

        async def work() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.set()

        task = asyncio.create_task(while_connected(request, work()))
        await asyncio.sleep(0.01)
        client.gone.set()
        with pytest.raises(ClientDisconnect):
            await task
        assert cancelled.is_set()

    run(test)


def test_a_reader_that_sleeps_gives_its_place_back(
    serving: Callable[..., Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "FLUSH", 0.5)
    here = serving(stuck_seconds=0.5)
    host, port = here.url.removeprefix("http://").split(":")
    body = json.dumps(
        {"prompt": "a", "max_tokens": 1_000_000, "stream": True, "logit_bias": {"0": -100}, "logprobs": 20}
    )
    with socket.socket() as sleeper:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        sleeper.connect((host, int(port)))
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sleeper.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: here.service.engine.stats()["running"] == 1)
        wait_for(lambda: here.service.engine.stats()["running"] == 0)
        wait_for(lambda: not here.server.server_state.connections)
