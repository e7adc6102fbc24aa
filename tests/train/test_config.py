"""Settings: TOML, key=value on top, old flags, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rookery.errors import InputError
from rookery.train import config
from rookery.train.config import Settings, load

LEAST = ["train=x.txt", "tokens=1000"]


def flat(settings: Settings) -> dict[str, Any]:
    return {name: value for topic in config.as_dict(settings).values() for name, value in topic.items()}


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_file_and_what_lies_on_top(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        'tokens = 2e7\n[model]\nn_embd = 128\nversion = 7\nranks = { w = 16 }\n[data]\ntrain = ["a", "b"]\n'
        "reset = true\n[optimiser]\nlr_init = 1\n",
    )
    s = load(path, ["lr_init=3e-4", "model.n_layer=4", "out = runs/one", "validation=c"])
    assert (s.optimiser.tokens, s.optimiser.lr_init, s.model.n_layer) == (20_000_000, 3e-4, 4)
    assert (s.model.version, s.model.ranks, s.model.n_embd) == ("7", {"w": 16}, 128)
    assert (s.data.train, s.data.validation, s.data.reset) == (("a", "b"), ("c",), True)
    assert s.run.out == "runs/one"
    assert type(s.optimiser.tokens) is int


def test_a_table_of_its_own_for_ranks(tmp_path: Path) -> None:
    s = load(file(tmp_path, "[model.ranks]\nw = 8\ng = 9\n"), LEAST)
    assert s.model.ranks == {"w": 8, "g": 9}


@pytest.mark.parametrize(
    ("item", "name", "value"),
    [
        ("version=5.2", "version", "5.2"),
        ("version=5.0", "version", "5.0"),
        ('version="6"', "version", "6"),
        ("out=2026-11-21", "out", "2026-11-21"),
        ("out=1_000", "out", "1_000"),
        ("out=true", "out", "true"),
        ("out='a b'", "out", "a b"),
        ("proj_dir=07", "out", "07"),
        ("sample_prompt=a = b", "sample_prompt", "a = b"),
        ("tokens=1e6", "tokens", 1_000_000),
        ("tokens=1_000_000", "tokens", 1_000_000),
        ("grad_cp=1", "grad_cp", True),
        ("grad_cp=false", "grad_cp", False),
        ("weight_decay=0", "weight_decay", 0.0),
        ('train=["a", "b"]', "train", ("a", "b")),
        ("ranks={ w = 3 }", "ranks", {"w": 3}),
        ("model.ranks={ v = 3 }", "ranks", {"v": 3}),
    ],
)
def test_values_of_overrides(item: str, name: str, value: object) -> None:
    found = flat(load(None, [*LEAST, "head_size=8", item]))[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("lr_int=1", r"the command line: unknown key 'lr_int'; the nearest name is lr_init"),
        ("data.lr_init=1", r"unknown key 'lr_init'; lr_init belongs under \[optimiser\]"),
        ("n_layer", r"'n_layer': an override is key=value"),
        ("n_layer=1", r"model\.n_layer = 1: 2 or more"),
        ("n_layer=2.5", r"model\.n_layer = 2\.5: a whole number"),
        ("n_layer=true", r"model\.n_layer = True: a whole number"),
        ("batch=inf", r"optimiser\.batch = inf: a whole number"),
        ("batch=nan", r"optimiser\.batch = nan: a whole number"),
        ("lr_init=nan", r"optimiser\.lr_init = nan: more than 0"),
        ("lr_init=inf", r"optimiser\.lr_init = inf: more than 0"),
        ("lr_init=fast", r"optimiser\.lr_init = 'fast': a number"),
        ("grad_clip=-1", r"optimiser\.grad_clip = -1\.0: 0 or more"),
        ("weight_decay=nan", r"optimiser\.weight_decay = nan: 0 or more"),
        ("validate_every=-5", r"run\.validate_every = -5: 0 or more"),
        ("vocab_size=-1", r"model\.vocab_size = -1: 0 or more"),
        ("grad_cp=yes", r"run\.grad_cp = 'yes': true or false"),
        ("version=8", r"model\.version = '8': 4, 5\.0, 5\.1, 5\.2, 6 or 7"),
        ("n_embd=100", r"model\.n_embd = 100: a multiple of 64"),
        ("train=[1]", r"data\.train = \[1\]: a list of names"),
        ("train=[]", r"data\.train is empty"),
        ("tokens=0", r"optimiser\.tokens = 0: how many tokens"),
        ("ranks={ w = 0 }", r"model\.ranks = .*a table of whole numbers"),
        ("ranks={ w = true }", r"model\.ranks = .*a table of whole numbers"),
        ("beta2=1", r"optimiser\.beta2 = 1\.0: from 0 to less than 1"),
        ("precision=tf32", r"run\.precision = 'tf32': fp32 or bf16"),
        ("lr_schedule=cos", r"run|optimiser\.lr_schedule = 'cos': recipe, cosine"),
        ("head_qk=64", r"unknown key 'head_qk'"),
        ("devices=auto", r"devices = 'auto': a whole number"),
    ],
)
def test_a_wrong_override_is_told_so(item: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(None, [*LEAST, item])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimizer]\nlr_init = 1\n", r"unknown table \[optimizer\]; the nearest name is \[optimiser\]"),
        ("[model]\nlr_init = 1\n", r"\[model\]: unknown key 'lr_init'; lr_init belongs under \[optimiser\]"),
        ("[model]\nn_layers = 3\n", r"\[model\]: unknown key 'n_layers'; the nearest name is n_layer"),
        ("model = 3\n", r"unknown key 'model'"),
        ("[model\n", r"run\.toml: not TOML"),
        ("[run]\nout = 2026-11-21\n", r"run\.out = .*: text is wanted"),
        (f"batch = {10**400}\n", r"optimiser\.batch = 10+: a whole number is wanted"),
        (f"lr_init = {10**400}\n", r"optimiser\.lr_init = 10+: a number is wanted"),
        ("tokens = 1" + "0" * 5000 + "\n", r"run\.toml: not TOML: "),
        ("train = " + "[" * 5000 + "\n", r"run\.toml: not TOML: "),
    ],
)
def test_a_wrong_file_is_told_so(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(file(tmp_path, text), LEAST)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1" + "0" * 5000, "[" * 5000])
def test_an_override_beyond_all_measure_is_told_so(value: str) -> None:
    with pytest.raises(InputError, match=r"optimiser\.tokens = .*: a whole number is wanted"):
        load(None, [*LEAST, f"tokens={value}"])


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(str(tmp_path / "none.toml"), LEAST)
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        load(str(tmp_path / "run.toml"), LEAST)


def test_names_are_unique_and_explained() -> None:
    names = [f.name for cls in config.TOPICS.values() for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    assert not set(names) & set(config.TOPICS)
    assert set(config.OLD_NAMES.values()) <= set(names)
    assert not set(config.OLD_NAMES) & set(names)


def test_the_description_is_the_defaults_as_toml(tmp_path: Path) -> None:
    said = tomllib.loads(config.describe())
    assert {t: set(keys) for t, keys in said.items()} == {t: set(v) for t, v in config.as_dict(Settings()).items()}
    s = load(file(tmp_path, config.describe()), LEAST)
    assert s == load(None, LEAST)


def test_steps_reach_the_last_token() -> None:
    s = load(None, ["train=x", "tokens=1025", "batch=2", "ctx_len=8"])
    assert (s.tokens_a_step, s.steps) == (16, 65)


# The command of RWKV-LM RWKV-v7/train_temp/demo-training-run.sh, its shell variables filled in, on two nodes of four.
DEMO = """
 --load_model "0" --wandb "Test" --proj_dir out/L12-D768-x070 --my_testing x070 --ctx_len 512 --train_stage 3
 --epoch_count 999999 --epoch_begin 0 --data_file "data/minipile" --my_exit_tokens 1498226207 --magic_prime 2926181
 --num_nodes 2 --micro_bsz 16 --n_layer 12 --n_embd 768 --kernel @rwkv3 --lr_init 6e-4 --lr_final 6e-5
 --warmup_steps 10 --beta1 0.9 --beta2 0.99 --adam_eps 1e-18 --data_type "binidx" --vocab_size 65536
 --weight_decay 0.001 --epoch_save 10 --head_size 64 --head_chunk 0 --accelerator gpu --devices 4 --precision bf16
 --strategy deepspeed_stage_2 --grad_cp 1 --enable_progress_bar True
"""


def test_the_reference_command_is_understood() -> None:
    words = shlex.split(DEMO)
    s = load(None, [f"{flag[2:]}={value}" for flag, value in zip(words[::2], words[1::2], strict=True)])
    assert (s.model.version, s.model.n_layer, s.model.n_embd, s.model.vocab_size) == ("7", 12, 768, 65536)
    assert s.model.load_model == ""
    assert (s.data.train, s.data.ctx_len) == (("data/minipile",), 512)
    o = s.optimiser
    assert (o.tokens, o.micro_batch, o.batch) == (1_498_226_207, 16, 16 * 8)
    assert (o.lr_init, o.lr_final, o.warmup_steps, o.adam_eps) == (6e-4, 6e-5, 10, 1e-18)
    assert (s.run.out, s.run.device, s.run.precision, s.run.grad_cp) == ("out/L12-D768-x070", "cuda", "bf16", True)
    assert s.run.strategy == "auto"
    assert s.run.save_every == 10 * 40_320 // 128
    assert s.run.wandb == "Test"


def test_old_counts_do_not_overrule_new_ones() -> None:
    s = load(None, [*LEAST, "micro_bsz=4", "devices=2", "batch=12", "epoch_save=1", "save_every=7"])
    assert (s.optimiser.micro_batch, s.optimiser.batch, s.run.save_every) == (4, 12, 7)
    assert load(None, [*LEAST, "epoch_save=0", "head_qk=0"]).run.save_every == 200
