"""LAMBADA, HellaSwag and PIQA give the same by `rookery eval`, by lm-eval with our class in process and over HTTP, and
by lm-eval's own class on torch. One process makes them all: benchmarks/lm_eval_equal.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tolerances import LOGPROB_HF, LOGPROB_SUM

pytest.importorskip("lm_eval", reason="lm-eval is of the extra eval")
pytest.importorskip("transformers")
pytest.importorskip("fastapi")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lm_eval_equal.py"
ITEMS = 24
CHOICES = {"lambada_openai": 1, "hellaswag": 4, "piqa": 2}


@pytest.fixture(scope="module")
def found(shared: Path) -> Any:
    command = [sys.executable, SCRIPT, "--data", shared / "data" / "eval", "--limit", ITEMS, "--json"]
    done = subprocess.run(
        [*map(str, command), "--ways", "run,here,server,hf,hf as it is"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("task", CHOICES)
@pytest.mark.parametrize(("way", "tolerance"), [("here", 0.0), ("server", LOGPROB_SUM), ("hf", LOGPROB_HF)])
def test_every_way_gives_the_same(found: Any, way: str, tolerance: float, task: str) -> None:
    own, other = found["ways"]["run"], found["ways"][way]
    logprobs = np.asarray(own["logprobs"][task])
    assert logprobs.shape == (ITEMS, CHOICES[task])
    np.testing.assert_allclose(np.asarray(other["logprobs"][task]), logprobs, rtol=0, atol=tolerance)
    figures = other["results"][task]
    assert figures.keys() == own["results"][task].keys()
    assert {"perplexity", "acc"} <= figures.keys() or {
        "acc",
        "acc_stderr",
        "acc_norm",
        "acc_norm_stderr",
    } <= figures.keys()
    for name, value in own["results"][task].items():
        assert figures[name] == pytest.approx(value, rel=max(tolerance, 1e-12)), name


def test_the_prefix_is_what_lies_between_lm_evals_own_way_and_ours(found: Any) -> None:
    assert found["cut otherwise"] == {task: [0, ITEMS * choices] for task, choices in CHOICES.items()}
    for task in CHOICES:
        own, bare = (np.asarray(found["ways"][way]["logprobs"][task]) for way in ("run", "hf as it is"))
        assert np.abs(own - bare).max() > 100 * LOGPROB_HF
