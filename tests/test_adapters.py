"""Adapters on their base: merged, beside, written and read; and the wrong ones refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rookery
import tolerances
from rookery import backends, formats, weights
from rookery.errors import AdapterError
from rookery.formats.tensor import Array
from rookery.weights import adapters
from rookery.weights.adapters import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Whole, file

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v7")
METHODS = ("lora", "dora", "pissa", "miss", "bat", "whole")
KEY, FFN = "blocks.1.att.key.weight", "blocks.0.ffn.key.weight"


def part(method: str, w: Array, seed: int, r: int = 4) -> Part:
    random = np.random.default_rng(seed)

    def values(*shape: int) -> Array:
        return (0.1 * random.standard_normal(shape)).astype(np.float32)

    out, inside = w.shape
    match method:
        case "lora":
            return LowRank(values(r, inside), values(out, r), 2.0)
        case "dora":
            return Dora(values(r, inside), values(out, r), 0.5, np.linalg.norm(w, axis=1) + values(out))
        case "pissa":
            return Pissa(values(r, inside), values(out, r), values(r, inside), values(out, r))
        case "miss":
            return Miss(values(7, out))  # 7 divides nothing here: the last block is cut
        case "bat":
            return Bat(values(inside // r, r, r))
    return Whole(w + values(*w.shape))


def adapter(of: weights.Weights, method: str, names: tuple[str, ...] = (KEY, FFN)) -> Adapter:
    parts = {name: part(method, of.tensors[name].float32(), i) for i, name in enumerate(names)}
    return Adapter(parts, method, "adapter", {}, of.fingerprint, of.lineage)


def load(version: str) -> weights.Weights:
    return weights.load(FIXTURES / f"{version}.safetensors")


def logits(of: weights.Weights, backend: str = "reference", dtype: str | None = "float64") -> Array:
    made = rookery.Model(of, backends.runner(of, backend, dtype=dtype))
    out, _ = made.forward(np.arange(20) * 7 % of.config.n_vocab, every=True)
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("version", VERSIONS)
def test_merged_is_beside(version: str, method: str) -> None:
    base = load(version)
    one = adapter(base, method)
    there, here = logits(adapters.merged(base, one)), logits(adapters.beside(base, one))
    assert np.abs(there - here).max() < tolerances.ADAPTER_MERGED
    assert np.abs(there - logits(base)).max() > tolerances.MATTERS
    assert bool(adapters.beside(base, one).sides) == (method not in ("bat", "whole"))


def test_torch_runs_it_too() -> None:
    pytest.importorskip("torch")
    base = load("v7")
    one = adapter(base, "dora")
    found = logits(adapters.beside(base, one), "torch")
    assert np.abs(found - logits(adapters.merged(base, one))).max() < tolerances.ADAPTER_MERGED


def test_miss_sums_the_blocks_of_its_input() -> None:
    w, x = np.zeros((5, 10), np.float32), np.arange(10, dtype=np.float32)
    d = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    summed = np.array([x[0] + x[4] + x[8], x[1] + x[5] + x[9], x[2] + x[6], x[3] + x[7]])
    np.testing.assert_allclose(Miss(d).changed(w) @ x, d.T @ summed, rtol=1e-6)


def test_bat_by_loops() -> None:
    random = np.random.default_rng(0)
    w, d = random.standard_normal((6, 4)).astype(np.float32), random.standard_normal((2, 2, 2)).astype(np.float32)
    wanted = w.copy()
    for a in range(3):
        for b in range(2):
            block = w[2 * a : 2 * a + 2, 2 * b : 2 * b + 2]
            wanted[2 * a : 2 * a + 2, 2 * b : 2 * b + 2] += block @ d[b] + d[b]
    np.testing.assert_allclose(Bat(d).changed(w), wanted, rtol=1e-5)


def test_dora_keeps_the_magnitude() -> None:
    w = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    one = part("dora", w, 1)
    assert isinstance(one, Dora)
    np.testing.assert_allclose(np.linalg.norm(one.changed(w), axis=1), np.abs(one.magnitude), rtol=1e-5)


@pytest.mark.parametrize("pair", [("lora", "pissa"), ("lora", "dora"), ("whole", "miss")])
def test_two_adapters_in_their_order(pair: tuple[str, str]) -> None:
    base = load("v7")
    two = [adapter(base, method) for method in pair]
    there, here = logits(adapters.merged(base, *two)), logits(adapters.beside(base, *two))
    assert np.abs(there - here).max() < tolerances.ADAPTER_MERGED
    assert np.abs(there - logits(adapters.merged(base, two[0]))).max() > tolerances.MATTERS


@pytest.mark.parametrize("name", ["emb.weight", "head.weight", "blocks.0.att.x_k", "blocks.1.ln1.weight"])
def test_what_is_no_linear_of_a_block(name: str) -> None:
    base = load("v7")
    value = base.tensors[name].float32()
    made: Part = part("lora", value, 3) if value.ndim == 2 else Whole(value + np.float32(0.05))
    one = Adapter({name: made}, "lora")
    beside = adapters.beside(base, one)
    assert (name in beside.sides) == (name == "head.weight")
    assert np.abs(logits(beside) - logits(adapters.merged(base, one))).max() < tolerances.ADAPTER_MERGED
    assert np.abs(logits(beside) - logits(base)).max() > tolerances.MATTERS


@pytest.mark.parametrize("method", METHODS)
def test_a_file_gives_back_what_was_written(method: str, tmp_path: Path) -> None:
    base = load("v7")
    one = adapter(base, method)
    one.metadata["rookery.steps"] = "7"
    file.write(tmp_path / "a.safetensors", one)
    back = adapters.load(tmp_path / "a.safetensors")
    assert (back.fingerprint, back.method, back.metadata["rookery.steps"]) == (one.fingerprint, method, "7")
    assert (back.base_fingerprint, back.base_lineage) == (base.fingerprint, base.lineage)
    for name, mine in one.parts.items():
        w = base.tensors[name].float32()
        assert (mine.changed(w) == back.parts[name].changed(w)).all()


def test_an_adapted_model_is_another_model() -> None:
    base = load("v7")
    one, two = adapter(base, "lora"), adapter(base, "miss")
    found = {
        w.fingerprint for w in (base, *(f(base, a) for a in (one, two) for f in (adapters.merged, adapters.beside)))
    }
    assert len(found) == 5
    assert adapters.beside(base, one).lineage not in (base.lineage, adapters.merged(base, one).lineage)
    assert adapters.beside(base, one, two).fingerprint == adapters.beside(adapters.beside(base, one), two).fingerprint


def test_another_base_is_refused() -> None:
    one = adapter(load("v7"), "lora")
    with pytest.raises(AdapterError, match="made for another model"):
        adapters.merged(load("v6"), one)
    stranger = replace(one, base_fingerprint=None, base_lineage=None)
    stranger.parts = {**one.parts, "blocks.9.att.key.weight": one.parts[KEY]}
    with pytest.raises(AdapterError, match=r"changes blocks\.9\.att\.key\.weight"):
        adapters.beside(load("v7"), stranger)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (LowRank(np.ones((4, 3), np.float32), np.ones((12, 4), np.float32), 1.0), "for a matrix of"),
        (LowRank(np.ones((4, 12), np.float32), np.ones((12, 5), np.float32), 1.0), "ranks do not meet"),
        (Miss(np.ones((4, 3), np.float32)), "a matrix of shape"),
        (Bat(np.ones((5, 3, 3), np.float32)), "blocks of shape"),
        (Whole(np.ones((4, 3), np.float32)), "a tensor of shape"),
    ],
)
def test_a_part_that_does_not_fit(made: Part, said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        adapters.merged(load("v7"), Adapter({KEY: made}, "lora"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({file.SCALES: "{}"}, "scale of"),
        ({file.SCALES: "[1]"}, "is damaged"),
        ({file.SCALES: '{"x": NaN}'}, "is damaged"),
        ({file.SCALES: '{"x": 1' + "0" * 400 + "}"}, "is damaged"),
        ({file.SCALES: '{"x": 1e300}'}, "is damaged"),
        ({file.QUANT: "fp3"}, "'fp3'"),
        ({file.KIND: "state"}, "not an adapter"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, str], said: str, tmp_path: Path) -> None:
    base = load("v7")
    path = tmp_path / "a.safetensors"
    file.write(path, adapter(base, "lora"))
    read = formats.read(path)
    formats.write(path, read.tensors, read.metadata | change)
    with pytest.raises(AdapterError, match=said):
        adapters.load(path)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    base = load("v7")
    one = adapter(base, "lora")
    one.parts[KEY] = LowRank(np.full((4, 12), np.nan, np.float32), np.ones((12, 4), np.float32), 1.0)
    file.write(tmp_path / "a.safetensors", one)
    with pytest.raises(AdapterError, match="not finite"):
        adapters.load(tmp_path / "a.safetensors")


def test_no_adapter_leaves_the_model_what_it_is() -> None:
    base = load("v7")
    assert adapters.beside(base) is base
