"""`rookery merge`: exact, into every format, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminal import MODEL, check_mistake

import rookery as package
import tolerances
from rookery import formats, weights
from rookery.formats.tensor import Array, Tensor
from rookery.weights import Weights, adapters
from rookery.weights.adapters import Adapter, LowRank, Whole, blocks, file

FIXTURES = Path(MODEL).parent
KEY, FFN, MIX = "blocks.1.att.key.weight", "blocks.0.ffn.value.weight", "blocks.0.att.x_k"
TARGETS = ("out.pth", "out.safetensors", "out.gguf", "folder")


def adapter(path: Path, base: Weights, quant: str = "none", r: int = 4, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)

    def values(*shape: int) -> Array:
        return (0.1 * random.standard_normal(shape)).astype(np.float32)

    parts: dict[str, Any] = {}
    for name in (KEY, FFN):
        rows, columns = base.tensors[name].shape
        parts[name] = LowRank(values(r, columns), values(rows, r), 2.0)
    if MIX in base.tensors:
        parts[MIX] = Whole(values(*base.tensors[MIX].shape))
    file.write(path, Adapter(parts, "lora", str(path), {}, base.fingerprint, base.lineage, quant))
    return path


def logits(model: str | Path | Weights, **options: Any) -> Array:
    if isinstance(model, Weights):
        from rookery import backends

        made = package.Model(model, backends.runner(model, "reference", dtype="float64"))
    else:
        made = package.load(model, backend="reference", dtype="float64", tokenizer="bytes", **options)
    out, _ = made.forward(np.arange(12) * 7 % made.config.n_vocab, every=True)
    return out


def same(one: Tensor, other: Tensor) -> bool:
    return np.array_equal(one.float32(), other.float32()) and one.shape == other.shape


@pytest.mark.parametrize("out", TARGETS)
@pytest.mark.parametrize("model", ["v4", "v5.0", "v5.2", "v6", "v7", "gosling", "packed"])
def test_exact_in_every_format(rookery: Any, tmp_path: Path, model: str, out: str) -> None:
    base: Path | str = model if model == "gosling" else FIXTURES / f"{model}.safetensors"
    if model == "packed":
        base = tmp_path / "packed.safetensors"
        rookery("quantize", "gosling", base, "--packed")
    before, target = weights.load(base), tmp_path / out
    path = adapter(tmp_path / "a.safetensors", before)
    to = ["--to", "hf"] if out == "folder" else []
    code, said, err = rookery("merge", base, path, target, *to)
    assert (code, err) == (0, "")
    assert said.startswith(f"wrote {target}: ")
    assert f"changed tensors: {3 if MIX in before.tensors else 2} f32" in said
    after, wanted = weights.load(target), adapters.merged(before, adapters.load(path))
    assert set(after.tensors) >= {p.name for p in before.params if not p.optional}
    for name, tensor in after.tensors.items():
        assert same(tensor, wanted.tensors[name]), name
        if name in (KEY, FFN):
            assert tensor.dtype == "f32"
    assert {t.dtype for t in after.tensors.values()} >= ({"q8_0"} if (model, out) == ("gosling", "out.gguf") else set())
    beside = adapters.beside(before, adapters.load(path))
    assert np.abs(logits(target) - logits(beside)).max() < tolerances.ADAPTER_MERGED
    assert after.lineage == beside.lineage != before.lineage
    story = json.loads(after.metadata["rookery.merged"])
    assert story["base"] == {"file": Path(before.path).name, "lineage": before.lineage}
    assert [a["method"] for a in story["adapters"]] == ["lora"]


def test_vocabulary_and_template_go_along(rookery: Any, tmp_path: Path) -> None:
    path, target = adapter(tmp_path / "a.safetensors", weights.load("gosling")), tmp_path / "out.gguf"
    said = json.loads(rookery("merge", "gosling", path, target, "--dtype", "same", "--json").out)
    assert said == {
        "base": "gosling", "adapters": [str(path)], "target": str(target), "format": "gguf",
        "bytes": target.stat().st_size, "changed": {"q8_0": 2, "f32": 1},
    }  # fmt: skip
    assert rookery("generate", "-m", target, "-n", "4", "--seed", "1", "Once").code == 0
    metadata, before = (weights.load(name).metadata for name in (target, "gosling"))
    for key in ("tokenizer.ggml.model", "tokenizer.chat_template"):
        assert metadata.get(key) == before.get(key)


@pytest.mark.parametrize("kind", list(blocks.BYTES))
@pytest.mark.parametrize("base", [MODEL, "gosling"])
def test_a_rounded_base_is_rounded_again(rookery: Any, tmp_path: Path, base: str, kind: str) -> None:
    before, target = weights.load(base), tmp_path / "out.pth"
    path = adapter(tmp_path / "a.safetensors", before, quant=kind)
    assert rookery("merge", base, path, target).code == 0
    after, part = weights.load(target), adapters.load(path).parts[KEY]
    wanted = part.changed(blocks.rounded(before.tensors[KEY].float32(), kind))
    assert np.array_equal(after.tensors[KEY].float32(), wanted)
    other = "blocks.0.att.key.weight"  # which has no part of its own
    assert np.array_equal(after.tensors[other].float32(), blocks.rounded(before.tensors[other].float32(), kind))
    for name in ("head.weight", "emb.weight", "blocks.1.ln1.weight"):
        assert same(after.tensors[name], before.tensors[name])
    beside = adapters.beside(before, adapters.load(path))
    assert np.abs(logits(target) - logits(beside)).max() < tolerances.ADAPTER_MERGED


def test_another_quantisation_of_the_base_is_not_rounded(rookery: Any, tmp_path: Path) -> None:
    small, target = tmp_path / "small.gguf", tmp_path / "out.pth"
    path = adapter(tmp_path / "a.safetensors", weights.load("gosling"), quant="nf4")
    rookery("quantize", "gosling", small, "--type", "q5_1")
    code, _, err = rookery("merge", small, path, target)
    assert code == 0
    assert err == f"rookery: {path} was trained over nf4; {small} lies in q5_1, and was merged as it is\n"
    wanted = adapters.load(path).parts[KEY].changed(weights.load(small).tensors[KEY].float32())
    assert np.array_equal(weights.load(target).tensors[KEY].float32(), wanted)


def test_scale_type_and_several(rookery: Any, tmp_path: Path) -> None:
    before, target = weights.load(MODEL), tmp_path / "out.pth"
    one, two = (adapter(tmp_path / f"{seed}.safetensors", before, seed=seed) for seed in (1, 2))
    w = before.tensors[KEY].float32()
    first, second = (adapters.load(path).parts[KEY] for path in (one, two))
    assert rookery("merge", MODEL, one, two, target).code == 0
    assert np.array_equal(weights.load(target).tensors[KEY].float32(), second.changed(first.changed(w)))
    assert rookery("merge", MODEL, one, target, "--force").code == 0
    whole = weights.load(target).lineage
    assert rookery("merge", MODEL, one, target, "--scale", "0.5", "--force").code == 0
    half = weights.load(target)
    np.testing.assert_allclose(half.tensors[KEY].float32(), (w + first.changed(w)) / 2, rtol=0, atol=1e-6)
    assert len({whole, half.lineage, before.lineage}) == 3
    for dtype in ("bf16", "f16"):
        assert rookery("merge", MODEL, one, target, "--dtype", dtype, "--force").code == 0
        rounded = Tensor.of(first.changed(w), dtype).float32()
        assert weights.load(target).tensors[KEY].dtype == dtype
        assert np.array_equal(weights.load(target).tensors[KEY].float32(), rounded)


@pytest.mark.parametrize("version", ["v5.2", "v6", "v7"])
@pytest.mark.parametrize("out", ["out.pth", "out.gguf"])
def test_a_tuned_state_goes_into_the_model(rookery: Any, tmp_path: Path, version: str, out: str) -> None:
    model = package.load(FIXTURES / f"{version}.safetensors", backend="reference", dtype="float64", tokenizer="bytes")
    _, state = model.forward(list(b"What it has read"))
    for i in range(model.config.n_layer):
        state.layer(i).att_shift[...] = 0
        state.layer(i).ffn_shift[...] = 0
    tuned, target = tmp_path / "state.safetensors", tmp_path / out
    state.save(tuned)
    result = rookery("merge", model.weights.path, tuned, target)
    assert result.code == 0, result
    assert f"changed tensors: {model.config.n_layer} f32" in result.out
    made = package.load(target, backend="reference", dtype="float64", tokenizer="bytes")
    assert made.config.tuned_state
    there, _ = made.forward(list(b" and more"), every=True)
    here, _ = model.forward(list(b" and more"), package.State.load(tuned, model), every=True)
    assert np.abs(there - here).max() < tolerances.LOGITS_FLOAT64
    assert made.weights.lineage == model.weights.lineage


def test_states_with_token_shifts_are_refused(rookery: Any, tmp_path: Path) -> None:
    model = package.load(MODEL, backend="reference", tokenizer="bytes")
    _, state = model.forward(list(b"read"))
    tuned, target = tmp_path / "state.safetensors", tmp_path / "out.pth"
    state.save(tuned)
    check_mistake(rookery("merge", MODEL, tuned, target), str(tuned), "token shifts", "--force drops them")
    assert not target.exists()
    result = rookery("merge", MODEL, tuned, target, "--force")
    assert (result.code, "its token shifts were dropped" in result.err) == (0, True)
    other = tmp_path / "other.safetensors"
    state.save(other)
    check_mistake(rookery("merge", MODEL, tuned, other, target, "--force"), str(other), "begins with one tuned state")
    check_mistake(rookery("merge", FIXTURES / "v6.safetensors", tuned, tmp_path / "other.pth"), "the state is of")


def test_a_v4_has_no_place_for_a_state(rookery: Any, tmp_path: Path) -> None:
    path = FIXTURES / "v4.safetensors"
    model = package.load(path, backend="reference", tokenizer="bytes")
    model.state().save(tmp_path / "state.safetensors")
    check_mistake(rookery("merge", path, tmp_path / "state.safetensors", tmp_path / "out.pth"), "RWKV-4", "no heads")


def test_refused(rookery: Any, tmp_path: Path) -> None:
    path, target = adapter(tmp_path / "a.safetensors", weights.load("gosling")), tmp_path / "out.pth"
    check_mistake(rookery("merge", MODEL, path, target), str(path), "made for another model")
    check_mistake(rookery("merge", "gosling", MODEL, target), MODEL, "adapter")
    check_mistake(rookery("merge", "gosling", tmp_path / "none.pth", target), "none.pth")
    check_mistake(rookery("merge", "gosling", path, tmp_path / "out.bin"), "out.bin", "name it .safetensors")
    check_mistake(rookery("merge", "gosling", path, target, "--scale", "nan"), "no finite number")
    check_mistake(rookery("merge", "gosling", path, target, "--dtype", "q8_0"), "--dtype")
    check_mistake(rookery("merge", "gosling", path), "required")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    target.write_bytes(b"mine")
    check_mistake(rookery("merge", "gosling", path, target), "--force overwrites it")
    for source in (weights.load("gosling").path, path):
        check_mistake(rookery("merge", "gosling", path, source, "--to", "pth", "--force"), "is the source itself")
    assert target.read_bytes() == b"mine"


def test_a_number_beyond_the_type(rookery: Any, tmp_path: Path) -> None:
    base = weights.load(MODEL)
    huge = Whole(np.full(base.tensors[KEY].shape, 1e5, np.float32))
    file.write(tmp_path / "a.safetensors", Adapter({KEY: huge}, "full", "", {}, base.fingerprint, base.lineage))
    result = rookery("merge", MODEL, tmp_path / "a.safetensors", tmp_path / "out.pth", "--dtype", "f16")
    check_mistake(result, KEY, "does not fit f16", "bf16 holds it")
    assert not (tmp_path / "out.pth").exists()


def test_a_foreign_lora_needs_its_alpha(rookery: Any, tmp_path: Path) -> None:
    base, target = weights.load(MODEL), tmp_path / "out.pth"
    made = adapters.load(adapter(tmp_path / "a.safetensors", base))  # of scale 2 and rank 4
    made.parts.pop(MIX)
    adapters.write(made, tmp_path / "ours.pth", "pth")
    formats.write(tmp_path / "rwkv-1.pth", formats.read(tmp_path / "ours.pth").tensors)  # says nothing of itself
    check_mistake(rookery("merge", MODEL, tmp_path / "rwkv-1.pth", target), "rwkv-1.pth", "alpha")
    assert rookery("merge", MODEL, tmp_path / "rwkv-1.pth", target, "--alpha", "8").code == 0
    assert np.array_equal(
        weights.load(target).tensors[KEY].float32(), made.parts[KEY].changed(base.tensors[KEY].float32())
    )
