"""Quantising: which tensor gets which type, that its values are the encoder's, and what it costs in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import _native, formats, weights
from rookery.architecture import Config, Param, version
from rookery.errors import BackendError, CannotWrite, InputError, ModelError
from rookery.formats import Tensor, blocks
from rookery.weights import quantise as room
from rookery.weights.quantise import TYPES, Plan, quantise

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = Config("7", 2, 64, 300, 256, 2, {"w": 32, "a": 16, "v": 16, "g": 32})


def written(path: Path, config: Config = CONFIG, change: dict[str, Any] | None = None) -> Path:
    """A model of random numbers."""
    random = np.random.default_rng(3)
    tensors = {
        p.name: Tensor.of((0.1 * random.standard_normal(p.file_shape)).astype(np.float32))
        for p in version(config).params(config)
    }
    for name, value in (change or {}).items():
        values = tensors[name].array().copy()
        values[-1, -1] = value
        tensors[name] = Tensor.of(values)
    formats.write(path, tensors)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model.safetensors")


def types(path: Path) -> dict[str, str]:
    return {name: tensor.dtype for name, tensor in formats.read(path).tensors.items()}


@pytest.mark.parametrize("dtype", TYPES)
def test_matrices_are_what_the_encoder_makes_of_them_and_the_rest_is_as_it_was(
    model: Path, tmp_path: Path, dtype: str
) -> None:
    if dtype.endswith("k") and not _native.available():
        pytest.skip("the native core is not built")
    out = tmp_path / "out.gguf"
    counts = quantise(model, out, Plan(dtype))
    before, after = weights.load(model), weights.load(out)
    assert sum(counts.values()) == len(formats.read(out).tensors)
    found: set[str] = set()
    for p in before.params:
        source, got = before.tensors[p.name], after.tensors[p.name]
        if not p.quantise:
            np.testing.assert_array_equal(got.float32().reshape(source.shape), source.float32())
            continue
        wide = source.shape[-1] % 256 == 0
        want = dtype if wide else {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}.get(dtype, dtype)
        assert got.dtype == want
        found.add(want)
        if want in blocks.BLOCKS:
            np.testing.assert_array_equal(got.data, blocks.encode(want, source.float32()))
        else:
            np.testing.assert_array_equal(got.data, Tensor.of(source.float32(), want).data)
    assert dtype in found
    assert after.lineage == before.fingerprint
    assert after.config == before.config


def test_head_embedding_and_low_rank_pairs(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    quantise(model, out, Plan("q4_0", head="q8_0", embedding="f16", lora=True))
    found = types(out)
    assert found["output.weight"] == "q8_0"
    assert found["token_embd.weight"] == "f16"
    assert found["blk.1.channel_mix_key.weight"] == "q4_0"
    assert found["blk.1.time_mix_w1.weight"] == found["blk.1.time_mix_w2.weight"] == "q4_0"
    assert found["blk.1.time_mix_a1.weight"] == "q4_0"  # [16, 64]
    assert found["blk.1.time_mix_a2.weight"] == "f16"  # [64, 16]: rows that are no whole blocks
    before, after = weights.load(model), weights.load(out)
    for name in ("blocks.1.att.w1", "blocks.1.att.w2", "blocks.0.att.g1", "blocks.1.att.v2"):
        rest = after.tensors[name].float32() - before.tensors[name].float32()
        assert np.sqrt(np.mean(rest**2)) < 0.012
    quantise(model, out, Plan("q4_0"), force=True)
    assert types(out)["blk.1.time_mix_w1.weight"] == "f32"


@pytest.mark.parametrize(("wanted", "columns", "got"), [
    ("q4_k", 512, "q4_k"), ("q4_k", 320, "q5_0"), ("q5_k", 96, "q5_1"), ("q6_k", 32, "q8_0"), ("q6_k", 48, "f16"),
    ("q4_0", 31, "f16"), ("bf16", 31, "bf16"), ("f32", 1, "f32"),
])  # fmt: skip
def test_rows_that_are_no_whole_blocks(wanted: str, columns: int, got: str) -> None:
    if wanted.endswith("k") and not _native.available():
        pytest.skip("the native core is not built")
    matrix = Param("m", (2, columns), 0, "att")  # type: ignore[arg-type]
    assert Plan(wanted).of(matrix, columns) == got
    vector = Param("m", (columns,), 0)  # type: ignore[arg-type]
    assert Plan(wanted, lora=True).of(vector, columns) is None


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.safetensors")), ids=lambda p: p.stem)
def test_every_version(path: Path, tmp_path: Path) -> None:
    """Rows of 12 numbers become f16, whatever was asked for."""
    out = tmp_path / "out.gguf"
    quantise(path, out, Plan("q8_0"))
    before, after = (rookery.load(p, backend="reference") for p in (path, out))
    for p in after.weights.params:
        assert after.weights.tensors[p.name].dtype not in blocks.BLOCKS or p.file_shape[-1] % 32 == 0
    want, _ = before.forward([1, 2, 3])
    got, _ = after.forward([1, 2, 3])
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


@pytest.mark.parametrize("name", [
    "tiny-rwkv-4v0-660K.pth", "tiny-rwkv-5v2-730K.pth", "tiny-rwkv-6v0-1m.pth", "tiny-rwkv-7v0-834K.pth",
    "tiny-rwkv-5v2-730K-FP32.bin",
])  # fmt: skip
def test_trained_models_of_every_version_stay_themselves(shared: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.gguf"
    quantise(shared / "fixtures" / "models" / name, out, Plan("q8_0"))
    before, after = (rookery.load(p, backend="reference") for p in (shared / "fixtures" / "models" / name, out))
    assert "q8_0" in {t.dtype for t in after.weights.tensors.values()}
    ids = list(b"It was the best of times")
    want, state = before.forward(ids, every=True)
    got, _ = after.forward(ids, every=True)
    assert 0 < np.sqrt(np.mean((got - want) ** 2)) < 0.02 * want.std()
    state.save(tmp_path / "state")
    rookery.State.load(tmp_path / "state", after, allow_lineage=True)


def test_the_number_of_threads_does_not_show(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantise(model, tmp_path / "one.gguf", Plan("q5_1"), threads=1)
    monkeypatch.setattr(room, "CHUNK", 1000)
    seen: list[tuple[int, int]] = []
    quantise(model, tmp_path / "many.gguf", Plan("q5_1"), threads=5, progress=lambda *both: seen.append(both))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()
    done = [done for done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1] == sum(p.file_shape[0] * p.file_shape[1] for p in weights.load(model).params
                                          if p.quantise)  # fmt: skip


def test_blocks_of_the_same_type_stay_as_they_are(model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    quantise(model, once, Plan("q4_1"))
    quantise(once, twice, Plan("q4_1"))
    first, second = formats.read(once), formats.read(twice)
    assert all(np.array_equal(t.data, second.tensors[name].data) for name, t in first.tensors.items())
    assert first.metadata["rookery.lineage"] == second.metadata["rookery.lineage"]
    assert int(second.metadata["general.file_type"]) == 3


def test_memory_stays_under_three_times_the_largest_tensor(tmp_path: Path) -> None:
    config = Config("7", 2, 256, 16384, 1024, 4, {"w": 32, "a": 32, "v": 32, "g": 32})
    model = written(tmp_path / "model.safetensors", config)
    largest = 16384 * 256 * 4
    quantise(model, tmp_path / "warm.gguf", Plan("q8_0"), threads=2)
    for dtype in ("q4_0", "q8_0", "bf16", "f32"):
        tracemalloc.start()
        quantise(model, tmp_path / "out.gguf", Plan(dtype), force=True, threads=2)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * largest


def test_what_cannot_be(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, source = tmp_path / "out.gguf", model.rename(tmp_path / "model")
    for plan in (("q3_k",), ("q8_0", "int4"), ("q8_0", None, "Q8_0")):
        with pytest.raises(InputError, match=r"no type .* choose from q8_0"):
            Plan(*plan)
    with pytest.raises(InputError, match=r"name the file \.gguf"):
        quantise(model, tmp_path / "out.pth", Plan("q8_0"))
    with pytest.raises(CannotWrite, match="is the source itself"):
        quantise(source, source, Plan("q8_0"), force=True)
    out.write_text("mine")
    with pytest.raises(CannotWrite, match="--force"):
        quantise(source, out, Plan("q8_0"))
    assert out.read_text() == "mine"
    monkeypatch.setattr(_native, "reason", "not built")
    with pytest.raises(BackendError, match="encoding q5_k needs the native core"):
        Plan("q8_0", head="q5_k")


@pytest.mark.parametrize(("value", "dtype", "part"), [
    (np.nan, "q8_0", "infinity or NaN"), (np.inf, "q4_0", "infinity or NaN"), (-np.inf, "f16", "infinity or NaN"),
    (65520, "f16", "a number beyond its range; bf16 holds it"),
])  # fmt: skip
def test_numbers_that_a_type_cannot_hold(tmp_path: Path, value: float, dtype: str, part: str) -> None:
    model, out = written(tmp_path / "model.safetensors", change={"head.weight": value}), tmp_path / "out.gguf"
    with pytest.raises(ModelError, match=f"model.safetensors: output.weight does not fit {dtype}: {part}"):
        quantise(model, out, Plan(dtype))
    assert not out.exists()
    quantise(model, out, Plan("f32"))
