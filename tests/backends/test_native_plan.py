"""The plan alone: executed by a slow interpreter, it is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_model
from plan_interpreter import Core

from rookery import Model, _native, weights
from rookery.backends import reference
from rookery.weights.quantise import Plan, quantise
from tolerances import LOGITS_TEXT, STATE

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

from rookery.backends.native import Runner, passes

FIXTURES = Path(__file__).parent.parent / "fixtures"
PHASES = {"v4": 8, "v5.0": 8, "v5.1": 8, "v5.2": 8, "v6": 11, "v6-timestate": 11, "v7": 9}  # of a layer
PROMPTS = [list(range(40)), [7], [255, 0], list(range(90, 99)), list(range(250, 0, -1))]  # 302 rows: two runs

names = pytest.mark.parametrize("name", PHASES)


def interpreted(path: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Model:
    loaded = weights.load(path)
    with monkeypatch.context() as m:
        m.setattr(_native, "core", Core(seed))
        return Model(loaded, Runner(loaded))


def by_reference(path: Path) -> Model:
    loaded = weights.load(path)
    return Model(loaded, reference.Runner(loaded))


def agree(mine: Model, theirs: Model, prompts: list[list[int]]) -> bool:
    """In the logits after every row and in every piece of the states."""
    pairs = zip(mine.forward_batch(prompts, every=True), theirs.forward_batch(prompts, every=True), strict=True)
    for (got, end), (wanted, after) in pairs:
        if not np.abs(got - wanted).max() <= LOGITS_TEXT:
            return False
        for i in range(end.config.n_layer):
            for a, b in zip(vars(end.layer(i)).values(), vars(after.layer(i)).values(), strict=True):
                if not np.abs(a - b).max() <= STATE * np.abs(b).max():
                    return False
    return True


@names
@pytest.mark.parametrize("seed", [0, 1])
def test_the_plan_is_the_reference(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FIXTURES / f"{name}.safetensors"
    mine = interpreted(path, monkeypatch, seed)
    assert agree(mine, by_reference(path), PROMPTS)
    _, middle = mine.forward(PROMPTS[0][:11])
    logits, end = mine.forward(PROMPTS[0][11:], middle)
    wanted, after = mine.forward(PROMPTS[0])
    np.testing.assert_array_equal(logits, wanted)
    np.testing.assert_array_equal(end.vector(), after.vector())


# -- the interpreter sees mistakes -------------------------------------------------------------------------------------


def shows(path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    try:
        return not agree(interpreted(path, monkeypatch), by_reference(path), PROMPTS[:3])
    except AssertionError:  # a step that does not fit its lane
        return True


@names
@pytest.mark.parametrize("op", ["linear", "shift"])
def test_a_missing_barrier_shows(name: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, right = FIXTURES / f"{name}.safetensors", passes.barrier
    assert not shows(path, monkeypatch)

    def wrong(x: Any, maker: Any, reader: Any, by_rows: bool) -> bool:
        return reader.op != op and right(x, maker, reader, by_rows)

    monkeypatch.setattr(passes, "barrier", wrong)
    assert shows(path, monkeypatch)


@names
def test_a_buffer_too_small_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_ROWS", 8)
    assert shows(FIXTURES / f"{name}.safetensors", monkeypatch)


@names
def test_a_buffer_given_away_too_early_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = passes.Placing.share

    def wrong(self: Any, chains: Any) -> None:
        self.readers = {step: readers[:1] for step, readers in self.readers.items()}
        right(self, chains)

    monkeypatch.setattr(passes.Placing, "share", wrong)
    assert shows(FIXTURES / f"{name}.safetensors", monkeypatch)


# -- what the passes promise -------------------------------------------------------------------------------------------


@names
def test_phases_of_a_layer(name: str) -> None:
    """All but two: the pick of the rows that give logits with its norm, and the head. The embedding joins a norm."""
    runner = Runner(weights.load(FIXTURES / f"{name}.safetensors"))
    assert len(runner.plan.phases) == runner.config.n_layer * PHASES[name] + 2


@pytest.mark.parametrize(("version", "phases", "encodes"), [("4", 8, 7), ("5.2", 8, 8), ("6", 11, 8), ("7", 9, 6)])
def test_inputs_are_encoded_once_and_cost_no_phase(version: str, phases: int, encodes: int, tmp_path: Path) -> None:
    """v7: one for each of r, k, v, output, key, value; v6: its decay's low-rank pair reads float32."""
    path = random_model(tmp_path / "m.safetensors", version, 0 if version == "4" else 2, 64, 96)
    quantise(path, tmp_path / "m.gguf", Plan("q8_0"))
    plan = Runner(weights.load(tmp_path / "m.gguf")).plan
    calls = [call for phase in plan.phases for lane in phase.lanes for call in lane.calls]
    assert len(plan.phases) == 2 * phases + 2
    assert sum(call.op == "encode" for call in calls) == 2 * encodes + 1


def test_a_plan_reads_as_text() -> None:
    plan = Runner(weights.load(FIXTURES / "v7.safetensors")).plan
    lines = plan.describe().splitlines()
    assert lines[:5] == [
        "0: by rows",
        "  lane of 12, tiles of 32, 0 slots",
        "    @0 = embed(emb.weight)",
        "    @16384 = layer_norm(@0, c0, c1)",
        "    @32768 = layer_norm(@16384, c2, c3)",
    ]
    assert lines[-3] == f"{len(plan.phases) - 1}: by columns, of outputs"
    assert lines[-1].startswith("    logits = linear(head.weight, @")
    assert sum("blocks.1.att.v2" in line for line in lines) == 1
    assert not any("blocks.0.att.v2" in line for line in lines)  # nobody reads it
