"""A server for tests: in a thread of this process, where its service can be looked at, or as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from rookery.server.run import Server, listen
from rookery.server.service import Service
from rookery.server.settings import Settings

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PATIENCE = 60.0


class Here:
    """A server in a thread. `url`, `service`, `life`; `client()` gives an httpx.Client, `openai()` the official one."""

    def __init__(self, model: Any, **settings: Any) -> None:
        self.said: list[str] = []
        load: Callable[[], Any] = model if callable(model) else lambda: model
        self.server: Server = listen(Settings(**{"port": 0, **settings}), load, self.said.append)
        self.life, self.url = self.server.life, self.server.url
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def __enter__(self) -> Here:
        wait_for(lambda: self.life.phase == "ready" or not self.thread.is_alive())
        return self

    def __exit__(self, *_: object) -> None:
        self.server.end()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    @property
    def service(self) -> Service:
        assert self.life.service is not None
        return self.life.service

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **options)

    def openai(self, key: str = "none", **options: Any) -> Any:
        return openai_client(self.url, key, **options)


class Process:
    """`rookery serve` in a process of its own, ready when the constructor returns. `url`, `process`, `err` (a file)."""

    def __init__(self, folder: Path, *args: object, ready: bool = True, **environment: str) -> None:
        self.err = folder / f"stderr{len(list(folder.glob('stderr*')))}"
        command = [sys.executable, "-m", "rookery", "serve", "--port", "0", "-t", "1", *map(str, args)]
        if "--store" not in command:
            command += ["--store", str(folder / "store")]
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=os.environ | environment
            )
        self.url = ""
        if ready:
            wait_for(self._is_ready)

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}: {self.said}")
        found = re.search(r"serving \S+ at (http://\S+)\n", self.said)
        self.url = found[1] if found else ""
        return found is not None

    @property
    def said(self) -> str:
        """All of its stderr by now."""
        return self.err.read_text("utf-8", "replace")

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **options)

    def openai(self, key: str = "none", **options: Any) -> Any:
        return openai_client(self.url, key, **options)

    def terminate(self, code: int = 0) -> None:
        """SIGTERM, and it ends with this code."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == code, self.said

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE)


def openai_client(url: str, key: str, **options: Any) -> Any:
    from openai import OpenAI

    settings = {"max_retries": 0, "timeout": PATIENCE, "_strict_response_validation": True}
    return OpenAI(base_url=f"{url}/v1", api_key=key, **{**settings, **options})


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `condition` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"it did not come true within {seconds:g} s"
        time.sleep(0.01)
    return found
