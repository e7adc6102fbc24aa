"""The command in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from terminal import Result

from rookery.cli.main import main


@pytest.fixture
def rookery(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`rookery("info", FILE, stdin=b"")`. That a slow machine is told of its progress is not looked at here."""
    monkeypatch.setattr("rookery.cli.progress.PATIENCE", 3600.0)

    def run(*args: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Result(code, *capsys.readouterr())

    return run
