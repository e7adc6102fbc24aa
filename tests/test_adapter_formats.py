"""Adapters in the forms of other programs: RWKV-PEFT's .pth and peft's folders, there and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery import errors, formats, weights
from rookery.formats.tensor import Array, Tensor
from rookery.weights import adapters
from rookery.weights.adapters import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Whole, peft_folder

FIXTURES = Path(__file__).parent / "fixtures"
RANK = 3
MODULES = ("blocks.0.att.receptance", "blocks.1.att.key", "blocks.0.ffn.key", "blocks.1.ffn.value")
Make = Callable[[tuple[int, ...]], Part]
rng = np.random.default_rng(9)


def random(*shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def low_rank(shape: tuple[int, ...], rank: int = RANK, scale: float = 16 / RANK) -> LowRank:
    return LowRank(random(rank, shape[1]), random(shape[0], rank), scale)


def dora(shape: tuple[int, ...]) -> Dora:
    pair = low_rank(shape)
    return Dora(pair.a, pair.b, pair.scale, random(shape[0]))


def pissa(shape: tuple[int, ...]) -> Pissa:
    pairs = low_rank(shape), low_rank(shape)
    return Pissa(pairs[0].a, pairs[0].b, pairs[1].a, pairs[1].b)


def miss(shape: tuple[int, ...]) -> Miss:
    return Miss(random(RANK, shape[0]))  # 3 does not divide the width: the last block is cut


def bat(shape: tuple[int, ...]) -> Bat:
    return Bat(random(shape[1] // 4, 4, 4))


@pytest.fixture(scope="module")
def base() -> weights.Weights:
    return weights.load(FIXTURES / "v7.safetensors")


def adapter(base: weights.Weights, make: Make, whole: tuple[str, ...] = (), **said: Any) -> Adapter:
    parts: dict[str, Part] = {f"{m}.weight": make(base.tensors[f"{m}.weight"].shape) for m in MODULES}
    parts |= {name: Whole(random(*base.tensors[name].shape)) for name in whole}
    made = Adapter(parts, "any", **said)
    made.check(base)
    return made


def same(one: Adapter, other: Adapter) -> None:
    """To the bit: the fingerprint is a digest of kinds, names, shapes and numbers."""
    assert {n: type(p) for n, p in one.parts.items()} == {n: type(p) for n, p in other.parts.items()}
    assert one.fingerprint == other.fingerprint


def check_merges_equal(base: weights.Weights, one: Adapter, other: Adapter) -> None:
    a, b = adapters.merged(base, one), adapters.merged(base, other)
    for name in one.parts:
        np.testing.assert_allclose(a.tensors[name].float32(), b.tensors[name].float32(), rtol=1e-5, atol=1e-5)


def tensors_of(path: Path) -> dict[str, Tensor]:
    return formats.read(path).tensors


def stripped(path: Path, to: Path, rename: Callable[[str], str] = str) -> Path:
    """The file as another program leaves it: without our record, bf16."""
    found = {rename(name): Tensor.of(t.float32(), "bf16") for name, t in tensors_of(path).items()}
    formats.write(to, found, format="pth")
    return to


# RWKV-PEFT's .pth


@pytest.mark.parametrize("make", [low_rank, pissa, miss, bat])
def test_rwkv_peft_there_and_back(base: weights.Weights, make: Make, tmp_path: Path) -> None:
    made = adapter(base, make, ("blocks.0.att.x_r", "ln_out.bias", "emb.weight"))
    adapters.write(made, tmp_path / "a.pth")
    init = tmp_path / "init_pissa.pth" if make is pissa else None
    same(adapters.load(tmp_path / "a.pth", init=init), made)
    assert (tmp_path / "init_pissa.pth").exists() == (make is pissa)


def test_rwkv_peft_names_and_shapes_are_those_of_its_files(base: weights.Weights, tmp_path: Path) -> None:
    adapters.write(adapter(base, low_rank, ("blocks.0.att.x_r",)), tmp_path / "lora.pth")
    adapters.write(adapter(base, miss), tmp_path / "miss.pth")
    adapters.write(adapter(base, bat), tmp_path / "bat.pth")
    c = base.config
    found = {name: t.shape for name, t in tensors_of(tmp_path / "lora.pth").items()}
    assert found["blocks.0.ffn.key.lora_A"] == (RANK, c.n_embd)
    assert found["blocks.0.ffn.key.lora_B"] == (c.n_ffn, RANK)
    assert found["blocks.0.att.x_r"] == (1, 1, c.n_embd)
    assert tensors_of(tmp_path / "miss.pth")["blocks.0.ffn.key.disha"].shape == (RANK, c.n_ffn)
    assert tensors_of(tmp_path / "bat.pth")["blocks.1.ffn.value.disha"].shape == (c.n_ffn // 4, 4, 4)


def test_rwkv_peft_says_no_alpha_and_is_asked_for_it(base: weights.Weights, tmp_path: Path) -> None:
    made = adapter(base, low_rank)
    adapters.write(made, tmp_path / "ours.pth")
    theirs = stripped(tmp_path / "ours.pth", tmp_path / "theirs.pth")
    with pytest.raises(errors.AdapterError, match=r"alpha.*--lora_config.*init_pissa"):
        adapters.load(theirs)
    part = adapters.load(theirs, alpha=32).parts["blocks.0.ffn.key.weight"]
    assert isinstance(part, LowRank)
    assert part.scale == 32 / RANK
    for wrong in (float("nan"), float("inf"), True, "16"):
        with pytest.raises(errors.AdapterError, match="finite number"):
            adapters.load(theirs, alpha=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["model.", "_forward_module.", "_forward_module.model.", "module."])
def test_rwkv_peft_wrappers_names_are_dropped(base: weights.Weights, prefix: str, tmp_path: Path) -> None:
    adapters.write(adapter(base, pissa, ("emb.weight",)), tmp_path / "a.pth")
    theirs = stripped(tmp_path / "a.pth", tmp_path / "b.pth", lambda name: prefix + name)
    init = stripped(tmp_path / "init_pissa.pth", tmp_path / "c.pth", lambda name: f"model.{name}")
    plain = stripped(tmp_path / "a.pth", tmp_path / "d.pth")
    same(adapters.load(theirs, init=init), adapters.load(plain, init=init))


def test_rwkv_peft_pissa_is_the_base_less_what_it_began_as(base: weights.Weights, tmp_path: Path) -> None:
    made = adapter(base, pissa)
    adapters.write(made, tmp_path / "a.pth")
    name = "blocks.0.ffn.key.weight"
    part, w = made.parts[name], base.tensors[name].float32()
    assert isinstance(part, Pissa)
    found = adapters.merged(base, adapters.load(tmp_path / "a.pth", init=tmp_path / "init_pissa.pth"))
    wanted = w - part.b0 @ part.a0 + part.b @ part.a
    np.testing.assert_array_equal(found.tensors[name].float32(), wanted)


def test_rwkv_peft_pissa_wants_the_init_of_its_own(base: weights.Weights, tmp_path: Path) -> None:
    adapters.write(adapter(base, pissa), tmp_path / "a.pth")
    init = tmp_path / "init_pissa.pth"
    with pytest.raises(errors.AdapterError, match="init_pissa"):
        adapters.load(tmp_path / "a.pth")
    with pytest.raises(errors.AdapterError, match="give one"):
        adapters.load(tmp_path / "a.pth", alpha=1, init=init)
    with pytest.raises(errors.CannotWrite, match="exists already"):
        adapters.write(adapter(base, pissa), tmp_path / "b.pth")
    part = dict(list(tensors_of(init).items())[2:])
    formats.write(tmp_path / "part.pth", part)
    with pytest.raises(errors.AdapterError, match="has no init_lora_A and init_lora_B of"):
        adapters.load(tmp_path / "a.pth", init=tmp_path / "part.pth")
    cut = {name: Tensor.of(t.float32()[:2]) for name, t in tensors_of(init).items()}
    formats.write(tmp_path / "cut.pth", cut)
    with pytest.raises(errors.AdapterError, match="other shapes"):
        adapters.load(tmp_path / "a.pth", init=tmp_path / "cut.pth")


def test_bone_is_what_disha_was_called(base: weights.Weights, tmp_path: Path) -> None:
    for make in (miss, bat):
        made = adapter(base, make)
        adapters.write(made, tmp_path / "a.pth")
        found = {name.replace("disha", "bone"): t for name, t in tensors_of(tmp_path / "a.pth").items()}
        formats.write(tmp_path / "b.pth", found)
        same(adapters.load(tmp_path / "b.pth"), made)


def test_rwkv_peft_refuses_what_it_has_no_place_for(base: weights.Weights, tmp_path: Path) -> None:
    def refused(made: Adapter, match: str) -> None:
        with pytest.raises(errors.AdapterError, match=match):
            adapters.write(made, tmp_path / "a.pth")
        assert not (tmp_path / "a.pth").exists()

    refused(adapter(base, dora), r"magnitudes; a Hugging Face folder")
    ranks = iter((1, 2, 3, 4))
    refused(adapter(base, lambda shape: low_rank(shape, next(ranks))), "differ in rank")
    scales = iter((1.0, 2.0, 1.0, 1.0))
    refused(adapter(base, lambda shape: low_rank(shape, scale=next(scales))), r"differ in alpha \(3.0, 6.0\)")
    kinds = iter((low_rank, miss, low_rank, low_rank))
    refused(adapter(base, lambda shape: next(kinds)(shape)), r"differ in method \(lora, miss\)")


A, B = Tensor.of(random(2, 8)), Tensor.of(random(8, 2))
KEY = "blocks.0.att.key"
HOSTILE_PTH: dict[str, tuple[dict[str, Tensor], str]] = {
    "columns": ({f"{KEY}.lora_A": A, f"{KEY}.lora_B": B, f"{KEY}.lora_M": Tensor.of(random(1, 8))}, "those of columns"),
    "half": ({f"{KEY}.lora_A": A}, "lora_A alone"),
    "both": ({f"{KEY}.lora_A": A, f"{KEY}.lora_B": B, f"{KEY}.disha": A}, "no part of an adapter"),
    "twice": ({f"{KEY}.lora_A": A, f"{KEY}.lora_B": B, f"model.{KEY}.lora_A": A}, "twice"),
    "and whole": ({f"{KEY}.lora_A": A, f"{KEY}.lora_B": B, f"{KEY}.weight": A}, "one of them"),
    "no rank": ({f"{KEY}.lora_A": Tensor.of(random(0, 8)), f"{KEY}.lora_B": Tensor.of(random(8, 0))}, "rank, in"),
    "vector": ({f"{KEY}.lora_A": Tensor.of(random(8)), f"{KEY}.lora_B": B}, "rank, in"),
    "nan": ({f"{KEY}.lora_A": A, f"{KEY}.lora_B": Tensor.of(random(8, 2) * np.nan)}, "not finite"),
    "state": ({f"{KEY}.disha": A, "blocks.0.att.time_state": Tensor.of(random(2, 4, 4))}, "--state"),
    "none": ({"a": A}, "not an adapter"),
}


@pytest.mark.parametrize("case", HOSTILE_PTH)
def test_a_wrong_pth_is_refused(case: str, tmp_path: Path) -> None:
    tensors, match = HOSTILE_PTH[case]
    formats.write(tmp_path / "a.pth", tensors)
    with pytest.raises(errors.AdapterError, match=match) as caught:
        adapters.load(tmp_path / "a.pth", alpha=1 if "lora_A" in str(list(tensors)) else None)
    assert "\n" not in str(caught.value)


def test_a_wrong_base_is_known_by_names_shapes_and_by_what_we_left_in_the_file(
    base: weights.Weights, tmp_path: Path
) -> None:
    other = weights.load(FIXTURES / "v6.safetensors")
    made = adapter(base, low_rank, base_fingerprint=base.fingerprint, base_lineage=base.lineage)
    adapters.write(made, tmp_path / "a.pth")
    adapters.write(made, tmp_path / "a", "hf")
    for path in (tmp_path / "a.pth", tmp_path / "a"):
        adapters.load(path).check(base)
        with pytest.raises(errors.AdapterError, match="made for"):
            adapters.load(path).check(other)
    formats.write(tmp_path / "b.pth", {"blocks.9.att.key.disha": A})
    with pytest.raises(errors.AdapterError, match="does not have"):
        adapters.load(tmp_path / "b.pth").check(base)
    formats.write(tmp_path / "c.pth", {"blocks.0.att.key.disha": A})
    with pytest.raises(errors.AdapterError, match="does not fit"):
        adapters.load(tmp_path / "c.pth").check(base)


# peft's folders


@pytest.mark.parametrize("make", [low_rank, dora, miss])
def test_peft_there_and_back(base: weights.Weights, make: Make, tmp_path: Path) -> None:
    made = adapter(base, make, ("head.weight", "blocks.0.ln1.weight", "blocks.0.ln1.bias"), quant="nf4")
    adapters.write(made, tmp_path / "a", "hf")
    found = adapters.load(tmp_path / "a")
    same(found, made)
    assert found.method == {low_rank: "lora", dora: "dora", miss: "miss"}[make]  # type: ignore[comparison-overlap]


def test_peft_ranks_and_alphas_by_module(base: weights.Weights, tmp_path: Path) -> None:
    each = iter([(2, 0.1), (2, 0.1), (5, 1 / 3), (4, 7.0)])
    made = adapter(base, lambda shape: low_rank(shape, *next(each)))
    adapters.write(made, tmp_path / "a", "hf")
    config = json.loads((tmp_path / "a" / peft_folder.CONFIG).read_text())
    assert config["r"] == 2
    assert config["rank_pattern"] == {"blocks.0.ffn.key": 5, "blocks.1.ffn.value": 4}
    same(adapters.load(tmp_path / "a"), made)


def test_a_pissa_is_a_lora_of_twice_the_rank_in_peft(base: weights.Weights, tmp_path: Path) -> None:
    made = adapter(base, pissa)
    adapters.write(made, tmp_path / "a", "hf")
    found = adapters.load(tmp_path / "a")
    assert json.loads((tmp_path / "a" / peft_folder.CONFIG).read_text())["r"] == 2 * RANK
    check_merges_equal(base, made, found)


def test_peft_refuses_what_it_has_no_place_for(base: weights.Weights, tmp_path: Path) -> None:
    def refused(made: Adapter, match: str) -> None:
        with pytest.raises(errors.AdapterError, match=match):
            adapters.write(made, tmp_path / "a", "hf")
        assert not (tmp_path / "a").exists()

    refused(adapter(base, bat), "by rows")
    refused(adapter(base, low_rank, ("blocks.0.att.x_r",)), "blocks.0.att is not tuned as a whole; Rookery's own")
    refused(adapter(base, low_rank, ("blocks.0.ln1.weight",)), "not tuned as a whole")
    ranks = iter((1, 2, 3, 4))
    refused(adapter(base, lambda shape: Miss(random(next(ranks), shape[0]))), "differ in rank")
    embedding = Adapter({"emb.weight": low_rank(base.tensors["emb.weight"].shape)}, "lora")
    refused(embedding, "emb.weight")
    with pytest.raises(errors.CannotWrite, match="choose"):
        adapters.write(adapter(base, low_rank), tmp_path / "a.gguf")


def folder(tmp_path: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as peft writes it, of LoRA with rank 2 unless told otherwise."""
    path = tmp_path / "theirs"
    path.mkdir(exist_ok=True)
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["key"], "init_lora_weights": True}
    (path / peft_folder.CONFIG).write_text(json.dumps(usual | config))
    formats.write(path / peft_folder.TENSORS, tensors, {"format": "pt"})
    return path


def pair(module: str, rows: int = 8, columns: int = 8, rank: int = 2) -> dict[str, Tensor]:
    name = f"base_model.model.{module}"
    a, b = Tensor.of(random(rank, columns)), Tensor.of(random(rows, rank))
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.0.att.key", "blocks.0.att.key.weight"),
        ("model.blocks.0.att.key", "blocks.0.att.key.weight"),
        ("model.layers.3.attn.r_proj", "blocks.3.att.receptance.weight"),
        ("model.layers.3.attn.o_proj", "blocks.3.att.output.weight"),
        ("model.layers.3.ffn.key", "blocks.3.ffn.key.weight"),
        ("lm_head", "head.weight"),
        ("rwkv.blocks.2.attention.key", "blocks.2.att.key.weight"),
        ("rwkv.blocks.2.feed_forward.receptance", "blocks.2.ffn.receptance.weight"),
    ],
)
def test_peft_names_of_every_loader(theirs: str, ours: str, tmp_path: Path) -> None:
    found = adapters.load(folder(tmp_path, pair(theirs)))
    assert list(found.parts) == [ours]


def test_what_lies_transposed_in_fla_and_in_an_embedding_is_turned(tmp_path: Path) -> None:
    tensors = pair("model.layers.1.attn.w_lora.lora.0", 4, 8)
    table = "base_model.model.model.embeddings"
    a, b = random(2, 30), random(8, 2)
    tensors |= {f"{table}.lora_embedding_A": Tensor.of(a), f"{table}.lora_embedding_B": Tensor.of(b)}
    parts = adapters.load(folder(tmp_path, tensors)).parts
    w1, embedding = parts["blocks.1.att.w1"], parts["emb.weight"]
    assert isinstance(w1, LowRank)
    assert isinstance(embedding, LowRank)
    assert (w1.b @ w1.a).shape == (8, 4)
    np.testing.assert_allclose(embedding.b @ embedding.a, (b @ a).T, rtol=1e-6)


def test_a_change_of_fla_s_low_rank_pairs_merges(base: weights.Weights, tmp_path: Path) -> None:
    name = "blocks.1.att.w1"
    columns, rows = base.tensors[name].shape  # there it is a linear [out, in], here w1 [in, out]
    tensors = pair("model.layers.1.attn.w_lora.lora.0", rows, columns)
    a, b = (t.float32() for t in tensors.values())
    found = adapters.merged(base, adapters.load(folder(tmp_path, tensors)))
    wanted = base.tensors[name].float32() + 2 * (b @ a).T
    np.testing.assert_allclose(found.tensors[name].float32(), wanted, rtol=1e-5, atol=1e-6)


def test_what_peft_adds_to_a_folder(tmp_path: Path) -> None:
    """Modules saved under the wrapper's name, and a copy of the base's embedding, which changes nothing."""
    head = random(30, 8)
    tensors = pair("blocks.0.att.key") | {
        "base_model.model.head.modules_to_save.weight": Tensor.of(head),
        "base_model.model.emb.base_layer.weight": Tensor.of(head),
    }
    parts = adapters.load(folder(tmp_path, tensors)).parts
    assert set(parts) == {"blocks.0.att.key.weight", "head.weight"}
    assert isinstance(parts["head.weight"], Whole)
    np.testing.assert_array_equal(parts["head.weight"].value, head)


def test_peft_patterns_are_names_and_the_first_counts(tmp_path: Path) -> None:
    tensors = pair("blocks.0.att.key") | pair("blocks.10.att.key", rank=3) | pair("blocks.0.ffn.key")
    patterns = {"blocks\\.10\\.att\\.key": 3}, {"^blocks.0.att.key$": 1, "att.key": 30, "key": 8}
    parts = adapters.load(folder(tmp_path, tensors, rank_pattern=patterns[0], alpha_pattern=patterns[1])).parts
    assert {name: part.scale for name, part in parts.items() if isinstance(part, LowRank)} == {
        "blocks.0.att.key.weight": 0.5,
        "blocks.10.att.key.weight": 10.0,
        "blocks.0.ffn.key.weight": 4.0,
    }


def test_a_pissa_of_peft_needs_what_it_began_as(tmp_path: Path) -> None:
    first, last = pair("blocks.0.att.key"), pair("blocks.0.att.key")
    init = folder(tmp_path, first)
    init = init.rename(tmp_path / "init")
    path = folder(tmp_path, last, init_lora_weights="pissa_niter_4")
    with pytest.raises(errors.AdapterError, match="path_initial_model_for_weight_conversion"):
        adapters.load(path)
    part = adapters.load(path, init=init).parts["blocks.0.att.key.weight"]
    names = [f"base_model.model.blocks.0.att.key.lora_{x}.weight" for x in "AB"]
    w = random(8, 8)
    a0, b0, a1, b1 = (source[name].float32() for source in (first, last) for name in names)
    np.testing.assert_allclose(part.changed(w), w - 2 * b0 @ a0 + 2 * b1 @ a1, rtol=1e-5, atol=1e-5)
    wider = folder(tmp_path, pair("blocks.0.att.key", rank=4), r=4)
    with pytest.raises(errors.AdapterError, match="another rank"):
        adapters.load(wider, init=init)


HOSTILE_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"peft_type": "LOHA"}, "LORA and MISS are read"),
    "no method": ({"peft_type": None}, "LORA and MISS are read"),
    "listed method": ({"peft_type": ["LORA"]}, "LORA and MISS are read"),
    "rank": ({"r": 2**40}, "has 2 rows, where"),
    "no rank": ({"r": None}, "r is 'None'"),
    "true rank": ({"r": True}, "r is 'True'"),
    "infinite alpha": ({"lora_alpha": 10**400}, "finite number is wanted"),
    "text alpha": ({"lora_alpha": "4"}, "finite number is wanted"),
    "pattern": ({"rank_pattern": {"(a+)+$": 2}}, "names of modules are understood"),
    "pattern list": ({"alpha_pattern": [1]}, "alpha_pattern from names to numbers"),
    "pattern value": ({"alpha_pattern": {"key": []}}, "finite number is wanted"),
    "bias": ({"bias": "all"}, "'bias' to 'all'"),
    "turned": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "parameters": ({"target_parameters": ["att.r_k"]}, "target_parameters"),
    "layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "unknown": ({"use_tomorrow": {"x": 1}}, "use_tomorrow"),
    "loftq": ({"init_lora_weights": "loftq", "loftq_config": {"bits": 4}}, "loftq"),
    "init": ({"init_lora_weights": "other"}, "init_lora_weights 'other'"),
    "init list": ({"init_lora_weights": ["pissa"]}, "is not known"),
    "dora": ({"use_dora": True}, "no part of an adapter"),
    "dora as text": ({"use_dora": "yes"}, "wanted true or false"),
    "miss": ({"peft_type": "MISS"}, "no part of a MiSS"),
    "mini": ({"peft_type": "MISS", "init_weights": "mini"}, "mini"),
    "bat": ({"peft_type": "MISS", "init_weights": "bat"}, "by rows"),
}


@pytest.mark.parametrize("case", HOSTILE_CONFIGS)
def test_a_wrong_config_is_refused(case: str, tmp_path: Path) -> None:
    config, match = HOSTILE_CONFIGS[case]
    path = folder(tmp_path, pair("blocks.0.att.key"))
    adapters.load(path)
    path = folder(tmp_path, pair("blocks.0.att.key"), **config)
    with pytest.raises(errors.AdapterError, match=match) as caught:
        adapters.load(path)
    assert "\n" not in str(caught.value)


NAME = "base_model.model.blocks.0.att.key"
HOSTILE_TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "half": ({f"{NAME}.lora_A.weight": A}, "no part of an adapter"),
    "more": (pair("blocks.0.att.key") | {f"{NAME}.miss_block": A}, "no part of an adapter"),
    "nan": (pair("blocks.0.att.key") | {f"{NAME}.lora_B.weight": Tensor.of(random(8, 2) * np.inf)}, "not finite"),
    "flat": (pair("blocks.0.att.key") | {f"{NAME}.lora_A.weight": Tensor.of(random(8))}, "no part of an adapter"),
    "twice": (pair("blocks.0.att.key") | {f"{NAME}.lora_A.default.weight": A}, "twice"),
    "two names": (pair("blocks.0.att.key") | pair("rwkv.blocks.0.attention.key"), "twice"),
    "and whole": (pair("blocks.0.att.key") | {f"{NAME}.weight": A}, "one of them"),
    "nothing": ({"base_model.model.emb.base_layer.weight": A}, "without a part"),
}


@pytest.mark.parametrize("case", HOSTILE_TENSORS)
def test_wrong_tensors_are_refused(case: str, tmp_path: Path) -> None:
    tensors, match = HOSTILE_TENSORS[case]
    with pytest.raises(errors.AdapterError, match=match):
        adapters.load(folder(tmp_path, tensors))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
    max_leaves=4,
)
SETTINGS = sorted(peft_folder.HARMLESS | peft_folder.READ | {"bias", "fan_in_fan_out", "loftq_config", "x"})


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("fuzz"), pair("blocks.0.att.key"))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(SETTINGS), JSON, max_size=3))
def test_no_config_does_anything_but_load_or_be_refused(theirs: Path, config: dict[str, Any]) -> None:
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": True}
    (theirs / peft_folder.CONFIG).write_text(json.dumps(usual | config))
    with suppress(errors.RookeryError):
        part = adapters.load(theirs).parts["blocks.0.att.key.weight"]
        assert isinstance(part, LowRank)
        assert np.isfinite(part.scale)


def test_a_folder_is_not_trusted_with_paths_or_pickles(tmp_path: Path) -> None:
    path = folder(tmp_path, pair("blocks.0.att.key"))
    outside = (path / peft_folder.TENSORS).rename(tmp_path / "outside.safetensors")
    with pytest.raises(errors.MissingShard, match="lacks its file"):
        adapters.load(path)
    (path / peft_folder.TENSORS).symlink_to(outside)
    with pytest.raises(errors.BadOffset, match="leads out of the folder"):
        adapters.load(path)
    (path / peft_folder.TENSORS).unlink()
    formats.write(path / "adapter_model.bin", pair("blocks.0.att.key"), format="pth")
    assert list(adapters.load(path).parts) == ["blocks.0.att.key.weight"]
    (path / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(errors.UnknownFormat, match="never run"):
        adapters.load(path)
    (path / peft_folder.CONFIG).write_text('{"lora_alpha": NaN}')
    with pytest.raises(errors.BadHeader):
        adapters.load(path)


def test_a_model_or_nothing_given_as_an_adapter(base: weights.Weights, tmp_path: Path) -> None:
    weights.convert(FIXTURES / "v7.safetensors", tmp_path / "model", to="hf")
    with pytest.raises(errors.AdapterError, match=r"without adapter_config\.json"):
        adapters.load(tmp_path / "model")
    with pytest.raises(errors.AdapterError, match="not an adapter; wanted"):
        adapters.load(FIXTURES / "v7.safetensors")
    with pytest.raises(errors.MissingFile):
        adapters.load(tmp_path / "none")
    assert not adapters.is_one(tmp_path / "model")
    assert not adapters.is_one(FIXTURES / "v7.safetensors")
    made = adapter(base, low_rank)
    for name, to in (("a.pth", "pth"), ("a", "hf"), ("a.safetensors", "rookery")):
        adapters.write(made, tmp_path / name, to)
        assert adapters.is_one(tmp_path / name)


def test_arguments_for_files_of_others_are_refused_where_the_file_says_it(
    base: weights.Weights, tmp_path: Path
) -> None:
    adapters.write(adapter(base, low_rank), tmp_path / "a.safetensors")
    adapters.write(adapter(base, low_rank), tmp_path / "a", "hf")
    for path in (tmp_path / "a.safetensors", tmp_path / "a"):
        with pytest.raises(errors.AdapterError, match="--alpha"):
            adapters.load(path, alpha=8)
    adapters.write(adapter(base, miss), tmp_path / "miss.pth")
    adapters.write(adapter(base, miss), tmp_path / "miss", "hf")
    for path in (tmp_path / "miss.pth", tmp_path / "miss"):
        with pytest.raises(errors.AdapterError, match="--init"):
            adapters.load(path, init=tmp_path / "a")
