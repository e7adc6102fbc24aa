"""`rookery convert` and `rookery info` of adapters and tuned states, and what is said of one given as a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminal import check_mistake

import rookery as house
from rookery import State, formats, weights
from rookery.formats.tensor import Tensor
from rookery.weights import adapters
from rookery.weights.adapters import Adapter, LowRank, Pissa, Whole

MODEL = str(Path(__file__).parents[1] / "fixtures" / "v7.safetensors")
rng = np.random.default_rng(9)


def random(*shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    base = weights.load(MODEL)
    parts = {}
    for layer in (0, 1):
        name = f"blocks.{layer}.att.key.weight"
        rows, columns = base.tensors[name].shape
        parts[name] = LowRank(random(4, columns), random(rows, 4), 2.0)
    said = {"rookery.base.name": "a \x1b[31mmodel", "rookery.steps": "30"}
    made = Adapter(parts, "lora", "", said, base.fingerprint, base.lineage)
    adapters.write(made, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_an_adapter_through_every_form(rookery: Any, lora: Path, tmp_path: Path) -> None:
    wanted = adapters.load(lora).fingerprint
    source = lora
    for name, to, form in [("a.pth", (), "pth"), ("a", ("--to", "hf"), "hf"), ("b.safetensors", (), "safetensors")]:
        out = tmp_path / name
        code, said, err = rookery("convert", source, out, *to)
        assert (code, err) == (0, "")
        assert said.startswith(f"wrote {out}: {form}, ")
        found = adapters.load(out)
        assert (found.fingerprint, found.metadata["rookery.steps"]) == (wanted, "30")
        source = out
    check_mistake(rookery("convert", lora, tmp_path / "a.pth"), "exists already; --force")
    assert rookery("convert", lora, tmp_path / "a.pth", "--force").code == 0
    check_mistake(rookery("convert", lora, tmp_path / "a", "--to", "hf"), "not empty")
    check_mistake(rookery("convert", lora, tmp_path / "a.gguf"), "choose safetensors, pth or hf")
    check_mistake(rookery("convert", MODEL, tmp_path / "c.pth", "--alpha", "1"), "for adapters of others")


def test_an_adapter_of_rwkv_peft_is_asked_for_its_alpha(rookery: Any, lora: Path, tmp_path: Path) -> None:
    adapters.write(adapters.load(lora), tmp_path / "a.pth")
    theirs = tmp_path / "theirs.pth"
    formats.write(theirs, formats.read(tmp_path / "a.pth").tensors)
    check_mistake(rookery("convert", theirs, tmp_path / "b.safetensors"), "--alpha X", "lora_alpha")
    assert rookery("convert", theirs, tmp_path / "b.safetensors", "--alpha", "8").code == 0
    assert adapters.load(tmp_path / "b.safetensors").fingerprint == adapters.load(lora).fingerprint
    out = rookery("info", theirs).out
    assert "not in the file: give --alpha" in out
    facts = json.loads(rookery("info", "--json", theirs).out)
    assert (facts["alpha_known"], facts["fingerprint"], facts["targets"][0]["scale"]) == (False, None, None)


def test_a_pissa_takes_its_init_along(rookery: Any, tmp_path: Path) -> None:
    part = Pissa(random(4, 12), random(12, 4), random(4, 12), random(12, 4))
    made = Adapter({"blocks.0.att.key.weight": part, "blocks.0.att.x_r": Whole(random(1, 1, 12))}, "pissa")
    adapters.write(made, tmp_path / "a.safetensors")
    assert rookery("convert", tmp_path / "a.safetensors", tmp_path / "a.pth").code == 0
    check_mistake(rookery("convert", tmp_path / "a.safetensors", tmp_path / "b.pth"), "init_pissa.pth: exists already")
    assert rookery("convert", tmp_path / "a.safetensors", tmp_path / "b.pth", "--force").code == 0
    back = rookery("convert", tmp_path / "b.pth", tmp_path / "c.safetensors", "--init", tmp_path / "init_pissa.pth")
    assert back.code == 0
    assert adapters.load(tmp_path / "c.safetensors").fingerprint == made.fingerprint


def test_info_of_an_adapter(rookery: Any, lora: Path) -> None:
    base = weights.load(MODEL)
    facts = json.loads(rookery("info", "--json", lora).out)
    assert facts["base"]["fingerprint"] == base.fingerprint
    assert facts["fingerprint"] == adapters.load(lora).fingerprint
    assert facts["bytes"] == lora.stat().st_size
    width = base.config.n_embd
    assert facts["parameters"] == 2 * 2 * 4 * width
    assert facts["targets"] == [
        {"target": "att.key.weight", "part": "LowRank", "rank": 4, "scale": 2.0, "tensors": 2,
         "parameters": facts["parameters"]},
    ]  # fmt: skip
    out = rookery("info", lora).out
    assert "adapter      lora\n" in out
    assert rf"a \x1b[31mmodel, lineage {base.lineage}" in out
    assert "steps        30\n" in out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_becomes_a_time_state(rookery: Any, suffix: str, tmp_path: Path) -> None:
    model = house.load(MODEL)
    state = model.state()
    state.layer(1).wkv[...] = random(*state.layer(1).wkv.shape)
    state.save(tmp_path / "tuned.state")
    out = tmp_path / f"out{suffix}"
    assert rookery("convert", tmp_path / "tuned.state", out).code == 0
    np.testing.assert_array_equal(State.load(out, model).flat, state.flat)
    again = tmp_path / f"again{suffix}"
    assert rookery("convert", out, again).code == 0
    np.testing.assert_array_equal(State.load(again, model).flat, state.flat)
    check_mistake(rookery("convert", out, tmp_path / "s.gguf"), "is written as .pth or .safetensors")
    check_mistake(rookery("convert", out, tmp_path / "s", "--to", "hf"), "is written as .pth or .safetensors")
    state.layer(0).att_shift[...] = 1
    state.save(tmp_path / "read.state")
    check_mistake(rookery("convert", tmp_path / "read.state", tmp_path / "b.pth"), "token shifts", "--force")
    assert rookery("convert", tmp_path / "read.state", tmp_path / "b.pth", "--force").code == 0
    state.layer(0).att_shift[...] = 0
    np.testing.assert_array_equal(State.load(tmp_path / "b.pth", model).flat, state.flat)


def test_an_adapter_or_a_state_taken_for_a_model(rookery: Any, lora: Path, tmp_path: Path) -> None:
    made = adapters.load(lora)
    adapters.write(made, tmp_path / "a.pth")
    adapters.write(made, tmp_path / "a", "hf")
    for path in (lora, tmp_path / "a.pth", tmp_path / "a"):
        check_mistake(rookery("generate", "-m", path, "x"), str(path), "adapter", "--adapter")
    formats.write(tmp_path / "d.pth", {"blocks.0.att.key.disha": Tensor.of(random(2, 4))})
    check_mistake(rookery("generate", "-m", tmp_path / "d.pth", "x"), "MiSS adapter", "--adapter")
    formats.write(tmp_path / "s.pth", {"blocks.0.att.time_state": Tensor.of(random(2, 4, 4))})
    check_mistake(rookery("generate", "-m", tmp_path / "s.pth", "x"), "tuned RWKV state", "--state")
    house.load(MODEL).state().save(tmp_path / "s.state")
    check_mistake(rookery("generate", "-m", tmp_path / "s.state", "x"), "saved state", "--state")
