"""Auto classes over folders of every version: the same logits, there and back, no code of a folder run; tokenizers."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rookery
import rookery.hf
from rookery import errors, formats, weights
from rookery.chat import find
from rookery.hf import RwkvForCausalLM, RwkvTokenizer
from tolerances import LOGITS_HALF, LOGITS_RANDOM, LOGITS_TEXT

Folder = Callable[[str], Path]
FIXTURES = Path(__file__).parents[1] / "fixtures"
AUTO = ("v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7", "gosling")
EVERY = ("v4", *AUTO)
IDS = list(b"Once upon a time there was a goose.")
TALK = [{"role": "user", "content": "Who are you?"}]


def change(path: Path, file: str, **values: Any) -> None:
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | values))


def logits_of(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float().numpy()


def engine(path: Path) -> Any:
    return rookery.load(path, backend="reference").forward(IDS, every=True)[0]


@pytest.mark.parametrize("name", AUTO)
def test_auto_classes_open_every_version(name: str, folder: Folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder(name))
    assert isinstance(model, RwkvForCausalLM)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.architecture == weights.load(folder(name)).config
    assert np.abs(logits_of(model) - engine(folder(name))).max() <= LOGITS_RANDOM


def test_v4_is_transformers_own_and_ours_by_name(folder: Folder, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder("v4"))
    ours = RwkvForCausalLM.from_pretrained(folder("v4"))
    assert type(theirs) is transformers.RwkvForCausalLM
    assert np.abs(logits_of(theirs) - logits_of(ours)).max() <= LOGITS_TEXT
    assert np.abs(logits_of(ours) - engine(folder("v4"))).max() <= LOGITS_TEXT
    ours.save_pretrained(tmp_path)
    again = transformers.RwkvForCausalLM.from_pretrained(tmp_path)
    assert np.abs(logits_of(again) - logits_of(ours)).max() <= LOGITS_TEXT


@pytest.mark.parametrize("name", EVERY)
def test_save_pretrained_there_and_back(name: str, folder: Folder, tmp_path: Path) -> None:
    RwkvForCausalLM.from_pretrained(folder(name)).save_pretrained(tmp_path)
    before, after = weights.load(folder(name)), weights.load(tmp_path)
    assert after.config == before.config
    for p in before.params:
        if not p.optional:
            np.testing.assert_array_equal(after.tensors[p.name].array(), before.tensors[p.name].array(), strict=True)
    np.testing.assert_array_equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)),
        logits_of(RwkvForCausalLM.from_pretrained(folder(name))),
    )


@pytest.mark.parametrize(
    ("name", "prefix"), [("v6", "rwkv.blocks.0.attention.key"), ("v7", "model.layers.0.attn.k_proj")]
)
def test_what_is_saved_bears_the_usual_loaders_names(name: str, prefix: str, folder: Folder, tmp_path: Path) -> None:
    RwkvForCausalLM.from_pretrained(folder(name)).save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    mine, usual = (formats.read(path).tensors for path in (tmp_path, folder(name)))
    assert f"{prefix}.weight" in mine
    assert {key: t.shape for key, t in mine.items()} == {key: t.shape for key, t in usual.items()}
    written, usual = (json.loads((path / "config.json").read_text()) for path in (tmp_path, folder(name)))
    same = set(usual) - {"architectures", "torch_dtype", "transformers_version"}
    assert {key: written.get(key) for key in same} == {key: usual[key] for key in same}


@pytest.mark.parametrize("name", EVERY)
def test_state_dicts_in_names_of_files(name: str, folder: Folder) -> None:
    """What Trainer loads when it goes on, and what torch.load gives of a .pth."""
    model = RwkvForCausalLM.from_pretrained(folder(name))
    wanted = logits_of(model)
    source = "gosling" if name == "gosling" else FIXTURES / f"{name}.safetensors"
    for tensors in (formats.read(folder(name)).tensors, weights.load(source).tensors):
        state = {key: torch.from_numpy(t.float32().copy()) for key, t in tensors.items()}
        for p in model.parameters():
            torch.nn.init.zeros_(p)
        model.load_state_dict(state)
        np.testing.assert_array_equal(logits_of(model), wanted)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(state | {"nonsense": torch.zeros(3)})


def test_files_that_are_no_folders(tmp_path: Path) -> None:
    assert RwkvForCausalLM.from_pretrained("gosling").config.eos_token_id == 0
    weights.convert(FIXTURES / "v6.safetensors", tmp_path / "v6.pth")
    model = RwkvForCausalLM.from_pretrained(tmp_path / "v6.pth", output_hidden_states=True)
    assert model.config.model_type == "rwkv6"
    assert model.config.output_hidden_states
    with pytest.raises(errors.MissingFile):
        RwkvForCausalLM.from_pretrained(tmp_path / "nothing.pth")


@pytest.mark.parametrize("name", ["v4", "v6", "v7"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(name: str, dtype: Any, folder: Folder, tmp_path: Path) -> None:
    wide = RwkvForCausalLM.from_pretrained(folder(name))
    wide.to(dtype).save_pretrained(tmp_path)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", device_map="auto", low_cpu_mem_usage=True)
    assert {p.dtype for p in narrow.parameters()} == {dtype}
    same = RwkvForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    found, wanted = logits_of(narrow), logits_of(same)
    assert np.linalg.norm(found - wanted) <= LOGITS_HALF * np.linalg.norm(wanted)
    narrow(torch.tensor([IDS]), labels=torch.tensor([IDS])).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in narrow.parameters() if p.grad is not None)


def test_a_new_model_begins_as_the_table_says() -> None:
    config = rookery.hf.config.Rwkv7Config(vocab_size=64, hidden_size=128, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.blocks[0].att.output.weight.any()
    assert model.blocks[1].att.receptance.weight.any()
    assert model.config.intermediate_size == 512
    assert torch.get_default_dtype() == torch.float32


def test_resized_embeddings(folder: Folder, tmp_path: Path) -> None:
    model = RwkvForCausalLM.from_pretrained(folder("v7"))
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path)
    assert weights.load(tmp_path).config.n_vocab == 300
    assert AutoModelForCausalLM.from_pretrained(tmp_path).head.weight.shape[0] == 300


@pytest.mark.filterwarnings("ignore:.*offload")
def test_parts_on_the_disk_are_refused(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="device_map leaves parts of it"):
        AutoModelForCausalLM.from_pretrained(folder("v7"), device_map={"": "disk"}, offload_folder=str(tmp_path))


def test_what_does_not_fit(folder: Folder) -> None:
    with pytest.raises(errors.InputError, match="RWKV-7"):
        rookery.hf.model.Rwkv6ForCausalLM.from_pretrained(folder("v7"))
    with pytest.raises(errors.InputError, match="RWKV-7"):
        RwkvForCausalLM.from_pretrained(folder("v7"), config=AutoConfig.from_pretrained(folder("v6")))
    with pytest.raises(errors.InputError, match="do not divide"):
        _ = rookery.hf.config.Rwkv6Config(hidden_size=100).architecture


EVIL = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizer
class Config(PreTrainedConfig): model_type = "rwkv7"
class Model(PreTrainedModel): config_class = Config
class Tokenizer(PreTrainedTokenizer): pass
def generate(model, **inputs): pass
"""
REMOTE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}


def test_no_code_of_a_folder_is_run(folder: Folder, tmp_path: Path) -> None:
    path, mark = tmp_path / "m", tmp_path / "ran"
    shutil.copytree(folder("v7"), path)
    (path / "custom_generate").mkdir()
    for file in ("evil.py", "custom_generate/generate.py"):
        (path / file).write_text(EVIL.format(mark=str(mark)))
    change(path, "config.json", auto_map=REMOTE)
    change(path, "tokenizer_config.json", auto_map=REMOTE, tokenizer_class="Tokenizer")
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    AutoConfig.from_pretrained(path, trust_remote_code=True)
    RwkvForCausalLM.from_pretrained(path, trust_remote_code=True)
    assert np.abs(logits_of(model) - engine(path)).max() <= LOGITS_RANDOM
    assert tokenizer("goose")["input_ids"] == list(b"goose")
    assert not mark.exists()
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "again")
    assert not any("evil" in file.read_text() for file in (tmp_path / "again").glob("*.json"))
    with open(path / "evil.py") as code:  # what it would have done
        exec(code.read(), {})
    assert mark.exists()


def test_the_pages_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_a_missing_transformers_is_named() -> None:
    code = "import sys; sys.modules |= {'torch': None, 'transformers': None}; import rookery.hf"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "rookery.errors.MissingExtra: rookery.hf needs an optional part: pip install 'rookery[transformers]'"
        in run.stderr
    )


# -- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Any:
    return RwkvTokenizer()


@pytest.fixture(scope="module")
def gosling(folder: Folder) -> Any:
    return AutoTokenizer.from_pretrained(folder("gosling"), trust_remote_code=True)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.parametrize("name", ["world", "bytes", "utf16le"])
def test_any_text_comes_back(name: str, text: str, world: Any) -> None:
    tokenizer = world if name == "world" else RwkvTokenizer(rookery_tokenizer=name)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(text)) == text
    assert ids == rookery.tokenizer.load(name).encode(text)


@pytest.mark.parametrize("name", ["world", "gosling", "bytes"])
def test_copies_for_workers(name: str, world: Any, gosling: Any) -> None:
    tokenizer = {"world": world, "gosling": gosling}.get(name) or RwkvTokenizer(rookery_tokenizer=name)
    text = "Once upon é<|endoftext|>"
    for made in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert made(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert made.decode(made(text)["input_ids"]) == text


def test_special_tokens_are_signs(world: Any) -> None:
    ids = world("a<|endoftext|>b")["input_ids"]
    assert ids == [98, 0, 99]
    assert world.decode(ids, skip_special_tokens=True) == "ab"
    assert world.decode(ids) == "a<|endoftext|>b"
    assert (world.eos_token_id, world.pad_token_id, world.bos_token_id) == (0, 0, 0)


def test_a_text_that_ends_a_turn_stays_a_text(tmp_path: Path) -> None:
    tokenizer = RwkvTokenizer(eos_token="\n\n")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    for made in (tokenizer, RwkvTokenizer.from_pretrained(tmp_path)):
        assert (made.eos_token_id, made.pad_token_id) == (261, 0)
        assert made("a\n\n<tool>")["input_ids"] == [98, 261, 65530]
        assert made.decode([98, 65530, 261], skip_special_tokens=True) == "a<tool>"


def test_batches_are_padded_on_the_left(gosling: Any) -> None:
    batch = gosling(["goose", "Once upon a time"], padding=True, return_tensors="pt")
    short = gosling("goose")["input_ids"]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0, -len(short) :].tolist() == short
    assert batch["attention_mask"].tolist()[0] == [0] * (batch["input_ids"].shape[1] - len(short)) + [1] * len(short)
    assert batch["attention_mask"][1].all()


def test_the_folders_vocabulary_and_template(gosling: Any, folder: Folder, tmp_path: Path) -> None:
    own = rookery.load("gosling").tokenizer
    text = "The little girl opened the door.\n\nUser: é"
    assert gosling(text)["input_ids"] == own.encode(text)
    asked = gosling.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert asked == "User: Who are you?\n\nAssistant:"
    gosling.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, RwkvTokenizer)
    assert again(text)["input_ids"] == own.encode(text)
    assert again.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == asked
    assert "rwkv_vocab_v20230424.txt" in {path.name for path in tmp_path.iterdir()}
    assert str(tmp_path.parent) not in (tmp_path / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("name", ["v4", "v7"])
def test_a_tokenizer_that_is_named(name: str, folder: Folder, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    assert tokenizer("é")["input_ids"] == [0xC3, 0xA9]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, 0)
    assert tokenizer.decode([0, 0, 97, 98], skip_special_tokens=True) == "ab"
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("é")["input_ids"] == [0xC3, 0xA9]


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_a_saved_folders_vocabulary_goes_along(suffix: str, folder: Folder, tmp_path: Path) -> None:
    """What transformers writes beside the weights, into files that are one piece."""
    RwkvForCausalLM.from_pretrained(folder("gosling")).save_pretrained(tmp_path / "mine")
    AutoTokenizer.from_pretrained(folder("gosling")).save_pretrained(tmp_path / "mine")
    weights.convert(tmp_path / "mine", tmp_path / f"one.{suffix}")
    model, text = rookery.load(tmp_path / f"one.{suffix}"), "Once upon a time"
    assert model.tokenizer.encode(text) == rookery.load("gosling").tokenizer.encode(text)
    template = find.load(None, model.weights.metadata)
    assert template.render(TALK) == "User: Who are you?\n\nAssistant:"


@pytest.mark.parametrize("name", ["v4", "v7"])
def test_a_tokenizer_that_nothing_says(name: str, folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder(name), tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").unlink()
    with pytest.raises(errors.TokenizerError, match='rookery_tokenizer="bytes"'):
        AutoTokenizer.from_pretrained(tmp_path / "m")
    assert AutoTokenizer.from_pretrained(tmp_path / "m", rookery_tokenizer="bytes")("ab")["input_ids"] == [97, 98]
    with pytest.raises(errors.InputError, match="choose from"):
        AutoTokenizer.from_pretrained(tmp_path / "m", rookery_tokenizer="/etc/passwd")


def test_other_models_are_left_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ValueError, match="nonsense"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "GPT2Config"
