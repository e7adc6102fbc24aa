"""Fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The test models are tiny: threads of BLAS and torch would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A job in the background of a script inherits a SIGINT that is ignored; the tests send it, to programs they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_place = Path(os.environ.get("ROOKERY_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHARED: Path | None = _place if _place.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared fixtures and data; skips where it is absent."""
    if SHARED is None:
        pytest.skip("../shared not present (set ROOKERY_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of our own, on a socket."""
    redis = pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "socket"
    command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            while not socket.exists():
                assert server.poll() is None, "redis-server ended"
                time.sleep(0.02)
            with redis.Redis(unix_socket_path=str(socket)) as client:
                assert client.ping()
            yield f"unix://{socket}"
        finally:
            server.terminate()


@pytest.fixture
def redis_client(redis_server: str) -> Iterator[Any]:
    """A client of the emptied server."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield client


@pytest.fixture(params=["memory", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address for `store.open` at which nothing is yet."""
    if request.param == "redis":
        request.getfixturevalue("redis_client")
        return str(request.getfixturevalue("redis_server"))
    return ":memory:" if request.param == "memory" else str(tmp_path / "talks.db")
