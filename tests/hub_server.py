"""A hub on 127.0.0.1: the four routes that a pull needs, and the ways in which a real one fails."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` of the one repository org/name; the rest says what goes wrong."""

    files: dict[str, bytes]
    url: str = ""
    large: frozenset[str] = frozenset()  # stored as large files, with a SHA-256
    wrong: dict[str, bytes] = field(default_factory=dict)  # bytes sent instead
    broken: dict[str, int] = field(default_factory=dict)  # after how many bytes the connection breaks, each time
    status: int = 200
    commit: str = COMMIT
    etags: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def etag(self, name: str) -> str:
        data = self.files[name]
        if name in self.etags:
            return self.etags[name]
        if name in self.large:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def downloads(self) -> list[tuple[str, str]]:
        """(file, Range) of each GET of a file."""
        return [
            (path.rsplit("/", 1)[1], range)
            for method, path, range in self.asked
            if method == "GET" and "/api/" not in path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        hub = self.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range", "")))
        if hub.status != 200:
            code = {403: {"X_Error_Code": "GatedRepo"}}.get(hub.status, {})
            return self._answer(hub.status, b"", **code)
        if found := re.fullmatch(r"/api/models/org/name(?:/revision/([^/?]+))?(?:\?.*)?", self.path):
            if found[1] not in (None, "main", "v1", hub.commit):
                return self._answer(404, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": name} for name in hub.files]
            body = {
                "id": "org/name",
                "sha": hub.commit,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            return self._answer(200, json.dumps(body).encode(), Content_Type="application/json")
        if found := re.fullmatch(rf"/org/name/resolve/{hub.commit}/(.+)", self.path):
            return self._file(found[1])
        return self._answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def _file(self, name: str) -> None:
        hub, data = self.hub, self.hub.files[name]
        headers = {"X_Repo_Commit": hub.commit, "ETag": f'"{hub.etag(name)}"', "Accept_Ranges": "bytes"}
        if name in hub.large:
            headers |= {"X_Linked_Etag": f'"{hub.etag(name)}"', "X_Linked_Size": str(len(data)), "ETag": '"weak"'}
        if self.command == "HEAD":
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            return
        data = hub.wrong.get(name, data)
        start = 0
        if hub.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(asked[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        if name in hub.broken:
            self.wfile.write(rest[: hub.broken[name]])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(rest)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """`hub`, reachable at its `url` inside the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
