"""Every instruction set that runs here against the reference: all versions in float32, the packaged model in blocks.

The set is chosen once in a process, so each has one of its own for all cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import _native
from rookery.state import layers
from rookery.weights.quantise import Plan, quantise
from tolerances import LOGITS_CODES, LOGITS_SAME_CODES, LOGITS_TEXT, STATE

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

FIXTURES = Path(__file__).parent.parent / "fixtures"
OWN = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
CODED = ("q8_0", "q4_0")

# A prompt of 70 rows, then a step of two sequences, so that products have many rows, few, and one.
RUN = """
import json, sys
import numpy as np
import rookery
paths, out, backend, isa = json.loads(sys.argv[1])
prompt = np.random.default_rng(8).integers(0, 256, 70)
found = {}
for name, path in paths.items():
    model = rookery.load(path, backend=backend)
    if isa:
        assert model.runner.engine.isa == isa, model.runner.engine.isa
    logits, state = model.forward(prompt, every=True)
    one, end = model.forward(prompt[:1], state)
    pair = model.forward_batch([prompt[:3], prompt[:1]], [state, None])
    found[name + "/logits"] = np.stack([*logits, one, *(row for row, _ in pair)])
    found[name + "/states"] = np.stack([s.vector() for s in (state, end, *(s for _, s in pair))])
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {name: str(FIXTURES / f"{name}.safetensors") for name in OWN}
    for dtype in CODED:
        made[dtype] = str(tmp_path_factory.mktemp("isa") / f"{dtype}.gguf")
        quantise(rookery.load("gosling", backend="reference").weights.path, made[dtype], Plan(dtype))
    return made


def outcomes(paths: dict[str, str], out: Path, backend: str, isa: str = "") -> Any:
    given = json.dumps([paths, str(out), backend, isa])
    environment = {**os.environ, "ROOKERY_ISA": isa}
    subprocess.run([sys.executable, "-c", RUN, given], check=True, timeout=300, env=environment)
    return np.load(out)


@pytest.fixture(scope="module")
def wanted(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcomes(paths, tmp_path_factory.mktemp("reference") / "found.npz", "reference")


@pytest.fixture(scope="module")
def plain(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcomes(paths, tmp_path_factory.mktemp("plain") / "found.npz", "native", "generic")


@pytest.fixture(scope="module", params=_native.core.isas() if _native.available() else [])
def found(request: pytest.FixtureRequest, paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcomes(paths, tmp_path_factory.mktemp(request.param) / "found.npz", "native", request.param)


@pytest.mark.parametrize("name", OWN)
def test_float32(name: str, found: Any, wanted: Any) -> None:
    assert np.abs(found[f"{name}/logits"] - wanted[f"{name}/logits"]).max() <= LOGITS_TEXT
    config = rookery.load(FIXTURES / f"{name}.safetensors", backend="reference").config
    for mine, theirs in zip(found[f"{name}/states"], wanted[f"{name}/states"], strict=True):
        for a, b in zip(layers(config, mine), layers(config, theirs), strict=True):
            for piece in a:
                # v4's numerator, denominator and exponent have scales of their own
                rows = (
                    zip(a[piece], b[piece], strict=True) if (name, piece) == ("v4", "wkv") else [(a[piece], b[piece])]
                )
                for x, y in rows:
                    assert np.abs(x - y).max() <= STATE * np.abs(y).max(), piece


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("what", ["logits", "states"])
@pytest.mark.parametrize(("other", "bar"), [("wanted", LOGITS_CODES), ("plain", LOGITS_SAME_CODES)])
def test_codes(name: str, what: str, found: Any, other: str, bar: float, request: pytest.FixtureRequest) -> None:
    """Near the reference, which rounds no input, and nearer the generic set, which rounds the same ones."""
    mine, theirs = (np.float64(x[f"{name}/{what}"]) for x in (found, request.getfixturevalue(other)))
    apart = np.sqrt(np.square(mine - theirs).mean() / np.square(theirs).mean())
    assert apart <= bar
