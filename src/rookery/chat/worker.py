"""One `sandbox` process, seen from outside: started when first needed, ended when it takes too long, then replaced."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rookery.errors import TemplateError

MEMORY = 512 << 20  # bytes that a template may take
STARTING = 60.0  # seconds for Python and Jinja to load, on a busy machine
MAX_LINE = 64 << 20  # bytes of an answer: sandbox.MAX_TEXT at JSON's longest

_living: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """Renders one template source for any threads, one at a time; `seconds` is the limit for each rendering.

    The process dies with this object, with its owner, and with anything that goes wrong; the next rendering starts
    another. After a fork the child has none and starts its own.
    """

    def __init__(self, source: str, name: str, seconds: float) -> None:
        self._source, self._name, self._seconds = source, name, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Worker] | None = None
        _living.add(self)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises TemplateError for whatever the template does wrong."""
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                text = self._ask({"variables": variables}, self._seconds)
            except _Said as error:
                raise TemplateError(f"{self._name}: {error}") from None
            except BaseException:
                self.stop()  # an answer may be under way
                raise
        return text

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._end:
            self._end()
        self._process = self._end = None

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and pipes open here too would outlive the parent."""
        self._lock = threading.Lock()
        if self._process and self._end:
            self._end.detach()
            self._process.returncode = 0
            _close(self._process)
        self._process = self._end = None

    def _start(self) -> None:
        self.stop()
        program = str(Path(__file__).with_name("sandbox.py"))
        process = subprocess.Popen(  # -I: nothing of the environment or of this folder is imported
            [sys.executable, "-I", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._process, self._end = process, weakref.finalize(self, _kill, process)
        try:
            self._ask({"path": sys.path, "memory": MEMORY, "seconds": self._seconds}, STARTING)
            self._ask({"source": self._source}, self._seconds)
        except _Said:
            self.stop()
            raise

    def _ask(self, request: Mapping[str, Any], seconds: float) -> str:
        """The text of the answer. Raises _Said for an error that the process reports, TemplateError where it ends."""
        process, late = self._process, threading.Event()
        assert process
        assert process.stdin
        assert process.stdout

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            data = memoryview(json.dumps(request).encode() + b"\n")
            while data:
                data = data[process.stdin.write(data) :]
            pipe = io.FileIO(process.stdout.fileno(), closefd=False)
            line = io.BufferedReader(pipe, 1 << 16).readline(MAX_LINE)
        except OSError:
            line = b""
        finally:
            timer.cancel()
        try:
            answer = dict(json.loads(line))
        except (TypeError, ValueError):
            why = f"takes longer than {seconds:g} s" if late.is_set() else "asked for too much and was ended"
            raise TemplateError(f"{self._name}: {why}") from None
        if "error" in answer:
            raise _Said(str(answer["error"]))
        return str(answer["text"])


class _Said(Exception):
    """An error in the words of the process, which is as good as before."""


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(OSError):
                pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    _close(process)


def _forget_all() -> None:
    for worker in list(_living):
        worker.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
