"""JSON over HTTP to a server that may be slow, busy, restarted or hostile. Safe to use from several threads."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import weakref
from typing import Any
from urllib.parse import urlsplit

from rookery.errors import BackendError, InputError

TIMEOUT = 3600.0  # seconds for one answer: long texts, side by side, on a small machine
PATIENCE = 600.0  # seconds of waiting for a busy server
TRIES, PAUSE = 5, 0.2  # of a connection that fails, seconds before the second; doubled each time
LONGEST_PAUSE = 60.0
MOST_BYTES = 256 << 20  # of an answer: a million log-probabilities have half of that
BUSY = (429, 502, 503, 504)
KEY = "ROOKERY_API_KEY"  # the environment variable with the key, where none is given


class Client:
    """`url`: http(s)://HOST[:PORT][/BASE], of which a last /v1 is left out. Raises InputError for any other.

    `key`: default what ROOKERY_API_KEY holds.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = TIMEOUT, patience: float = PATIENCE) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.username:
            raise InputError(f"{url[:200]!r}: wanted a server's address, such as http://127.0.0.1:8000")
        key = os.environ.get(KEY) if key is None else key
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError("the key for the server has signs that no key has; give it without line ends")
        self.url, self._timeout, self._patience = url.rstrip("/").removesuffix("/v1"), timeout, patience
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._idle: list[http.client.HTTPConnection] = []
        weakref.finalize(self, _close, self._idle)

    def get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send `body`, again if that fails, for nothing that is asked here changes anything. Raises InputError for
        what the server refuses, BackendError where no answer comes, or none that can be read.
        """
        return self._answer("POST", path, json.dumps(body).encode())

    def _answer(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        failed, waited = 0, 0.0
        while True:
            try:
                status, headers, data = self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                failed += 1
                if failed == TRIES or isinstance(error, ssl.SSLCertVerificationError | TimeoutError):
                    said = " ".join(str(error).split()) or type(error).__name__
                    raise BackendError(f"{self.url}: no answer ({said[:200]}); is the server running?") from None
                time.sleep(PAUSE * 2 ** (failed - 1))
                continue
            if status not in BUSY:
                return self._read(status, path, data)
            pause = _retry_after(headers.get("Retry-After"))
            waited += pause
            if waited > self._patience:
                raise BackendError(f"{self.url}: is busy ({status}) for {self._patience:g} s; try again later")
            time.sleep(pause)

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, http.client.HTTPMessage, bytes]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = self._idle.pop() if self._idle else kind(self._host, self._port, timeout=self._timeout)
        try:
            headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
            connection.request(method, self._base + path, body, headers)
            response = connection.getresponse()
            data = self._all(response, path)
        except BaseException:
            connection.close()
            raise
        response.close()
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return response.status, response.headers, data

    def _all(self, response: http.client.HTTPResponse, path: str) -> bytes:
        end = time.monotonic() + self._timeout
        pieces, size = [], 0
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise BackendError(f"{self.url}{path}: answers with more than {MOST_BYTES} bytes; not read further")
            if time.monotonic() > end:
                raise TimeoutError(f"not complete after {self._timeout:g} s")
        return b"".join(pieces)

    def _read(self, status: int, path: str, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError):
            answer = None
        if status in (401, 403):
            raise InputError(f"{self.url}: wants a key that may do this ({status}): {_said(answer)}; set {KEY}")
        if 400 <= status < 500:
            raise InputError(f"{self.url}{path}: the server refuses ({status}): {_said(answer)}")
        if status != 200:
            raise BackendError(f"{self.url}{path}: the server fails ({status}): {_said(answer)}")
        if not isinstance(answer, dict):
            raise BackendError(f"{self.url}{path}: answers with what is no JSON object; is it an API server?")
        return answer


def _close(connections: list[http.client.HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _retry_after(told: str | None) -> float:
    """Seconds to wait; a date, which is the header's other form, is taken for one second."""
    seconds = int(told) if told and told.isascii() and told.isdigit() and len(told) < 6 else 1
    return min(LONGEST_PAUSE, max(0.05, float(seconds)))


def _said(answer: Any) -> str:
    """The message of an error in OpenAI's shape, on one line."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = " ".join(message.split()) if isinstance(message, str) else ""
    return "".join(sign for sign in text if sign.isprintable())[:300] or "it does not say why"
