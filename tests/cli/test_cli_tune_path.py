"""The whole path as a new user goes it: jsonl, tune, merge, quantize, chat, each a command of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from terminal import Result, finish, start

from rookery import weights

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
EXAMPLE = "examples/tune/gosling.toml"
WORD = "Zibblewick"


def run(*args: object, stdin: str | None = None) -> Result:
    pipe = {} if stdin is None else {"stdin": -1}
    return finish(start(*args, cwd=ROOT, **pipe), None if stdin is None else stdin.encode())


def asked(model: object, *more: object) -> str:
    """What it answers, most likely token by most likely token."""
    said = run("chat", "-m", model, "--temperature", "0", *more, stdin="Where do you live?\n")
    assert said.code == 0, said.err
    return said.out


def test_a_new_word(tmp_path: Path) -> None:
    """Twenty talks teach the packaged model the name of a pond; merged and made small again it still knows it."""
    rows = (ROOT / "examples" / "tune" / "talks.jsonl").read_text().splitlines()
    assert len(rows) == 20
    assert all(WORD in row for row in rows)
    out = tmp_path / "tuned"
    tuned = run("tune", EXAMPLE, f"out={out}", "threads=1", "device=cpu")
    assert tuned.code == 0, tuned.err
    adapter = out / "adapter.safetensors"
    assert str(adapter) in tuned.out
    large, small = tmp_path / "large.gguf", tmp_path / "small.gguf"
    merged = run("merge", "gosling", adapter, large, "--json")
    assert json.loads(merged.out)["changed"] == {"f32": 24}
    assert run("quantize", large, small, "--type", "q4_0").code == 0
    assert small.stat().st_size < Path(weights.load("gosling").path).stat().st_size
    assert WORD in asked(small)
    assert WORD in asked("gosling", "--adapter", adapter)
    assert WORD not in asked("gosling")
    made = weights.load(small)
    assert made.lineage == weights.load(large).lineage != weights.load("gosling").lineage
