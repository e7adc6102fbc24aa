"""The native core, or the reason why it is not here."""

from __future__ import annotations

import os
from functools import cache

from rookery import errors

__all__ = ["REMEDY", "announce_missing", "available", "check", "core", "reason", "required"]

try:
    import rookery._core as core

    reason: str | None = None
except ImportError as error:  # not built, or built for another Python or C++ library
    core = None  # type: ignore[assignment]
    reason = str(error)

REMEDY = "install a C++20 compiler, then: pip install --force-reinstall --no-deps rookery (a checkout: scripts/setup)"


def available() -> bool:
    return reason is None


def required() -> bool:
    """Whether ROOKERY_REQUIRE_NATIVE forbids the pure-Python stand-ins; true and false as the build reads it."""
    return os.environ.get("ROOKERY_REQUIRE_NATIVE", "").lower() not in {"", "0", "n", "no", "off", "false", "f"}


def check() -> None:
    """Raises BackendError if the core is missing and required."""
    if required() and not available():
        raise errors.BackendError(f"ROOKERY_REQUIRE_NATIVE is set and the native core is missing ({reason}); {REMEDY}")


@cache
def announce_missing() -> None:
    """Say once, on stderr unless logging is set up otherwise, that a slow stand-in runs."""
    import logging  # not needed, and so not loaded, where all is well

    logging.getLogger("rookery").warning(
        "rookery: NO NATIVE CORE (%s): running in pure Python, which is slower; %s", reason, REMEDY
    )
