"""An opt-in record of every generation: STORE/records.jsonl, a JSON object a line, the only place where a server
writes down what its users say.

A route that has finished one calls, if `service.records.on`,

    service.records.write(
        request="req_...", route="/v1/responses", owner=caller.owner, model=fingerprint, sampling={...},
        entered={"tokens": [ids that were read], "cached": how many before them came from a cache},
        changed={"before": state id or None, "after": state id or None, "delta": [per layer, L2 over sqrt(n)]},
        left={"tokens": [ids], "stop_reason": "stop"},
    )

The time is added, and of the owner only a beginning is kept. A thread writes; nobody waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from contextlib import suppress
from typing import Any

NAME = "records.jsonl"
ROTATE = 64 << 20  # bytes of one file
FILES = 5  # older ones: records.1.jsonl is the newest of them
WAITING = 10_000  # lines

log = logging.getLogger("rookery.server")


class Records:
    """Records of one server in `folder`; None: none are kept."""

    def __init__(self, folder: str | None, rotate: int = ROTATE) -> None:
        self.written = self.lost = 0  # lines; lost: those that could not be written
        self._folder, self._rotate = folder, rotate
        self._lines: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        if folder is not None:
            self._thread = threading.Thread(target=self._run, name="records", daemon=True)
            self._thread.start()

    @property
    def on(self) -> bool:
        return self._thread is not None

    def write(self, **fields: Any) -> None:
        """Keep one record. Never raises or waits: what cannot be kept is counted in `lost` and said once."""
        if not self.on:
            return
        if "owner" in fields:
            fields["owner"] = str(fields["owner"])[:8]
        try:
            self._lines.put_nowait(_line({"time": round(time.time(), 3), **fields}))
        except (TypeError, ValueError, queue.Full) as error:
            self._lose(error)

    def stats(self) -> dict[str, int]:
        """written and lost since the start."""
        return {"written": self.written, "lost": self.lost}

    def close(self) -> None:
        """Write what is waiting."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(10)
            self._thread = None

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._append(line)
                self.written += 1
            except OSError as error:
                self._lose(error)

    def _append(self, line: bytes) -> None:
        """In one write, so that a line is there as a whole or not at all."""
        path = self._path(0)
        with suppress(FileNotFoundError):
            if os.path.getsize(path) + len(line) > self._rotate:
                self._turn()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, line) < len(line):
                os.ftruncate(handle, size)
                raise OSError("the disk is full")
        finally:
            os.close(handle)

    def _turn(self) -> None:
        for n in range(FILES - 1, -1, -1):
            with suppress(FileNotFoundError):
                os.replace(self._path(n), self._path(n + 1))

    def _path(self, n: int) -> str:
        assert self._folder is not None
        return os.path.join(self._folder, NAME if n == 0 else f"records.{n}.jsonl")

    def _lose(self, error: Exception) -> None:
        self.lost += 1
        if self.lost == 1:
            log.warning("a record could not be written (%s); lost ones are counted", type(error).__name__)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode() + b"\n"
