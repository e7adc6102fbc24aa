"""From files to models: detection, checked shapes, foreign names, exact conversion, fingerprints."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import errors, formats, weights
from rookery.architecture import VERSIONS, Config
from rookery.formats.tensor import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
OWN = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]


def tensors(name: str) -> dict[str, Tensor]:
    return dict(formats.read(FIXTURES / f"{name}.safetensors").tensors)


def written(path: Path, content: dict[str, Tensor]) -> Path:
    formats.write(path, content)
    return path


@pytest.mark.parametrize("name", OWN)
def test_the_version_and_sizes_are_read_from_the_tensors(name: str) -> None:
    c = weights.load(FIXTURES / f"{name}.safetensors").config
    assert c.version == name.removeprefix("v").removesuffix("-timestate")
    assert c.n_vocab == 256
    assert c.n_ffn != 4 * c.n_embd
    assert c.tuned_state == name.endswith("timestate")
    if c.version == "7":
        assert c.ranks == {"w": 4, "a": 5, "v": 3, "g": 7}


@pytest.mark.parametrize("name", OWN)
def test_pth_and_safetensors_hold_the_same_bytes_there_and_back(name: str, tmp_path: Path) -> None:
    source = FIXTURES / f"{name}.safetensors"
    weights.convert(source, tmp_path / "a.pth")
    weights.convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    weights.convert(tmp_path / "b.safetensors", tmp_path / "c.pth")
    first, last = formats.read(source).tensors, formats.read(tmp_path / "b.safetensors").tensors
    assert list(first) == list(last)
    for key, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (last[key].dtype, last[key].shape)
        assert np.array_equal(tensor.data, last[key].data)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "c.pth").read_bytes()


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64"])
def test_conversion_keeps_the_stored_type(dtype: str, tmp_path: Path) -> None:
    source = {k: Tensor.of(t.array(), dtype) for k, t in tensors("v7").items()}
    written(tmp_path / "a.safetensors", source)
    weights.convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    again = formats.read(tmp_path / "b.pth").tensors
    for key, tensor in source.items():
        assert again[key].dtype == dtype
        assert np.array_equal(again[key].data, tensor.data)


def test_the_lineage_goes_with_a_conversion_and_the_fingerprint_is_of_the_tensors(tmp_path: Path) -> None:
    source = weights.load(FIXTURES / "v7.safetensors")
    for target in ("a.pth", "b.safetensors"):
        weights.convert(FIXTURES / "v7.safetensors", tmp_path / target)
        again = weights.load(tmp_path / target)
        assert again.fingerprint == source.fingerprint
        assert again.lineage == source.fingerprint
    moved = tensors("v7")
    moved["head.weight"] = Tensor.of(moved["head.weight"].float32() + 1)
    assert weights.load(written(tmp_path / "m.safetensors", moved)).fingerprint != source.fingerprint


def test_quantised_bin_becomes_float32_with_the_lineage_of_the_bin(shared: Path, tmp_path: Path) -> None:
    source = shared / "fixtures/models/tiny-rwkv-7v0-834K-Q5_1.bin"
    weights.convert(source, tmp_path / "a.safetensors")
    a, b = (rookery.load(path, backend="reference") for path in (source, tmp_path / "a.safetensors"))
    assert np.array_equal(a.forward([34, 105, 110])[0], b.forward([34, 105, 110])[0])
    assert b.weights.lineage == a.weights.fingerprint != b.weights.fingerprint


@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K", "6v0-1m", "7v0-834K"])
def test_bin_and_pth_of_one_model_are_one_model(shared: Path, name: str) -> None:
    folder = shared / "fixtures/models"
    ours = weights.load(folder / f"tiny-rwkv-{name}-FP32.bin")
    theirs = weights.load(folder / f"tiny-rwkv-{name}.pth")
    assert {p.name for p in ours.params} == {p.name for p in theirs.params}
    for p in ours.params:
        a, b = ours.tensors[p.name], theirs.tensors[p.name]
        assert a.shape == b.shape == p.file_shape
        np.testing.assert_allclose(a.float32(), b.float32(), rtol=2e-6, atol=1e-7)


def test_convert_refuses_to_overwrite_and_to_overwrite_itself(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    source.write_bytes((FIXTURES / "v7.safetensors").read_bytes())
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / "taken.pth").write_bytes(b"mine")
    with pytest.raises(errors.CannotWrite, match="--force"):
        weights.convert(source, tmp_path / "taken.pth")
    assert (tmp_path / "taken.pth").read_bytes() == b"mine"
    with pytest.raises(errors.CannotWrite, match="itself"):
        weights.convert(source, source, force=True)
    weights.convert(source, tmp_path / "taken.pth", force=True)
    assert formats.detect(tmp_path / "taken.pth") == "pth"
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "taken.pth"]


def test_a_wrapped_training_checkpoint_opens(tmp_path: Path) -> None:
    wrapped = {f"_forward_module.{k}": t for k, t in tensors("v7").items()}
    again = weights.load(written(tmp_path / "w.pth", wrapped))
    assert again.fingerprint == weights.load(FIXTURES / "v7.safetensors").fingerprint


STRANGERS = {
    "model.layers.0.self_attn.q_proj.weight": "Llama-like",
    "gpt_neox.layers.0.attention.query_key_value.weight": "GPT-NeoX",
    "backbone.layers.0.mixer.A_log": "Mamba",
    "transformer.h.0.attn.c_attn.weight": "GPT-2",
    "rnn.weight_ih_l0": "LSTM",
    "blocks.0.att.key.lora_A": "LoRA adapter",
    "blocks.0.att.time_state": "tuned RWKV state",
    "rwkv.blocks.0.attention.key.weight": "part of an RWKV",
    "model.layers.0.attn.r_proj.weight": "fla",
    "model.layers.0.attn.x_proj.0.mu": "RWKV-6 of the fla",
    "model.layers.0.self_attn.time_maa_x": "Qwen-RWKV hybrid",
    "something.else": "nothing known",
}


@pytest.mark.parametrize(("name", "words"), STRANGERS.items())
def test_another_architecture_is_named(name: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {name: Tensor.of(np.zeros((2, 2), np.float32))})
    with pytest.raises(errors.UnknownArchitecture, match=words):
        weights.load(path)


MARKS = [
    "emb.weight", "head.weight",
    *(f"blocks.0.att.{n}" for n in ("key.weight", "gate.weight", "ln_x.weight", "time_maa_x", "r_k", "time_state")),
]  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    for key in tensors(name):
        if name == "v7" and key.startswith(("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")):
            continue  # unused there
        rest = tensors(name)
        del rest[key]
        path = written(tmp_path / "x.safetensors", rest)
        marks_the_version = key in MARKS  # without it the file looks like another version, which lacks something else
        with pytest.raises(errors.ModelError, match=".*" if marks_the_version else re.escape(key)):
            weights.load(path)


@pytest.mark.parametrize("name", OWN)
def test_a_wrong_shape_is_named(name: str, tmp_path: Path) -> None:
    """Every tensor alone one too long in its last axis, and the whole of it flat."""
    for key, tensor in tensors(name).items():
        if name == "v7" and key.startswith(("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")):
            continue
        wrong = tensors(name)
        wrong[key] = Tensor.of(np.zeros((*tensor.shape[:-1], tensor.shape[-1] + 1), np.float32))
        with pytest.raises(errors.ModelError):
            weights.load(written(tmp_path / "x.safetensors", wrong))


def test_unknown_tensors_mean_a_variant(tmp_path: Path) -> None:
    more = tensors("v6") | {"blocks.0.att.gate_w1": Tensor.of(np.zeros((2, 2), np.float32))}
    with pytest.raises(errors.UnknownArchitecture, match="gate_w1"):
        weights.load(written(tmp_path / "x.safetensors", more))


def test_a_gap_in_the_layers_and_a_huge_layer_number(tmp_path: Path) -> None:
    for layer in (7, 10**12):
        moved = {k.replace("blocks.1.", f"blocks.{layer}."): t for k, t in tensors("v6").items()}
        with pytest.raises(errors.ModelError, match="gaps"):
            weights.load(written(tmp_path / "x.safetensors", moved))


def test_the_group_norm_eps_is_kept_and_overridden(tmp_path: Path) -> None:
    path = FIXTURES / "v5.2.safetensors"
    assert weights.load(path).config.group_norm_eps == 64e-5
    assert weights.load(path, group_norm_eps=1e-5).config.group_norm_eps == 1e-5
    weights.convert(path, tmp_path / "a.safetensors")
    assert weights.load(tmp_path / "a.safetensors").config.group_norm_eps == 64e-5
    a, b = (rookery.load(path, group_norm_eps=eps).forward([1, 2])[0] for eps in (None, 1e-5))
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("said", ["many", "nan", "-1", "0"])
def test_an_epsilon_that_is_none(said: str, tmp_path: Path) -> None:
    formats.write(tmp_path / "x.safetensors", tensors("v6"), {"rookery.group_norm_eps": said})
    with pytest.raises(errors.InputError, match="group_norm_eps"):
        weights.load(tmp_path / "x.safetensors")


def test_a_model_file_cannot_make_us_open_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1 'a' 1\n")
    formats.write(tmp_path / "x.safetensors", tensors("v6"), {"rookery.tokenizer": str(tmp_path / "secret")})
    model = rookery.load(tmp_path / "x.safetensors")
    with pytest.raises(errors.TokenizerError, match="unknown tokenizer"):
        _ = model.tokenizer


# The recipe of training.md 1.2, 1.3 by name: (learning-rate scale, weight decay)
GROUPS = {
    "7": {"att.w0": (2, False), "att.w1": (1, False), "att.key.weight": (1, True), "att.r_k": (1, False)},
    "6": {"att.time_decay": (2, False), "att.time_maa_w1": (1, False), "ffn.receptance.weight": (1, True)},
    "5.2": {"att.time_decay": (2, False), "att.time_faaaa": (1, False), "att.gate.weight": (1, True)},
    "5.0": {"att.time_decay": (2, False), "att.time_first": (3, False), "att.ln_x.weight": (1, False)},
    "4": {"att.time_decay": (2, False), "att.time_first": (3, False), "ffn.value.weight": (1, True)},
}


@pytest.mark.parametrize("version", GROUPS)
def test_learning_rates_and_decay_by_the_recipe(version: str) -> None:
    heads = 0 if version == "4" else 2
    c = Config(version, 2, 16, 32, 56, heads, {"w": 2, "a": 2, "v": 2, "g": 2, "maa": 2, "decay": 2})
    table = {p.name: p for p in VERSIONS[version].params(c)}
    for name, (lr, decay) in GROUPS[version].items():
        assert (table[f"blocks.1.{name}"].lr, table[f"blocks.1.{name}"].decay) == (lr, decay), name
    assert table["emb.weight"].decay
    assert not table["ln_out.weight"].decay
    assert not any(p.quantise for p in table.values() if p.kind in ("vector", "lora", "state"))
