"""Two processes and one train alike, go on from each other's checkpoints, and end together when one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tolerances import LOSS_SPLIT, WEIGHTS_SPLIT
from training_runs import config_file, losses, metrics

torch = pytest.importorskip("torch")

from rookery import formats
from rookery.errors import InputError
from rookery.train.parallel import Parallel

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have loaded torch")
SCRIPT = Path(__file__).with_name("ranks.py")
WORDS = ("%)  loss", "going on after", "preparing")  # of lines that are no complaint
RARER = (("ddp", "7"), ("fsdp_offload", "7"), ("ddp", "4"), ("fsdp", "4"), ("fsdp", "6"))
Said = list[dict[str, Any]]


class Runs:
    """Phases of `ranks.py`, each with an `out` in one folder; `of[out]` is what its last one said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, config_file(folder)
        self.phases: list[dict[str, Any]] = []

    def add(self, world: int, out: str, *words: str, **more: Any) -> None:
        common = [str(self.config), f"out={self.folder / out}", "keep=9", "validate_tokens=64"]
        validation = f"validation={self.folder / 'text.txt'}"
        self.phases.append({"world": world, "words": [*common, validation, *words], **more})

    def lose(self, out: str, *steps: int) -> list[str]:
        return [f"{self.folder / out}/checkpoints/step-{step:08}*" for step in steps]

    def go(self) -> list[Said]:
        command = [sys.executable, str(SCRIPT), json.dumps(self.phases)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found: list[Said] = json.loads(done.stdout.splitlines()[-1])
        return found


def same_course(one: Path, other: Path) -> None:
    """Losses, validation and the exported model, but for float32 noise."""
    a, b = losses(one), losses(other)
    assert len(a) == 8
    np.testing.assert_allclose(b, a, rtol=LOSS_SPLIT, atol=0)
    found = [[line["validation_loss"] for line in metrics(out) if "validation_loss" in line] for out in (one, other)]
    np.testing.assert_allclose(found[1], found[0], rtol=LOSS_SPLIT, atol=0)
    mine, theirs = (formats.read(out / "model.safetensors").tensors for out in (one, other))
    assert list(mine) == list(theirs)
    for name in mine:
        wanted, got = mine[name].array().astype(np.float64), theirs[name].array()
        assert np.linalg.norm(got - wanted) <= WEIGHTS_SPLIT * np.linalg.norm(wanted), name


@linux
@pytest.mark.parametrize(
    ("strategy", "version"),
    [("fsdp", "7"), *(pytest.param(*one, marks=pytest.mark.slow) for one in RARER)],
)
def test_two_one_two(tmp_path: Path, strategy: str, version: str) -> None:
    """Two processes; then one goes on from step 3; then two from the step 6 of that one; beside one all the way."""
    runs = Runs(tmp_path)
    two = [f"strategy={strategy}", f"version={version}", "micro_batch=1"]
    runs.add(1, "one", f"version={version}")
    runs.add(2, "two", *two)
    runs.add(1, "two", f"version={version}", lose=runs.lose("two", 6, 8))
    runs.add(2, "two", *two, lose=runs.lose("two", 8))
    for phase in (said := runs.go()):
        assert [one["code"] for one in phase] == [0] * len(phase), phase
        assert [bool(one["out"]) for one in phase] == [True, False][: len(phase)]
        assert not any(one["err"] for one in phase[1:])
    assert "going on after step 3 of 8" in said[2][0]["err"]
    assert "going on after step 6 of 8" in said[3][0]["err"]
    kept = [path.name for path in sorted((tmp_path / "two" / "checkpoints").iterdir())]
    kind = ".safetensors" if strategy == "ddp" else ""
    assert kept == [f"step-00000003{kind}", "step-00000006.safetensors", f"step-00000008{kind}"]
    same_course(tmp_path / "one", tmp_path / "two")


@linux
def test_when_one_fails_or_is_stopped(tmp_path: Path) -> None:
    """All end, with one line of one of them; where it is a signal, with the step done and saved."""
    runs = Runs(tmp_path)
    runs.add(2, "error", accident=[1, 4, "error"])
    runs.add(2, "lost", accident=[1, 4, "SIGKILL"])
    runs.add(2, "full", accident=[0, 4, "disk"])
    runs.add(2, "full", "strategy=fsdp", accident=[1, 4, "disk"])
    runs.add(2, "key", "learning_rat=3")
    runs.add(2, "empty", "train=nowhere.txt")
    runs.add(2, "odd", "batch=3")
    runs.add(2, "signal", accident=[1, 4, "SIGTERM"])
    wanted = [
        "rookery: tokens.bin: is damaged",
        "another process of the run was lost; the same command goes on from the last checkpoint",
        "step-00000006.safetensors: cannot be written (No space left on device); the last good checkpoint is ",
        "step-00000006: cannot be written (",
        "unknown key 'learning_rat'",
        "nowhere.txt",
        "optimiser.batch = 3: a multiple of the 2 processes is wanted",
    ]
    *failed, stopped = runs.go()
    assert [one["code"] for one in stopped] == [130, 130]
    assert stopped[0]["out"] == "stopped after step 5 of 8; the same command goes on from there\n"
    assert (tmp_path / "signal" / "checkpoints" / "step-00000005.safetensors").is_file()
    for phase, line in zip(failed, wanted, strict=True):
        assert all(one["code"] in (2, -9) for one in phase), phase
        assert [one["out"] for one in phase] == ["", ""]
        errors = [e for one in phase for e in one["err"].splitlines() if not any(word in e for word in WORDS)]
        assert len(errors) == 1, phase
        assert line in errors[0]
    assert len(list((tmp_path / "full" / "checkpoints").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_by_torchrun(tmp_path: Path, strategy: str) -> None:
    """The command of the README."""
    path = str(config_file(tmp_path))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    for launch, out in (([], "one"), (launcher, "two")):
        words = ["-m", "rookery", "train", path, f"out={tmp_path / out}", f"strategy={strategy}"]
        words += [f"validation={tmp_path / 'text.txt'}", "validate_tokens=64"]
        command = [sys.executable, *launch, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
    same_course(tmp_path / "one", tmp_path / "two")


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Parallel("cpu", "fsdp")
    assert (alone.world, alone.rank, alone.main, alone.strategy, alone.sharded) == (1, 0, True, "one", False)
    assert alone.mean(torch.tensor(2.5)) == 2.5
    assert [alone.agree(flag) for flag in (True, False)] == [True, False]


def test_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"begin with python -m torch\.distributed\.run"):
        Parallel("cpu")
    assert "MASTER_ADDR" not in os.environ
