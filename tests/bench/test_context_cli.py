"""`rookery bench context`: its flags, its files, going on, and a user's mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from context_fakes import Clock, Fakes

from rookery.bench import memory
from rookery.bench.context import plot
from rookery.bench.context import point as points
from rookery.bench.context import sweep as sweeps
from rookery.bench.context.settings import QUICK, TRAIN_LENGTHS, Point, Settings
from rookery.cli import bench_context
from rookery.cli.main import main
from rookery.errors import InputError

pytestmark = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("matplotlib") is None, reason="wants the extra train"
)

SMALL = ["--rwkv", "7", "--against", "transformer-mha", "--lengths", "512,2048", "--prefill-lengths", "512", "-t", "1"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    clock = Clock()
    monkeypatch.setattr(points.time, "perf_counter", clock)
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    made = Fakes(clock)
    monkeypatch.setattr(sweeps, "sweep", partial(sweeps.sweep, need=made.need, spawn=made.spawn))
    monkeypatch.setattr(sweeps.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(plot, "all_plots", lambda found: {"decode": str(found["points"]).encode()})  # drawing is slow
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def one(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bench", "context", *map(str, args)])
        return (code, *capsys.readouterr())

    return one


def settings(*args: str) -> Settings:
    found = bench_context.parser().parse_args(["--out", "x", *args])
    made: Settings = bench_context._settings(found)
    return made


def test_a_run_and_the_same_command_again(fakes: Fakes, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, text, err = run(*SMALL, "--out", out)
    assert (code, err) == (0, "")
    assert text == (out / "table.md").read_text()
    assert text.startswith("# Speed and memory against context\n")
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"points.jsonl", "settings.json", "table.csv", "summary.json", "decode.png"} <= set(files)
    fakes.spawned.clear()
    assert run(*SMALL, "--out", out) == (code, text, err)
    assert not fakes.spawned
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    code, text, err = run(*SMALL, "--out", out, "--json")
    assert json.loads(text) == json.loads(files["summary.json"])
    (code, text, err) = run(*SMALL, "--out", out, "--repeats", 6)
    assert (code, text) == (2, "")
    assert err == f"rookery: {out}: holds points of another sweep (settings.repeats 5, now 6); " + (
        "give another folder, or the same settings\n"
    )


def test_what_failed_is_said(fakes: Fakes, run: Run, tmp_path: Path) -> None:
    fakes.broken.add(Point("decode", "rwkv7", 2048))
    code, text, err = run(*SMALL, "--out", tmp_path / "out")
    assert (code, err) == (1, "rookery: decode of rwkv7 at 2,048 failed: ValueError: planted\n")
    assert "failed" in text


def test_defaults_are_those_of_the_settings() -> None:
    found = settings()
    assert found == Settings(found.kinds, threads=found.threads)
    assert found.kinds == (
        "rwkv4", "rwkv5", "rwkv6", "rwkv7", "transformer-gqa", "transformer-mha", "mamba2", "lstm",
    )  # fmt: skip
    page = bench_context.parser().format_help()
    for name in ("layers", "vocab", "dtype", "repeats", "tokens", "seed"):
        line = page.partition(f"--{name} ")[2].partition("--")[0]
        assert f"(default: {getattr(found, name)})" in line
    assert f"(default: {found.parameters // 10**6}M)" in page
    assert f"(default: {found.seconds:.0f})" in page
    assert bench_context._lengths("512,2048,...,524288") == found.lengths
    assert "(default: 512,2048,...,524288)" in page


def test_flags() -> None:
    assert settings("--rwkv", "7", "--against", "lstm", "--native").kinds == ("rwkv7", "rwkv7-native", "lstm")
    assert settings("--rwkv", "none", "--against", "transformer").kinds == ("transformer-gqa", "transformer-mha")
    assert settings("--against", "none").kinds == ("rwkv4", "rwkv5", "rwkv6", "rwkv7")
    assert settings("--parameters", "1.5M", "--memory-limit", "16GB").memory_limit == 16 * 10**9
    assert settings("--prefill-lengths", "none").prefill_lengths == ()
    assert settings("--train").train_lengths == TRAIN_LENGTHS
    assert settings("--train", "--train-lengths", "64").train_lengths == (64,)
    quick = settings("--quick", "--layers", "2")
    assert (quick.parameters, quick.layers) == (QUICK["parameters"], 2)


def test_threads_have_a_processor_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_context, "_processors", lambda: 3)
    assert settings("-t", "3").threads == 3
    with pytest.raises(InputError, match="--threads 4: at most 3 are wanted"):
        settings("-t", "4")


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("512,...,4096", (512, 1024, 2048, 4096)),
        ("512,2048,...,32768", (512, 2048, 8192, 32_768)),
        ("512,...,3000", (512, 1024, 2048, 3000)),
        ("100,...,400,1000000", (100, 200, 400, 1_000_000)),
        ("7", (7,)),
    ],
)
def test_lengths(text: str, lengths: tuple[int, ...]) -> None:
    assert bench_context._lengths(text) == lengths


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--against", "mambo2"], "--against: no model 'mambo2'; did you mean mamba2?"),
        (["--against", "zzz"], "no model 'zzz'; choose from transformer, transformer-gqa"),
        (["--rwkv", "3"], "--rwkv: no RWKV '3'; choose from 4, 5, 6, 7"),
        (["--lengths", "512,1.5"], "--lengths: '1.5' is no whole number of 1 or more"),
        (["--lengths", "512,..."], "'512,...': ... stands between growing lengths"),
        (["--lengths", "...,512"], "'...,512': ... stands between growing lengths"),
        (["--lengths", "512,600,...,2000"], "... stands between growing lengths"),
        (["--lengths", "none"], "no lengths: at least one is wanted"),
        (["--rwkv", "none", "--against", "none"], "at least one is wanted"),
        (["--parameters", "many"], "--parameters: 'many' is no number like 25M"),
        (["--dtype", "int8"], "dtype 'int8': float32 or bfloat16 is wanted"),
        (["--train-lengths", "512"], "--train-lengths is for --train"),
        (["--parameters", "100", "--layers", "9"], "fewer layers or more parameters are wanted"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, args: list[str], said: str) -> None:
    code, out, err = run(*args, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("rookery: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_wanted(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "--out" in err


@pytest.mark.parametrize("missing", ["torch", "matplotlib"])
def test_missing_extras(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(bench_context, "find_spec", lambda name: None if name == missing else object())
    code, _, err = run("--out", tmp_path / "out")
    assert (code, err) == (
        2, f"rookery: rookery bench context ({missing}) needs an optional part: pip install 'rookery[train]'\n",
    )  # fmt: skip


def test_the_other_bench_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rows", "0"]) == 2
    assert "'0' is no whole number of 1 or more" in capsys.readouterr().err
    assert main(["bench", "contexts"]) == 2
    assert "contexts" in capsys.readouterr().err


def test_what_is_written_is_json(fakes: Fakes, run: Run, tmp_path: Path) -> None:
    text = run(*SMALL, "--train", "--out", tmp_path / "out", "--json")[1]
    found: dict[str, Any] = json.loads(text)
    assert found["settings"]["train_lengths"] == list(TRAIN_LENGTHS)
    assert {row["phase"] for row in found["points"]} == {"decode", "prefill", "train"}
