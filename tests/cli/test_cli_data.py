"""`rookery data`: what it writes and says, and one line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from terminal import check_mistake, finish, start

from rookery.train import binidx


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"text": f"Document {i} of many. " * 40} for i in range(50)] + [{"text": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_for_people(rookery: Any, texts: Path, tmp_path: Path) -> None:
    code, out, err = rookery("data", texts, "-o", tmp_path / "t", "--tokenizer", "world")
    assert (code, err) == (0, "")
    assert len(binidx.read(tmp_path / "t").tokens) == 10_100
    size = sum(len(f"Document {i} of many. " * 40) for i in range(50))
    assert out == (
        f"wrote {tmp_path}/t.bin and {tmp_path}/t.idx\n"
        "documents        50 (1 empty left out)\n"
        "tokens           10,100\n"
        f"bytes per token  {size / 10_100:.3f}\n"
        "magic prime      17 (for ctx_len 512)\n"
    )


def test_for_programs(rookery: Any, texts: Path, tmp_path: Path) -> None:
    code, out, _ = rookery("data", texts, "-o", tmp_path / "t", "--tokenizer", "bytes", "--json", "--ctx", "512,90000")
    size = sum(len(f"Document {i} of many. " * 40) for i in range(50))
    assert code == 0
    assert json.loads(out) == {
        "prefix": str(tmp_path / "t"),
        "documents": 50,
        "empty": 1,
        "tokens": size,
        "text_bytes": size,
        "text_tokens": size,
        "bytes_per_token": 1.0,
        "magic_primes": {"512": 71, "90000": None},
    }


def test_repeat_and_token_files(rookery: Any, texts: Path, tmp_path: Path) -> None:
    rookery("data", texts, "-o", tmp_path / "t", "--tokenizer", "bytes")
    code, out, _ = rookery("data", tmp_path / "t", "-o", tmp_path / "twice", "--tokenizer", "bytes", "--repeat", 2)
    assert code == 0
    assert "documents        100\n" in out
    assert "bytes per token" not in out
    once, twice = binidx.read(tmp_path / "t"), binidx.read(tmp_path / "twice")
    assert 2 * sorted(once.item(i).tolist() for i in range(50)) != [twice.item(i).tolist() for i in range(100)]
    assert sorted(2 * [once.item(i).tolist() for i in range(50)]) == sorted(twice.item(i).tolist() for i in range(100))


def test_nothing_is_overwritten_unasked(rookery: Any, texts: Path, tmp_path: Path) -> None:
    old = tmp_path / "t.idx"
    old.write_text("mine")
    again = ("data", texts, "-o", tmp_path / "t", "--tokenizer", "bytes")
    check_mistake(rookery(*again), str(old), "--force overwrites it")
    assert old.read_text() == "mine"
    assert not (tmp_path / "t.bin").exists()
    assert rookery(*again, "--force").code == 0
    assert len(binidx.read(tmp_path / "t")) == 50


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "required"),
        (("IN",), "-o"),
        (("none.txt", "-o", "t"), "none.txt"),
        (("IN", "-o", "t", "--tokenizer", "wurld"), "wurld: is neither a tokenizer nor a file"),
        (("IN", "-o", "t", "--repeat", "0"), "'0' is no whole number of 1 or more"),
        (("IN", "-o", "t", "--ctx", "512,"), "no whole number"),
        (("IN", "-o", "none/t"), "none/t"),
        (("BAD", "-o", "t"), "line 1 has a NUL byte"),
    ],
)
def test_mistakes(
    rookery: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\0")
    monkeypatch.chdir(tmp_path)
    named = {"IN": str(texts), "BAD": "bad.txt"}
    check_mistake(rookery("data", *(named.get(argument, argument) for argument in arguments)), says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "in.jsonl"]


@pytest.mark.skipif(os.name == "nt", reason="signals are sent")
def test_interrupted_with_processes_it_leaves_nothing_and_is_quiet(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes(b"a line of text to be tokenised\n" * 2_000_000)
    (tmp_path / "out").mkdir()
    command = start("data", source, "-o", tmp_path / "out" / "t", "--workers", 2, start_new_session=True)
    while not any(path.stat().st_size for path in (tmp_path / "out").iterdir()):
        assert command.poll() is None, finish(command)
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGINT)  # what Ctrl-C in a terminal sends: to all processes of the command
    result = finish(command)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert not list((tmp_path / "out").iterdir())
