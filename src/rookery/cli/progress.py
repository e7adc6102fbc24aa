"""What a job that takes more than two seconds says on stderr, and nothing for one that is quicker."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

PATIENCE = 2.0  # seconds of silence first
TERMINAL_EVERY, LOG_EVERY = 0.5, 10.0


class Job:
    """`with Job("reading the prompt") as job: ... job.update(done, total)`.

    On a terminal one line is rewritten and cleared at the end; elsewhere a line is added every ten seconds.
    """

    def __init__(self, what: str, unit: str = "") -> None:
        self._what, self._unit = what, unit
        self._done = self._total = 0
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def update(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def line(self, seconds: float) -> str:
        share = f" {self._done}/{self._total} {self._unit}" if self._total else ""
        return f"rookery: {self._what}{share} ({seconds:.0f} s)"

    def __enter__(self) -> Job:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._finished.set()
        self._thread.join()

    def _watch(self) -> None:
        begin, terminal = time.monotonic(), sys.stderr is not None and sys.stderr.isatty()
        shown, wait = False, PATIENCE
        while not self._finished.wait(wait):
            line = self.line(time.monotonic() - begin)
            print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
            shown, wait = True, TERMINAL_EVERY if terminal else LOG_EVERY
        if shown and terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
