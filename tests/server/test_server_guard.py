"""What comes in: bodies, JSON, headers, hosts, slow and broken clients; and that a fault says nothing of its cause."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Body
from serving import Here, wait_for

from rookery.server.door import check_json, nesting
from rookery.server.errors import ApiError, ErrorBody

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def echo(tiny_v7: Any) -> Iterator[Here]:
    """A server with /echo, /fault and /late besides, and small limits."""
    with Here(tiny_v7, body_bytes=1 << 20, bodies_bytes=3 << 20, body_seconds=0.5, header_seconds=0.5) as here:
        add_routes(here)
        yield here


def add_routes(here: Here) -> None:
    app: Any = here.server.config.app

    @app.post("/echo")
    async def echo(body: Any = Body(None)) -> Any:  # noqa: B008
        return body

    @app.get("/fault")
    async def fault() -> None:
        raise ZeroDivisionError("SECRET")


def error_of(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    return ErrorBody.model_validate(answer.json(), strict=True).error


def raw(here: Here, *pieces: bytes, pause: float = 0.0, whole: bool = True) -> bytes:
    """What a socket answers to these bytes until it is closed, or (not `whole`) at once."""
    host, port = here.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
            if not whole:
                break
        return answer


def status_of(answer: bytes) -> int:
    """Of a raw answer, which has an error in its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    ErrorBody.model_validate_json(body, strict=True)
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1])


# JSON

BAD = {
    "nothing but a brace": b"{",
    "two values": b"{} {}",
    "NaN": b'{"a": NaN}',
    "-Infinity": b'{"a": [-Infinity]}',
    "a number beyond float": b'{"a": 1e999}',
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a name twice": b'{"a": 1, "a": 2}',
    "65 arrays": b"[" * 65 + b"]" * 65,
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "unclosed and deep": b"[" * 200_000,
    "invalid UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "half of one as a name": b'{"\\uDFFF": 1}',
    "a control character": b'{"a": "\x00"}',
    "text": b"hello",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_what_is_no_json_is_400(echo: Here, body: bytes) -> None:
    with echo.client() as client:
        error = error_of(client.post("/echo", content=body, headers=JSON), 400)
    assert error.code == "invalid_json"


GOOD = [
    {"a": [1, 2.5, -3e10, None, True, "é\U0001f600", {"b": {}}]},
    json.loads("[" * 64 + "]" * 64),
    {"brackets": "[" * 1000 + '\\"{' * 100},
    {"a": "x" * 200_000},  # checked in a thread
]


@pytest.mark.parametrize("value", GOOD, ids=range(len(GOOD)))
@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_comes_in_as_it_is(echo: Here, value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with echo.client() as client:
        answer = client.post("/echo", content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    assert answer.json() == value


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("1", 0),
        ("[]", 1),
        ('{"a": [[]]}', 3),
        ('"[[["', 0),
        ('["\\"[[["]', 1),
        ('["\\\\", [[]]]', 3),
        ("[[],[]]", 2),
    ],
)
def test_nesting(text: str, depth: int) -> None:
    assert nesting(text.encode()) == depth


def test_a_large_flat_body_is_checked_without_recursion_or_quadratic_time() -> None:
    check_json(b"[" + b'"\\"",' * 200_000 + b"1]", 64)
    with pytest.raises(ApiError):
        check_json(b'"' + b"\\" * 400_001, 64)


@pytest.mark.parametrize("piece", [b"[],", b'"",', b"1,", b'{"":', b'""'])
def test_what_would_grow_in_memory_is_refused_unread(tiny_v7: Any, piece: bytes) -> None:
    with Here(tiny_v7, json_signs=1000) as here, here.client() as client:
        add_routes(here)
        body = b"[" + piece * 1000
        assert error_of(client.post("/echo", content=body, headers=JSON), 413).code == "request_too_large"
        assert client.post("/echo", content=b"[" + b"1," * 998 + b"1]", headers=JSON).status_code == 200


@pytest.mark.parametrize("kind", ["application/JSON", "Application/vnd.any+Json"])
def test_the_case_of_its_content_type_does_not_matter(echo: Here, kind: str) -> None:
    with echo.client() as client:
        error = error_of(client.post("/echo", content=b'{"a": 1, "a": 2}', headers={"content-type": kind}), 400)
    assert error.code == "invalid_json"


def test_json_without_its_content_type_is_no_json(echo: Here) -> None:
    """A page of another site can send text/plain without being asked about its origin."""
    with echo.client() as client:
        answer = client.post("/echo", content=b'{"a": 1}', headers={"content-type": "text/plain"})
    assert answer.status_code != 200 or answer.json() != {"a": 1}


# bodies


def test_an_announced_body_that_is_too_large_is_413_before_it_is_sent(echo: Here) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1073741824\r\n\r\n"
    assert status_of(raw(echo, head)) == 413


def test_a_refused_client_may_send_on_for_a_while_and_then_read_why(echo: Here) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1073741824\r\n\r\n"
    assert status_of(raw(echo, head, *[b"a" * 1000] * 3, pause=0.1)) == 413


def test_of_a_gigabyte_in_chunks_little_is_read(echo: Here) -> None:
    sent = 0

    def gigabyte() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1024):
            sent += 1 << 20
            yield bytes(1 << 20)

    with echo.client() as client:
        answer = client.post("/echo", content=gigabyte())
    assert error_of(answer, 413).code == "request_too_large"
    assert sent < 64 << 20  # what socket buffers swallowed is among it


def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_not(echo: Here) -> None:
    with echo.client() as client:
        for size, status in ((1 << 20, 200), ((1 << 20) + 1, 413)):
            body = b'"' + b"a" * (size - 2) + b'"'
            assert client.post("/echo", content=body, headers=JSON).status_code == status
            assert client.post("/echo", content=iter([body]), headers=JSON).status_code == status


def test_many_bodies_together_are_bounded(tiny_v7: Any) -> None:
    with Here(tiny_v7, body_bytes=1 << 20, bodies_bytes=1 << 10) as here, here.client() as client:
        add_routes(here)
        for _ in range(3):  # what was held is let go
            assert client.post("/echo", content=b'"' + b"a" * 1000 + b'"', headers=JSON).status_code == 200
            answer = client.post("/echo", content=slowly(b'"' + b"a" * 600, b"a" * 600 + b'"'), headers=JSON)
            assert error_of(answer, 503)
            assert answer.headers["retry-after"]


def slowly(*pieces: bytes) -> Iterator[bytes]:
    """Far enough apart to come one by one."""
    for piece in pieces:
        yield piece
        time.sleep(0.05)


def test_a_body_that_trickles_in_is_408(echo: Here) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
    assert status_of(raw(echo, head, b"a")) == 408


def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_nothing_behind(echo: Here) -> None:
    host, port = echo.url.removeprefix("http://").split(":")
    before = requests(echo, "499")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc")
    wait_for(lambda: requests(echo, "499") > before)
    assert echo.life.metrics.registry.get_sample_value("rookery_requests_in_flight") == 0


def requests(here: Here, status: str) -> float:
    samples = [s for metric in here.life.metrics.registry.collect() for s in metric.samples]
    return sum(s.value for s in samples if s.name == "rookery_requests_total" and s.labels["status"] == status)


# headers


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTPP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\na: \x00\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n", 400),  # TLS
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
        (b"GET /?" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
    ],
)
def test_broken_http_is_answered_in_the_same_shape(echo: Here, request_bytes: bytes, status: int) -> None:
    assert status_of(raw(echo, request_bytes)) == status
    with echo.client() as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"OPTIONS *", 404), (b"GET http://evil.example/health", 404), (b"CONNECT a:1", 404), (b"GET health", 404),
        (b"GET /%00", 404), (b"GET /%ff%fe", 404), (b"GET //etc/passwd", 404), (b"GET /..%2f..%2fetc/passwd", 404),
        (b"GET /v1/models/%00", 404), (b"GET /v1/models/..%2f..", 404), (b"GET /v1/states/%ff", 404),
        (b"GET /health/../metrics", 404), (b"PATCH /v1/models", 405), (b"GET /v1/states?after=%00", 404),
        (b"GET /v1/states?limit=" + b"9" * 30, 400), (b"GET /v1/states?limit=NaN", 400),
    ],
)  # fmt: skip
def test_odd_addresses_are_refused_and_no_fault(echo: Here, target: bytes, status: int) -> None:
    assert status_of(raw(echo, target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")) == status


def test_headers_that_trickle_in_are_408_and_silence_is_silence(echo: Here) -> None:
    assert status_of(raw(echo, b"GET /health HTTP/1.1\r\n", b"host: ", pause=0.1)) == 408
    assert raw(echo) == b""


def test_headers_of_a_second_request_have_a_limit_too(echo: Here) -> None:
    first = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = raw(echo, first, b"GET /health HT", pause=0.1)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert status_of(answer[answer.index(b"HTTP/1.1 408") :]) == 408


def test_http_1_0_needs_no_host(echo: Here) -> None:
    assert raw(echo, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(echo: Here) -> None:
    each = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-request-id: %d\r\n%s\r\n"
    answer = raw(echo, each % (1, b"") + each % (2, b"") + each % (3, b"connection: close\r\n"))
    assert re.findall(rb"x-request-id: (\d)", answer) == [b"1", b"2", b"3"]


def test_more_connections_than_allowed_are_told_to_come_again(tiny_v7: Any) -> None:
    with Here(tiny_v7, connections=3) as here:
        host, port = here.url.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port))) for _ in range(3)]
        answer = raw(here, b"")
        assert status_of(answer) == 503
        assert b"retry-after" in answer.lower()
        for each in held:
            each.close()
        wait_for(lambda: not here.server.server_state.connections)
        with here.client() as client:
            assert client.get("/health").status_code == 200


# who may ask


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200), ("10.0.0.1", 200),
        ("evil.example", 403), ("evil.example:8000", 403), ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[", 403), ("localhost@evil.example", 403),
    ],
)  # fmt: skip
def test_a_name_made_to_point_here_is_refused(echo: Here, host: str, status: int) -> None:
    with echo.client() as client:
        answer = client.get("/openapi.json", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert error_of(answer, 403).code == "host_not_allowed"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200), ("http://evil.example", 403), ("null", 403), ("http://localhost:9", 403),
        ("https://page.example", 200), ("http://page.example", 403), ("http://[", 403),
    ],
)  # fmt: skip
def test_a_page_of_another_site_is_refused(serving: Callable[..., Here], origin: str, status: int) -> None:
    here = serving(cors=("https://page.example",))
    with here.client() as client:
        answer = client.get("/openapi.json", headers={"host": "localhost:8000", "origin": origin})
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == ("https://page.example" if origin == "https://page.example" else None)


def test_no_page_is_allowed_unless_it_is_named(echo: Here) -> None:
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with echo.client() as client:
        answer = client.options("/echo", headers=preflight)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_named_page_may_ask_first(serving: Callable[..., Here]) -> None:
    preflight = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with serving(cors=("https://page.example",)).client() as client:
        answer = client.options("/echo", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "x-request-id" in answer.headers
        answer = client.options("/echo", headers=preflight | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in answer.headers


# ids, faults, the log


@pytest.mark.parametrize("given", ["abc", "a" * 128, "req_1.2:3-4"])
def test_a_clients_request_id_comes_back(echo: Here, given: str) -> None:
    with echo.client() as client:
        for path in ("/health", "/nothing", "/fault"):
            assert client.get(path, headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "é", "a;b", "<script>"])
def test_one_that_is_none_does_not(echo: Here, given: str) -> None:
    with echo.client() as client:
        headers = {"x-request-id": given.encode()}
        ids = [client.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(re.fullmatch("req_[0-9a-f]{32}", each) for each in ids)


def test_a_fault_is_logged_and_says_nothing_of_its_cause(echo: Here, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rookery.server"), echo.client() as client:
        answer = client.get("/fault", headers={"x-request-id": "the-id"})
        error = error_of(answer, 500)
    assert "SECRET" not in answer.text
    assert "ZeroDivision" not in answer.text
    assert error.type == "server_error"
    assert "the-id failed: ZeroDivisionError" in caplog.text
    assert "in fault" in caplog.text  # where it was
    assert "SECRET" not in caplog.text  # its words may be a user's


def test_the_log_has_a_line_a_request_and_no_content(echo: Here, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:  # the line of another test's last request may come this late
        said = [record.getMessage() for record in caplog.records if record.name == "rookery.server"]
        return [line for line in said if "the-id" not in line]

    with caplog.at_level(logging.DEBUG, "rookery.server"), echo.client() as client:
        headers = {"authorization": "Bearer SECRET", "x-request-id": "1"}
        client.post("/echo?key=SECRET", json={"a": "SECRET"}, headers=headers)
        client.get("/a%0Ab")
        wait_for(lambda: len(lines()) >= 2)  # a line is written after its answer: it is still to come here
    assert len(lines()) == 2
    assert re.fullmatch(r"POST /echo 200 \d+\.\d ms 1", lines()[0])
    assert "SECRET" not in caplog.text
    assert re.fullmatch(r"GET /a%0Ab 404 \d+\.\d ms req_\w+", lines()[1])
