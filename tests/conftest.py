"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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
