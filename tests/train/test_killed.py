"""Runs that were killed again and again end as one that was not, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have loaded torch")
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # two threads on a busy machine would spin for each other
SCRIPT = Path(__file__).with_name("killed.py")
LARGER = ["n_embd=128", "head_size=64", "ctx_len=64", "tokens=3072"]  # enough work for two threads to share


def survives(folder: Path, kills: int, *overrides: str) -> None:
    arguments = [sys.executable, str(SCRIPT), str(folder), str(kills), *overrides]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["differ"] == []
    assert found["left"] == []
    assert found["tensors"] > 50
    planted = {kind: n for kind, n in found["killed"].items() if kind != "moment"}  # which may come too late
    assert min(planted.values()) >= 1, found  # of many kills the last may find nothing left to write


@pytest.mark.parametrize(("version", "precision"), [pytest.param("4", "bf16", marks=pytest.mark.slow), ("7", "fp32")])
def test_killed(tmp_path: Path, version: str, precision: str) -> None:
    survives(tmp_path, 4, f"version={version}", f"precision={precision}")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_killed_more_often(tmp_path: Path, version: str, precision: str, threads: int) -> None:
    survives(tmp_path, 8, f"version={version}", f"precision={precision}", f"threads={threads}", *LARGER)
