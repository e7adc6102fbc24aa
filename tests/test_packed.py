"""Packed files: the same values as any other file of the model, in panels that lie ready for the native engine."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import _native, formats, weights
from rookery.architecture import Config
from rookery.errors import InputError, ModelError, UnsupportedType, WrongShape
from rookery.formats import Tensor, blocks, panels
from rookery.formats.tensor import plain
from rookery.weights import quantise as room
from rookery.weights.quantise import TYPES, Plan, quantise
from test_quantise import written

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.safetensors"))
AS_IS = Plan(None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model.safetensors")


def pack(source: Path, target: Path, plan: Plan = AS_IS) -> weights.Weights:
    counts = quantise(source, target, plan, force=True, packed=True)
    assert sum(counts.values()) == len(formats.read(target).tensors)
    return weights.load(target)


def same_values(one: weights.Weights, other: weights.Weights) -> None:
    assert one.config == other.config
    assert one.lineage == other.lineage
    for p in one.params:
        if not p.optional:  # what nothing reads
            np.testing.assert_array_equal(one.tensors[p.name].float32(), other.tensors[p.name].float32(), p.name)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_a_gguf_of_that_type_holds(model: Path, tmp_path: Path, dtype: str) -> None:
    if dtype.endswith("k") and not _native.available():
        pytest.skip("the native core is not built")
    for plan in (Plan(dtype), Plan(dtype, head="q8_0", embedding="f16", lora=True)):
        quantise(model, tmp_path / "out.gguf", plan, force=True)
        want, got = weights.load(tmp_path / "out.gguf"), pack(model, tmp_path / "out.safetensors", plan)
        same_values(want, got)
        for p in got.params:
            tensor = got.tensors[p.name]
            row_major = p.kind in ("vector", "embedding", "state") or p.optional
            assert tensor.in_panels != row_major, p.name
            if p.kind == "embedding":
                assert tensor.dtype == want.tensors[p.name].dtype
            if tensor.in_panels:
                kind, turned = panels.parts(tensor.dtype)
                assert turned == (p.kind == "lora")
                assert tensor.data.ctypes.data % 64 == 0
                if p.quantise:
                    assert kind == panels.kind_of(want.tensors[p.name].dtype)
        again = pack(tmp_path / "out.gguf", tmp_path / "again.safetensors")  # the GGUF as it is
        same_values(want, again)
        assert again.tensors["head.weight"].dtype == got.tensors["head.weight"].dtype


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_every_version_gives_the_logits_of_its_source(path: Path, tmp_path: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    out = tmp_path / "out.safetensors"
    source, packed = weights.load(path), pack(path, out)
    same_values(source, packed)
    for p in source.params:
        assert packed.tensors[p.name].dtype == source.tensors[p.name].dtype or not p.optional
    before, after = (rookery.load(p, backend=backend) for p in (path, out))
    want, state = before.forward([1, 2, 3], every=True)
    got, other = after.forward([1, 2, 3], every=True)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(other.vector(), state.vector())


@pytest.mark.skipif(not _native.available(), reason="the native core is not built")
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q5_0", "q5_k", "bf16", "f16", "f32"])
def test_the_native_engine_maps_it_and_gives_the_bits_of_the_gguf(model: Path, tmp_path: Path, dtype: str) -> None:
    quantise(model, tmp_path / "out.gguf", Plan(dtype))
    packed = pack(model, tmp_path / "out.safetensors", Plan(dtype))
    before, after = (rookery.load(p, backend="native") for p in (tmp_path / "out.gguf", packed.path))
    want, state = before.forward([1, 2, 3], every=True)
    got, other = after.forward([1, 2, 3], every=True)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(other.vector(), state.vector())
    memory = after.runner.memory  # type: ignore[attr-defined]
    assert not memory.copied
    assert memory.mapped == sum(packed.tensors[p.name].nbytes for p in packed.params
                                if p.kind != "vector" and not p.optional)  # fmt: skip


def test_packing_keeps_the_float_types(tmp_path: Path) -> None:
    """The engine rounds what bf16 weights read, so float32 ones stay float32 even where bf16 would hold them."""
    source = tmp_path / "model.safetensors"
    tensors = dict(formats.read(written(source)).tensors)
    for name in ("blocks.0.att.w1", "blocks.0.att.g2", "head.weight"):
        rounded = Tensor.of(tensors[name].array(), "bf16")
        tensors[name] = rounded if name.endswith("g2") else Tensor.of(rounded.float32())
    formats.write(source, tensors)
    packed = pack(source, tmp_path / "out.safetensors")
    same_values(weights.load(source), packed)
    found = [packed.tensors[name].dtype for name in ("blocks.0.att.w1", "blocks.0.att.g2", "head.weight")]
    assert found == ["panel_f32_t", "panel_bf16_t", "panel_f32"]


def test_wider_types_are_rounded_to_float32(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    tensors = {name: Tensor.of(t.array() + 1e-9, "f64") for name, t in formats.read(written(source)).tensors.items()}
    formats.write(source, tensors)
    packed = pack(source, tmp_path / "out.safetensors")
    same_values(weights.load(source), packed)
    assert packed.tensors["blocks.0.ffn.key.weight"].dtype == "panel_f32"


def test_what_goes_along_and_the_way_back(model: Path, tmp_path: Path) -> None:
    metadata = {"rookery.tokenizer": "bytes", "rookery.group_norm_eps": "1e-05", "general.name": "Crow", "other": "?"}
    formats.write(model, formats.read(model).tensors, metadata)
    before = weights.load(model)
    packed = pack(model, tmp_path / "packed.safetensors", Plan("q8_0"))
    assert packed.metadata == {k: v for k, v in metadata.items() if k != "other"} | {"rookery.lineage": before.lineage}
    assert packed.config.group_norm_eps == 1e-5
    for name in ("out.gguf", "out.pth", "out.safetensors"):
        weights.convert(packed.path, tmp_path / name)
        back = weights.load(tmp_path / name)
        same_values(packed, back)
        assert not any(tensor.in_panels for tensor in back.tensors.values())
    unpacked = formats.read(tmp_path / "out.gguf")
    assert "rookery.packed" not in unpacked.metadata
    quantise(model, tmp_path / "want.gguf", Plan("q8_0"))
    for name, tensor in formats.read(tmp_path / "want.gguf").tensors.items():
        np.testing.assert_array_equal(unpacked.tensors[name].data, tensor.data, name)
    half = pack(model, tmp_path / "half.safetensors", Plan("bf16"))
    weights.convert(half.path, tmp_path / "half.pth")
    assert weights.load(tmp_path / "half.pth").tensors["head.weight"].dtype == "bf16"
    weights.convert(half.path, tmp_path / "folder", to="hf")
    same_values(half, weights.load(tmp_path / "folder"))


def test_packed_files_as_a_source(model: Path, tmp_path: Path) -> None:
    half = pack(model, tmp_path / "half.safetensors", Plan("f16", lora=True))
    again = pack(Path(half.path), tmp_path / "again.safetensors")
    assert Path(half.path).read_bytes() == Path(again.path).read_bytes()
    plan = Plan("q5_1", lora=True)
    quantise(half.path, tmp_path / "out.gguf", plan)
    same_values(weights.load(tmp_path / "out.gguf"), pack(Path(half.path), tmp_path / "out.safetensors", plan))
    rounded = tmp_path / "rounded.gguf"
    quantise(model, rounded, Plan("f16", lora=True))
    quantise(rounded, tmp_path / "want.gguf", plan)
    same_values(weights.load(tmp_path / "want.gguf"), weights.load(tmp_path / "out.gguf"))


def test_the_number_of_threads_does_not_show(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantise(model, tmp_path / "one.safetensors", Plan("q5_1"), threads=1, packed=True)
    monkeypatch.setattr(room, "CHUNK", 1000)
    seen: list[tuple[int, int]] = []
    quantise(model, tmp_path / "many.safetensors", Plan("q5_1"), threads=5, packed=True,
             progress=lambda *both: seen.append(both))  # fmt: skip
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "many.safetensors").read_bytes()
    done = [done for done, _ in seen]
    assert done == sorted(done)
    params = weights.load(model).params
    matrices = [p for p in params if p.kind not in ("vector", "state") and not p.optional]
    assert done[-1] == seen[-1][1] == sum(p.file_shape[0] * p.file_shape[1] for p in matrices)


def test_memory_stays_under_three_times_the_largest_tensor(tmp_path: Path) -> None:
    config = Config("7", 2, 256, 16384, 1024, 4, {"w": 32, "a": 32, "v": 32, "g": 32})
    model = written(tmp_path / "model.safetensors", config)
    pack(model, tmp_path / "warm.safetensors", Plan("q8_0"))
    for dtype in ("q4_0", "bf16", None):
        tracemalloc.start()
        quantise(model, tmp_path / "out.safetensors", Plan(dtype), force=True, threads=2, packed=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * 16384 * 256 * 4
    tracemalloc.start()
    opened = weights.load(tmp_path / "out.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.parameters > 8 * peak  # mapped, not read


def test_what_cannot_be(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"packed models are written as safetensors; name the file \.safetensors"):
        quantise(model, tmp_path / "out.gguf", AS_IS, packed=True)
    with pytest.raises(InputError, match="no type to quantise to; choose from q8_0"):
        quantise(model, tmp_path / "out.gguf", AS_IS)
    out = tmp_path / "out.safetensors"
    for value, dtype, part in ((np.nan, "q8_0", "infinity or NaN"), (65520, "f16", "beyond its range")):
        damaged = written(tmp_path / "damaged.safetensors", change={"head.weight": value})
        with pytest.raises(ModelError, match=rf"damaged.safetensors: head.weight does not fit {dtype}: .*{part}"):
            quantise(damaged, out, Plan(dtype), packed=True)
        assert not out.exists()
    same_values(weights.load(damaged), pack(damaged, out, Plan("f32")))


def test_a_q6_k_that_is_no_number(tmp_path: Path) -> None:
    """x8 panels would turn its infinity into NaN."""
    config = Config("7", 1, 256, 256, 256, 4, {"w": 8, "a": 8, "g": 8})
    source = written(tmp_path / "model.safetensors", config)
    tensors = dict(formats.read(source).tensors)
    head = np.zeros(256, blocks.LAYOUT["q6_k"])
    head["d"][7] = np.inf
    tensors["head.weight"] = Tensor("q6_k", (256, 256), head.view(np.uint8))
    formats.write(source, tensors)
    with pytest.raises(ModelError, match=r"head\.weight does not fit q6_k: infinity or NaN"):
        quantise(source, tmp_path / "out.safetensors", AS_IS, packed=True)


# --- files made to hurt


def test_panels_of_the_wrong_tensors(model: Path, tmp_path: Path) -> None:
    """Of vectors they are decoded; of another shape they are refused."""
    tensors = dict(formats.read(model).tensors)
    path = tmp_path / "hostile.safetensors"
    odd = tensors | {
        name: panels.of(tensors[name].reshape(1, tensors[name].size))
        for name in ("ln_out.weight", "blocks.0.att.w0", "blocks.1.ffn.x_k", "blocks.1.att.r_k")
    }
    odd["emb.weight"] = panels.of(tensors["emb.weight"])
    odd["blocks.0.ffn.key.weight"] = panels.of(tensors["blocks.0.ffn.key.weight"], turned=True)
    odd["blocks.0.att.a1"] = panels.of(tensors["blocks.0.att.a1"])
    odd["blocks.1.att.r_k"] = panels.of(tensors["blocks.1.att.r_k"], turned=True)
    formats.write(path, odd)
    want, _ = rookery.load(model, backend="reference").forward([1, 2])
    got, _ = rookery.load(path, backend="reference").forward([1, 2])
    np.testing.assert_array_equal(got, want)
    right = pack(path, tmp_path / "out.safetensors")
    same_values(weights.load(path), right)
    assert right.tensors["blocks.0.ffn.key.weight"].dtype == "panel_f32"
    assert right.tensors["blocks.0.att.a1"].dtype == "panel_f32_t"
    swapped = panels.of(tensors["blocks.0.ffn.key.weight"])
    formats.write(path, tensors | {"blocks.0.ffn.key.weight": Tensor(swapped.dtype, swapped.shape[::-1], swapped.data)})
    with pytest.raises(WrongShape):
        weights.load(path)


def test_panels_under_foreign_names(tmp_path: Path) -> None:
    """fla's names, whose mixes lie stacked and whose pairs are turned."""
    source = next(path for path in FIXTURES if path.stem == "v7")
    weights.convert(source, tmp_path / "folder", to="hf")
    file = tmp_path / "folder" / "model.safetensors"
    held = formats.read(file)
    tensors = {n: panels.of(plain(t)) if len(t.shape) > 1 else t for n, t in held.tensors.items()}
    formats.write(file, tensors, held.metadata)
    got, _ = rookery.load(tmp_path / "folder", backend="reference").forward([1, 2])
    want, _ = rookery.load(source, backend="reference").forward([1, 2])
    np.testing.assert_array_equal(got, want)


def test_other_formats_hold_no_panels(tmp_path: Path) -> None:
    tensor = panels.of(Tensor.of(np.zeros((4, 4), np.float32)))
    for name in ("x.pth", "x.gguf"):
        with pytest.raises(UnsupportedType, match="panel_f32"):
            formats.write(tmp_path / name, {"a": tensor})
