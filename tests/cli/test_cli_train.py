"""`rookery train` as it is typed: what it says, how it ends, which words it takes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import Result, check_mistake, finish, start

from training_runs import config_file, metrics, outcome

torch = pytest.importorskip("torch")

from rookery import formats
from rookery.train import report

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_plot(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(report, "plot", lambda *_: None)
    yield
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return config_file(tmp_path)


def test_a_run(rookery: Run, toml: Path, tmp_path: Path) -> None:
    result = rookery("train", toml)
    assert result.code == 0
    assert result.out == f"wrote {tmp_path}/run/model.safetensors: 8 steps, 512 tokens\n"
    assert "step 8/8 (100.0%)" in result.err
    assert rookery("info", tmp_path / "run" / "model.safetensors").code == 0


def test_json(rookery: Run, toml: Path, tmp_path: Path) -> None:
    result = rookery("train", toml, "tokens=64", "--json")
    out = str(tmp_path / "run")
    assert json.loads(result.out) == {"out": out, "model": f"{out}/model.safetensors", "step": 1}


def test_the_keys_are_a_config(rookery: Run, tmp_path: Path) -> None:
    result = rookery("train", "--keys")
    path = tmp_path / "keys.toml"
    path.write_text(result.out)
    check_mistake(rookery("train", path), "tokens = 0: how many tokens to train on")


def test_the_words_of_rwkv_lm(rookery: Run, toml: Path, tmp_path: Path) -> None:
    flags = "--n_layer 3 --micro_bsz 2 --my_exit_tokens 64 --grad_cp 1 --strategy deepspeed_stage_2 --my_testing x060"
    result = rookery("train", toml, *flags.split(), "--proj_dir", tmp_path / "old", "--lr-init=1e-3")
    assert result.code == 0, result.err
    said = json.loads(rookery("info", tmp_path / "old" / "model.safetensors", "--json").out)
    assert "RWKV-6" in str(said)
    assert "blocks.2.ffn.key.weight" in formats.read(tmp_path / "old" / "model.safetensors").tensors
    assert metrics(tmp_path / "old")[0]["lr"] == pytest.approx(1e-5)


def test_a_dry_run(rookery: Run, toml: Path, tmp_path: Path) -> None:
    text = rookery("train", toml, "--dry-run")
    assert text.code == 0
    for word in ("parameters", "memory", "steps", "time"):
        assert word in text.out
    found = json.loads(rookery("train", toml, "--dry-run", "--json").out)
    assert found["parameters_total"] == sum(found["parameters"].values())
    assert (found["steps"], found["total"] > 0) == (8, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: CONFIG"),
        (["nowhere.toml"], "nowhere.toml: no such file"),
        (["{toml}", "{toml}"], "one CONFIG is wanted"),
        (["{folder}/text.txt"], "text.txt: not TOML"),
        (["{folder}"], "cannot be read"),
        (["{toml}", "learning_rat=1"], "unknown key 'learning_rat'; the nearest name is"),
        (["{toml}", "--ctx_length", "8"], "unknown key 'ctx_length'; the nearest name is ctx_len"),
        (["{toml}", "ctx_len=many"], "ctx_len = 'many': a whole number"),
        (["{toml}", "tokenizer=bites"], "bites"),
        (["{toml}", "train={folder}/none.txt"], "none.txt"),
        (["{toml}", "train={folder}/empty.txt"], "empty"),
        (["{toml}", "out={folder}/text.txt"], "text.txt: is a file; name a folder for the run with out="),
        (["{toml}", "out={folder}/text.txt/run"], "text.txt/run: cannot be made"),
        (["{toml}", "vocab_size=99"], "the vocabulary has 99"),
        (["{toml}", "load_model={folder}/text.txt"], "text.txt"),
        (["{toml}", "ctx_len=1000000"], "tokens are too few"),
        (["{toml}", "micro_batch=3"], "must divide"),
        (["{toml}", "sample_every=4", "sample_prompt="], "run.sample_prompt is empty"),
        (["{toml}", "lr_init=1e30", "lr_final=1e30", "grad_clip=0", "warmup_steps=0"], "there is no good checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(rookery: Run, toml: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = rookery("train", *(word.format(toml=toml, folder=tmp_path) for word in words))
    kept = [line for line in result.err.splitlines(keepends=True) if "%)  loss" not in line and "preparing" not in line]
    check_mistake(result._replace(err="".join(kept)), said)


def test_a_damaged_checkpoint(rookery: Run, toml: Path, tmp_path: Path) -> None:
    rookery("train", toml, "tokens=384")
    newest = tmp_path / "run" / "checkpoints" / "step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    result = rookery("train", toml)
    assert result.code == 0
    assert f"rookery: passed over a damaged checkpoint: {newest}: " in result.err
    assert "going on after step 3 of 8" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_gone_on_with(rookery: Run, toml: Path, tmp_path: Path, number: int) -> None:
    """In a process of its own, as a user has it; and others do the same to the bit."""
    long = ["tokens=2560", "save_every=1000"]
    assert rookery("train", toml, *long, f"out={tmp_path / 'whole'}").code == 0
    process = start("train", toml, *long, bufsize=0)
    killer = threading.Thread(target=_send_when_it_trains, args=(process, tmp_path / "run" / "metrics.jsonl", number))
    killer.start()
    stopped = finish(process)
    killer.join()
    assert stopped.code == 130, stopped
    step = len(metrics(tmp_path / "run"))
    assert 0 < step < 40
    assert stopped.out == f"stopped after step {step} of 40; the same command goes on from there\n"
    assert "Traceback" not in stopped.err
    again = rookery("train", toml, *long)
    assert again.code == 0
    assert f"going on after step {step} of 40" in again.err
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def _send_when_it_trains(process: Any, path: Path, number: int) -> None:
    wait = threading.Event()
    while process.poll() is None and not (path.is_file() and path.stat().st_size > 500):
        wait.wait(0.02)
    process.send_signal(number)


def test_ctrl_c_before_the_first_step(
    rookery: Run, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While texts are tokenised: nothing half done is left, and the next run does it all."""
    seen: list[int] = []

    def interrupted(*_: object) -> None:
        seen.append(1)
        signal.raise_signal(signal.SIGTERM if len(seen) == 2 else signal.SIGINT)

    monkeypatch.setattr("rookery.train.corpus._encode", interrupted)
    for _ in range(2):
        result = rookery("train", toml)
        assert (result.code, result.out) == (130, "")
        assert list((tmp_path / "run" / "data").iterdir()) == []
        assert "Traceback" not in result.err
    assert seen == [1, 1]
    monkeypatch.undo()
    monkeypatch.setattr(report, "plot", lambda *_: None)
    assert rookery("train", toml).code == 0
