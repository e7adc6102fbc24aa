"""A server process: it listens, loads, says that it is ready, and ends in order when it is told to."""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from rookery.errors import InputError, NoPermission
from rookery.model import Model
from rookery.server import keys as key_files
from rookery.server.app import make
from rookery.server.keys import Keys
from rookery.server.protocol import protocol
from rookery.server.service import Life, Service, build
from rookery.server.settings import Settings

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

SPARE_FILES = 256  # besides connections
HEADERS = 64 << 10  # bytes of a request line and its headers
log = logging.getLogger("rookery.server")
Say = Callable[[str], None]


class Server(uvicorn.Server):
    """One that ends with exit code 0 when it is told to, and at once when it is told twice."""

    def __init__(self, life: Life, load: Callable[[], Service], listener: socket.socket) -> None:
        super().__init__(_config(life.settings, make(life, load, self.fail)))
        self.life, self.url, self._listener = life, address(listener), listener
        self._error: Exception | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Until it is told to end. Raises what prevented it from being ready."""
        with self._listener:
            super().run([self._listener])
        if self._error is not None:
            raise self._error

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # the store stands a kill -9, so also this
        self.end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if left := len(self.server_state.tasks):
            log.info("ending; requests in flight: %d, with %g s to finish", left, self.life.settings.drain_seconds)
        await super().shutdown(sockets)

    def end(self) -> None:
        """Let what is in flight finish, and take nothing new."""
        self.life.drain()
        self.should_exit = True

    def fail(self, error: Exception) -> None:
        """The model or the store cannot be had."""
        self._error, self.should_exit = error, True


def _config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol(settings.connections, settings.header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(settings.keep_alive_seconds),
        timeout_graceful_shutdown=int(settings.drain_seconds),
        h11_max_incomplete_event_size=HEADERS,
    )


def serve(settings: Settings, load: Callable[[], Model], say: Say) -> None:
    """Serve until told to end. `say` gets lines for the terminal. Raises RookeryError for a wrong start."""
    allow_files(settings.connections)
    listen(settings, load, say).run()


def listen(settings: Settings, load: Callable[[], Model], say: Say) -> Server:
    """A server that listens and answers nothing yet. Raises FileError and InputError."""
    keys = key_files.load(settings.api_key_file, say) if settings.api_key_file else Keys()
    listener = bind(settings)
    life = Life(settings, keys, lambda made: say(f"serving {made.name} at {address(listener)}"))
    return Server(life, lambda: build(settings, load(), life.keys, life.metrics), listener)


def allow_files(connections: int) -> None:
    """Let the process have so many connections, as far as the system lets it: often 1024 files are the default."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def bind(settings: Settings) -> socket.socket:
    """The bound socket. Raises InputError, NoPermission."""
    host, port = settings.host.strip("[]"), settings.port
    where = f"{settings.host}:{port}"
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise InputError(f"no address {settings.host!r}; wanted an IP address or a name of this machine") from None
    made = socket.socket(family, kind, number)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(settings.connections)
    except PermissionError:
        made.close()
        raise NoPermission(where, "may not be listened at; take a port of 1024 or more: --port") from None
    except OSError as error:
        made.close()
        said = "is in use already" if error.errno == 98 else f"cannot be listened at ({error.strerror})"
        raise InputError(f"{where}: {said}; take another: --port N, or 0 for a free one") from None
    return made


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_to_stderr(level: str) -> None:
    """One line for each message and each warning of the process; uvicorn's own chatter only at "debug"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    for name, least in (("rookery", level.upper()), ("uvicorn", "DEBUG" if level == "debug" else "CRITICAL")):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(least)
        logger.propagate = False
    warnings.showwarning = lambda message, *_: log.warning("%s", message)
