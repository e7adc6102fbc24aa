"""Models as Hugging Face folders: every version there and back, what its usual loader expects, what others write.

Equal means to the bit. v0, v1 and v2 of v7's first layer, which nothing reads, have no place in fla's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import errors, formats, weights
from rookery.cli.main import main
from rookery.formats import Tensor, folder
from tolerances import LOGITS_TEXT

FIXTURES = Path(__file__).parent / "fixtures"
OWN = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")
SHARED = (
    *(f"synth-{v}.pth" for v in ("4v0", "5v1", "5v2", "6v0-timestate", "6v0", "7v0")),
    *(f"tiny-rwkv-{v}.pth" for v in ("4v0-660K", "5v2-730K", "6v0-1m", "7v0-834K")),
    *(f"tiny-rwkv-{v}.bin" for v in ("5v2-730K-FP16", "5v2-730K-Q5_1", "7v0-834K-Q5_1")),
)
UNUSED = {"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"}
PROMPT = [79, 110, 99, 101, 32, 117, 112, 111, 110, 32, 97, 32, 116, 105, 109, 101]
Arrays = dict[str, Tensor]
Make = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """`made("v7")`: that fixture as a folder."""

    def make(name: str, to: str = "m") -> Path:
        weights.convert(FIXTURES / f"{name}.safetensors", tmp_path / to, to="hf")
        return tmp_path / to

    return make


def change(path: Path, file: str = "config.json", **values: Any) -> None:
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | values))


def rewrite(path: Path, change: Callable[[Arrays], Arrays]) -> None:
    """The folder's weights, without the metadata that we leave there."""
    tensors = formats.read(path / "model.safetensors").tensors
    copies = {name: Tensor(t.dtype, t.shape, t.data.copy()) for name, t in tensors.items()}
    formats.write(path / "model.safetensors", change(copies))


def check_equal(one: weights.Weights, other: weights.Weights) -> None:
    assert one.config == other.config
    assert set(one.tensors) - UNUSED == set(other.tensors) - UNUSED
    for name in set(one.tensors) - UNUSED:
        mine, theirs = one.tensors[name], other.tensors[name]
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
        np.testing.assert_array_equal(mine.stored(), theirs.stored(), strict=True)


def check_there_and_back(source: Path, tmp_path: Path) -> None:
    weights.convert(source, tmp_path / "m", to="hf")
    weights.convert(tmp_path / "m", tmp_path / "back.safetensors")
    weights.convert(tmp_path / "m", tmp_path / "again", to="hf")
    weights.convert(source, tmp_path / "plain.safetensors")  # what has no place elsewhere, blocks, is float32 here too
    plain = weights.load(tmp_path / "plain.safetensors")
    wanted, _ = rookery.load(tmp_path / "plain.safetensors", backend="reference").forward(PROMPT, every=True)
    for path in (tmp_path / "m", tmp_path / "back.safetensors", tmp_path / "again"):
        found = weights.load(path)
        check_equal(found, plain)
        assert found.lineage == plain.lineage
        logits, _ = rookery.load(path, backend="reference").forward(PROMPT, every=True)
        np.testing.assert_array_equal(logits, wanted, strict=True)


@pytest.mark.parametrize("name", OWN)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    check_there_and_back(FIXTURES / f"{name}.safetensors", tmp_path)


@pytest.mark.parametrize("name", SHARED)
def test_trained_models_there_and_back(name: str, shared: Path, tmp_path: Path) -> None:
    check_there_and_back(shared / "fixtures" / "models" / name, tmp_path)


@pytest.mark.parametrize("name", OWN)
def test_the_weights_open_without_their_folder(name: str, made: Make) -> None:
    check_equal(weights.load(made(name) / "model.safetensors"), weights.load(FIXTURES / f"{name}.safetensors"))


# -- what the loaders expect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own", "synth-4v0.pth", "tiny-rwkv-4v0-660K.pth"])
def test_transformers_runs_our_v4(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers import RwkvForCausalLM

    own = FIXTURES / "v4.safetensors"
    source = own if name == "own" else request.getfixturevalue("shared") / "fixtures" / "models" / name
    weights.convert(source, tmp_path / "m", to="hf")
    theirs = RwkvForCausalLM.from_pretrained(tmp_path / "m").eval()
    tokens = list(b'{"instruction": "Write a story about a goose.", "input": "", "output": "Once')
    with torch.no_grad():
        wanted = theirs(torch.tensor([tokens])).logits[0].numpy()
    logits, _ = rookery.load(tmp_path / "m").forward(tokens, every=True)
    assert np.abs(wanted).max() > 1
    assert np.abs(logits - wanted).max() <= LOGITS_TEXT
    assert theirs.config.eos_token_id is None
    assert theirs.generation_config.eos_token_id is None


def fla_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The state dict of fla's RWKV7ForCausalLM, as its modules declare it (fla/models/rwkv7, fla/layers/rwkv7.py)."""
    width, hidden, heads = c["hidden_size"], c["intermediate_size"], c["num_heads"]
    ranks = {"w": "decay", "a": "a", "v": "v", "g": "gate"}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (c["vocab_size"], width),
        "lm_head.weight": (c["vocab_size"], width),
    }
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.attn_norm", f"{layer}.ffn_norm", f"{layer}.attn.g_norm"]
        shapes |= {f"{layer}.attn.x_{x}": (1, 1, width) for x in "rwkvag"}
        shapes |= {f"{layer}.attn.{x}_proj.weight": (width, width) for x in "rkvo"}
        shapes |= {f"{layer}.attn.k_k": (width,), f"{layer}.attn.k_a": (width,), f"{layer}.ffn.x_k": (width,)}
        shapes |= {f"{layer}.attn.r_k": (heads, c["head_dim"])}
        shapes |= {f"{layer}.ffn.key.weight": (hidden, width), f"{layer}.ffn.value.weight": (width, hidden)}
        for x in "wavg" if i else "wag":
            rank = c[f"{ranks[x]}_low_rank_dim"]
            shapes |= {f"{layer}.attn.{x}_lora.lora.0.weight": (rank, width)}
            shapes |= {f"{layer}.attn.{x}_lora.lora.2.weight": (width, rank)}
            if x != "g":
                shapes |= {f"{layer}.attn.{x}_lora.lora.2.bias": (width,)}
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def test_fla_finds_all_its_tensors(made: Make) -> None:
    path = made("v7")
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == ["RWKV7ForCausalLM"]
    assert config["model_type"] == "rwkv7"
    written = {name: t.shape for name, t in formats.read(path / "model.safetensors").tensors.items()}
    assert written == fla_shapes(config)
    ours, theirs = weights.load(FIXTURES / "v7.safetensors").tensors, formats.read(path).tensors
    for x, wanted in (("w1", "w_lora.lora.0.weight"), ("v2", "v_lora.lora.2.weight")):
        np.testing.assert_array_equal(
            theirs[f"model.layers.1.attn.{wanted}"].array(), ours[f"blocks.1.att.{x}"].array().T
        )


KIN = {
    "v4": ("RwkvForCausalLM", "rwkv", {"attention.time_mix_key", "attention.time_decay"}),
    "v5.2": ("Rwkv5ForCausalLM", "rwkv5", {"attention.time_mix_gate", "attention.ln_x.weight", "attention.time_faaaa"}),
    "v6": ("Rwkv6ForCausalLM", "rwkv6", {"attention.time_maa_k", "attention.time_maa_w1", "feed_forward.time_maa_r"}),
}


@pytest.mark.parametrize("name", KIN)
def test_transformers_and_its_kin_find_their_names(name: str, made: Make) -> None:
    path = made(name)
    config, written = json.loads((path / "config.json").read_text()), formats.read(path).tensors
    architecture, model_type, some = KIN[name]
    assert config["architectures"] == [architecture]
    assert config["model_type"] == model_type
    assert {f"rwkv.blocks.1.{part}" for part in some} <= set(written)
    assert {"rwkv.embeddings.weight", "rwkv.blocks.0.pre_ln.bias", "rwkv.ln_out.weight", "head.weight"} <= set(written)
    assert all(n == "head.weight" or n.startswith("rwkv.") for n in written)
    assert not any(".att." in n or ".ffn." in n or "emb.weight" in n for n in written)
    assert (config["hidden_size"], config["intermediate_size"]) == written[
        "rwkv.blocks.0.feed_forward.value.weight"
    ].shape


def test_eos_is_null_where_a_text_has_no_end(made: Make) -> None:
    for file in ("config.json", "generation_config.json"):
        values = json.loads((made("v4", file) / file).read_text())
        assert values["eos_token_id"] is None
        assert values["bos_token_id"] is None


# -- what others write -------------------------------------------------------------------------------------------------


def check_same_as(path: Path, name: str, eps: float = 64e-5) -> None:
    found, wanted = weights.load(path, group_norm_eps=eps), weights.load(FIXTURES / f"{name}.safetensors")
    check_equal(found, wanted)


def test_older_fla_files_stack_the_six_mixes(made: Make) -> None:
    def stacked(tensors: Arrays) -> Arrays:
        for i in range(3):
            rows = [tensors.pop(f"model.layers.{i}.attn.x_{x}").array().reshape(-1) for x in "rwkvag"]
            tensors[f"model.layers.{i}.attn.x_x"] = Tensor.of(np.stack(rows))
        return tensors

    path = made("v7")
    rewrite(path, stacked)
    assert len(formats.read(path).tensors["model.layers.0.attn.x_x"].shape) == 2
    check_same_as(path, "v7")


def test_fla_takes_its_epsilon_from_the_head_size(made: Make) -> None:
    path = made("v7")
    assert weights.load(path).config.group_norm_eps == 64e-5  # noted by us
    rewrite(path, lambda tensors: tensors)
    found = weights.load(path).config
    assert found.group_norm_eps == pytest.approx(found.head_size * 1e-5)
    assert found.head_size != 64


@pytest.mark.parametrize("prefix", ["rwkv.", "model."])
@pytest.mark.parametrize("name", ["v4", "v5.2", "v6", "v7"])
def test_remote_code_that_keeps_our_names(name: str, prefix: str, made: Make) -> None:
    path = made(name)
    plain = formats.read(FIXTURES / f"{name}.safetensors").tensors
    rewrite(path, lambda _: {n if n == "head.weight" else prefix + n: t for n, t in plain.items()})
    check_same_as(path, name)


def test_a_tied_head(made: Make) -> None:
    path = made("v4")
    change(path, tie_word_embeddings=True)
    rewrite(path, lambda tensors: {n: t for n, t in tensors.items() if n != "head.weight"})
    found = weights.load(path).tensors
    np.testing.assert_array_equal(found["head.weight"].array(), found["emb.weight"].array())
    change(path, tie_word_embeddings=False)
    with pytest.raises(errors.UnknownArchitecture, match=r"without emb\.weight or head\.weight"):
        weights.load(path)


def test_settings_of_another_computation(made: Make) -> None:
    for i, (name, value) in enumerate(
        {"norm_eps": 1e-6, "hidden_act": "relu", "attn": {"layers": [1]}, "layer_norm_epsilon": 1e-3}.items()
    ):
        path = made("v7", str(i))
        change(path, **{name: value})
        with pytest.raises(errors.UnknownArchitecture, match=f"config.json says {name}"):
            weights.load(path)


def test_a_config_of_another_version(made: Make) -> None:
    path = made("v6")
    change(path, model_type="rwkv7")
    with pytest.raises(errors.UnknownArchitecture, match=r"says rwkv7, .* RWKV-6"):
        weights.load(path)
    change(path, model_type=["rwkv7"])  # no name at all says nothing
    weights.load(path)


def test_two_names_of_one_tensor(made: Make) -> None:
    path = made("v7")
    rewrite(path, lambda t: t | {"emb.weight": t["model.embeddings.weight"]})
    with pytest.raises(errors.UnknownArchitecture, match=r"two of its tensors would be emb\.weight"):
        weights.load(path)


@pytest.mark.parametrize("name", ["attn.w_lora.lora.0.weight", "attn.x_x"])
def test_impossible_shapes(name: str, made: Make) -> None:
    path = made("v7")
    rewrite(path, lambda t: t | {f"model.layers.0.{name}": Tensor.of(np.zeros((1, 5, 1), np.float32))})
    with pytest.raises(errors.WrongShape, match="impossible shape"):
        weights.load(path)


STRANGERS = {
    "gpt2": ("transformer.h.0.attn.c_attn.weight", "GPT-2"),
    "mamba": ("backbone.layers.0.mixer.A_log", "Mamba"),
    "llama": ("model.layers.0.self_attn.q_proj.weight", "Llama-like"),
    "rwkv6qwen2": ("model.layers.0.self_attn.time_maa_x", "a Qwen-RWKV hybrid"),
    "arwkv": ("model.layers.0.self_attn.time_mixer.r_k", "a Qwen-RWKV hybrid"),
    "rwkv6": ("model.layers.0.attn.x_proj.0.mu", "an RWKV-6 of the fla library"),
}


@pytest.mark.parametrize("model_type", STRANGERS)
def test_other_models_are_named(model_type: str, tmp_path: Path) -> None:
    name, words = STRANGERS[model_type]
    more = {"model.layers.0.self_attn.q_proj.weight"} if "Qwen" in words else set()
    tensors = {n: Tensor.of(np.zeros((2, 2), np.float32)) for n in sorted({name} | more)}
    folder.write(str(tmp_path / "m"), tensors, {}, {"config.json": {"model_type": model_type}})
    with pytest.raises(errors.UnknownArchitecture, match=words) as caught:
        rookery.load(tmp_path / "m")
    assert f"model_type '{model_type}'" in str(caught.value)


# -- tokenizers and the command line -----------------------------------------------------------------------------------


def world_sized(path: Path) -> Path:
    """A v4 of 65,536 tokens, so small that it can be written in a test."""
    tensors = dict(weights.load(FIXTURES / "v4.safetensors").tensors)
    for name in ("emb.weight", "head.weight"):
        rows = tensors[name].array()
        tensors[name] = Tensor.of(np.resize(rows, (65536, rows.shape[1])))
    formats.write(path, tensors)
    return path


def test_the_world_vocabulary_comes_along(tmp_path: Path) -> None:
    weights.convert(world_sized(tmp_path / "w.safetensors"), tmp_path / "m", to="hf")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)
    vocabulary = tmp_path / "m" / "rwkv_vocab_v20230424.txt"
    text = "Über 7 Gänse 鹅"
    assert rookery.tokenizer.load(vocabulary).encode(text) == rookery.tokenizer.World().encode(text)
    model = rookery.load(tmp_path / "m", backend="reference")
    assert model.tokenizer.name == "world"
    weights.convert(tmp_path / "m", tmp_path / "again", to="hf")
    assert (tmp_path / "again" / vocabulary.name).read_bytes() == vocabulary.read_bytes()
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "m" / "config.json").read_bytes()


def test_a_folder_names_its_tokenizer_and_never_a_path(tmp_path: Path) -> None:
    model = weights.load(FIXTURES / "v7.safetensors")
    formats.write(tmp_path / "x.pth", model.tensors)
    formats.write(tmp_path / "x.safetensors", model.tensors, {"rookery.tokenizer": "bytes"})
    weights.convert(tmp_path / "x.safetensors", tmp_path / "m", to="hf")
    assert rookery.load(tmp_path / "m").tokenizer.name == "bytes"
    secret = tmp_path / "secret.txt"
    secret.write_text("1 'a' 1\n")
    change(tmp_path / "m", "tokenizer_config.json", rookery_tokenizer=str(secret))
    with pytest.raises(errors.TokenizerError, match="unknown tokenizer"):
        _ = rookery.load(tmp_path / "m").tokenizer


def test_an_unknown_tokenizer_leaves_no_files(made: Make) -> None:
    assert sorted(f.name for f in made("v7").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m")
    assert main(["convert", "gosling", path, "--to", "hf", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["format"], written["bytes"]) == ("hf", formats.size(path))
    assert main(["info", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["version"], facts["bytes"]) == ("hf", "7", formats.size(path))
    assert facts["tokenizer"] == {"name": "rwkv_vocab_v20230424.txt", "source": "stored"}
    assert facts["lineage"] == weights.load("gosling").lineage
    assert main(["info", path]) == 0
    assert "RWKV-7" in capsys.readouterr().out
    assert main(["generate", "-m", path, "Once", "-n", "8", "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert main(["generate", "Once", "-n", "8", "--temperature", "0"]) == 0
    assert said == capsys.readouterr().out
    for force in ([], ["--force"]):
        assert main(["convert", "gosling", path, "--to", "hf", *force]) == 2
        assert "not empty; name a new or an empty folder" in capsys.readouterr().err
    shutil.rmtree(path)
    assert main(["info", path]) == 2
