"""Fixtures of the lab's tests."""

from __future__ import annotations

import pytest

from rookery.lab.metrics import change


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning of white noise comes once a process; here it has come already, whichever test runs first."""
    monkeypatch.setattr(change, "_told", True)
