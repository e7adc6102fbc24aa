"""Tuning that was killed again and again leaves the files of one that was not, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have loaded torch")
SCRIPT = Path(__file__).with_name("tune_killed.py")


@pytest.mark.parametrize(
    ("method", "name"),
    [("lora", "adapter.safetensors"), pytest.param("state", "state.safetensors", marks=pytest.mark.slow)],
)
def test_killed(tmp_path: Path, method: str, name: str) -> None:
    arguments = [sys.executable, str(SCRIPT), str(tmp_path), method]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[method]
    assert found["files"] == [name]
    assert found["differ"] == []
    assert {"bytes", "before", "after"} <= set(found["killed"])
