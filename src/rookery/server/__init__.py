"""The house over HTTP: OpenAI's routes, stored talks, and what keeps a server standing. Needs the extra `serve`.

app.py       routes put together           guard.py     ids, log, faults         sse.py      streams
service.py   what the routes share         door.py      who and what comes in    metrics.py  counts
run.py       uvicorn, signals, the end     protocol.py  HTTP below the routes    records.py  what was read and written
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rookery.errors import MissingExtra
from rookery.server.settings import Settings

if TYPE_CHECKING:
    from rookery.server.app import make

__all__ = ["Settings", "make"]


def __getattr__(name: str) -> Any:
    if name != "make":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("rookery.server.app").make
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rookery"):
            raise
        raise MissingExtra("serving", "serve") from error
