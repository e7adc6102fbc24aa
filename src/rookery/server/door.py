"""What comes in: from whom, to which host, how much and how fast; JSON that is none is refused before any route.

A body is read whole here, once its sender is known, and handed on in one piece.
"""

from __future__ import annotations

import asyncio
import json
import re
from ipaddress import ip_address
from typing import Any, Never
from urllib.parse import SplitResult, urlsplit

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rookery.server.errors import ApiError, answer
from rookery.server.keys import refused
from rookery.server.service import Life
from rookery.server.settings import Settings

CLOSE = {"Connection": "close"}
SOON = {"Retry-After": "2"}
SIGNS = (b",", b'"', b"[", b"{")
HERE = 1 << 16  # bytes of JSON that are checked without a thread

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Door:
    """An ASGI middleware. `scope["state"]["caller"]` is the keys.Caller, or None, from here on."""

    def __init__(self, app: ASGIApp, life: Life) -> None:
        self.app, self._life, self._settings, self._held = app, life, life.settings, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = b""
        try:
            self._admit(scope)
            body = await self._read(scope, receive)
            await _check_json(Headers(scope=scope), body, self._settings)
        except ApiError as error:
            self._held -= len(body)
            return await answer(error)(scope, receive, send)
        try:
            await self.app(scope, _again(body, receive), send)
        finally:
            self._held -= len(body)

    def _admit(self, scope: Scope) -> None:
        """Raises ApiError for a request that no route should see."""
        headers, limits = Headers(scope=scope), self._settings
        if len(scope["headers"]) > limits.max_headers:
            raise ApiError(431, f"more than {limits.max_headers} headers", headers=CLOSE)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            raise ApiError(431, f"headers of more than {limits.header_bytes} bytes", headers=CLOSE)
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > limits.target_bytes:
            raise ApiError(414, f"an address of more than {limits.target_bytes} bytes", headers=CLOSE)
        if self._life.keys.open:
            check_host(headers, limits)
            check_origin(headers, limits.cors)
        if self._life.phase != "ready" and not scope["path"].startswith("/health"):
            raise ApiError(503, f"the server is {self._life.phase}", code=self._life.phase, headers=SOON)
        scope["state"]["caller"] = self._life.keys.caller(headers)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The body, counted among those held. Raises ApiError, ClientDisconnect."""
        headers, limits = Headers(scope=scope), self._settings
        announced = headers.get("content-length", "0")
        if announced == "0" and "transfer-encoding" not in headers:
            return b""
        if scope["state"]["caller"] is None:
            raise refused(CLOSE)  # nothing is read from a stranger
        if int(announced) > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    self._take(body, message.get("body", b""))
                    if not message.get("more_body", False):
                        return bytes(body)
        except BaseException as error:
            self._held -= len(body)
            if isinstance(error, TimeoutError):
                message_text = f"the body took more than {limits.body_seconds:g} s"
                raise ApiError(408, message_text, code="request_timeout", headers=CLOSE) from None
            raise

    def _take(self, body: bytearray, piece: bytes) -> None:
        if len(body) + len(piece) > self._settings.body_bytes:
            raise _too_large(self._settings.body_bytes)
        if self._held + len(piece) > self._settings.bodies_bytes:
            raise ApiError(503, "too many large requests at once", headers=SOON | CLOSE)
        body += piece
        self._held += len(piece)


def check_host(headers: Headers, settings: Settings) -> None:
    """Where no key is asked for, a name must not have been made to point at this machine (DNS rebinding)."""
    if "host" not in headers:
        return  # no browser
    host = _split(f"//{headers['host']}").hostname or ""
    if not settings.loopback or host in ("localhost", settings.host) or host.endswith(".localhost") or _is_ip(host):
        return
    message = f"this server is for {settings.host} and asks for no key, so the host {host[:100]!r} is refused"
    raise ApiError(403, f"{message}; start it with --api-key-file to serve under other names", code="host_not_allowed")


def check_origin(headers: Headers, allowed: tuple[str, ...]) -> None:
    """Where no key is asked for, a page of another site must not use the server behind its reader's back."""
    origin = headers.get("origin")
    if origin is None or origin in allowed or _split(origin).netloc == headers.get("host"):
        return
    raise ApiError(403, f"pages of {origin[:100]!r} may not call; allow them with --cors", code="origin_not_allowed")


def _split(address: str) -> SplitResult:
    """Its parts; of what is no address none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes", headers=CLOSE)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body that was read already."""
    given = False

    async def first_the_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first_the_body


async def _check_json(headers: Headers, body: bytes, limits: Settings) -> None:
    if body and "json" in headers.get("content-type", "").lower():
        if sum(map(body.count, SIGNS)) > limits.json_signs:  # a list of lists takes thirty times its bytes
            raise ApiError(413, f"the body has more than {limits.json_signs} commas, quotes and brackets")
        if len(body) <= HERE:
            check_json(body, limits.json_depth)
        else:
            await run_in_threadpool(check_json, body, limits.json_depth)


def check_json(body: bytes, depth: int) -> None:
    """Raises ApiError 400 for what is no JSON, is nested too deeply, has a name twice or no finite number."""
    try:
        text = body.decode()
        if nesting(body) > depth:
            raise ValueError(f"it is nested more than {depth} deep")
        parsed = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
        if _SURROGATE.search(body):
            json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is no UTF-8 from byte {error.start} on", code="invalid_json") from None
    except UnicodeEncodeError:
        raise ApiError(400, "the body has half of a surrogate pair", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is no JSON: {error.msg} at {error.pos}", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ApiError(400, f"the body is no JSON we take: {reason[:200]}", code="invalid_json") from None


def nesting(body: bytes) -> int:
    """How deep its brackets go, found without recursion."""
    brackets = np.frombuffer(_STRING.sub(b"", body).translate(None, _NOT_BRACKETS), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int8(1), np.int8(-1))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _no_number(name: str) -> Never:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a name twice")
    return made
