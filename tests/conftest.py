"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_place = Path(os.environ.get("ROOKERY_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHARED: Path | None = _place if _place.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared fixtures and data; skips where it is absent."""
    if SHARED is None:
        pytest.skip("../shared not present (set ROOKERY_SHARED)")
    return SHARED
