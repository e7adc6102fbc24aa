"""Two processes tune as one does: by examples, from packed rows, and by preference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from rookery import formats
from rookery.train import report
from tolerances import LOSS_SPLIT, WEIGHTS_SPLIT

TESTS = Path(__file__).parents[1]
OBJECTIVES = ("sft", "dpo", "kto")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have loaded torch")


def row(objective: str, n: int) -> dict[str, Any]:
    """Of another length than its neighbours."""
    good, bad = f"{n + 1} comes{', surely' * (n % 4)}.", f"no idea{' at all' * (n % 3)}."
    if objective == "dpo":
        return {"prompt": f"What comes after {n}?", "chosen": good, "rejected": bad}
    more = {"label": bool(n % 3)} if objective == "kto" else {}
    return {"prompt": f"What comes after {n}?", "completion": good if n % 3 else bad} | more


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OBJECTIVE-PROCESSES, each the folder of a run."""
    folder, phases = tmp_path_factory.mktemp("ranks"), []
    for objective in OBJECTIVES:
        file = folder / f"{objective}.jsonl"
        file.write_text("".join(json.dumps(row(objective, n)) + "\n" for n in range(24)))
        for world in (1, 2):
            words = [
                f"train={file}", f"validation={file}", f"out={folder / f'{objective}-{world}'}", "steps=4", "batch=4",
                f"objective={objective}", f"load_model={TESTS / 'fixtures' / 'v7.safetensors'}", "tokenizer=bytes",
                "template=raven", "ctx_len=128", "rank=2", "threads=1", "lr_init=0.01", f"micro_batch={2 // world}",
                "warmup_steps=1", "device=cpu",
            ]  # fmt: skip
            phases.append({"world": world, "command": "tune", "words": words})
    command = [sys.executable, str(TESTS / "train" / "ranks.py"), json.dumps(phases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [[p["code"] for p in phase] for phase in json.loads(done.stdout.splitlines()[-1])] == [[0], [0, 0]] * 3
    return folder


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_tune_as_one(runs: Path, objective: str) -> None:
    one, two = (runs / f"{objective}-{world}" for world in (1, 2))
    for what in ("loss", "validation_loss", "grad_norm"):
        alone, shared = (
            [line[what] for line in report.read(out / report.METRICS) if what in line] for out in (one, two)
        )
        assert len(alone) == (2 if what == "validation_loss" else 4)
        np.testing.assert_allclose(shared, alone, rtol=LOSS_SPLIT)
    mine, theirs = (formats.read(out / "adapter.safetensors").tensors for out in (one, two))
    for name, tensor in mine.items():
        assert np.linalg.norm(theirs[name].float32() - tensor.float32()) <= WEIGHTS_SPLIT * np.linalg.norm(
            tensor.float32()
        )
