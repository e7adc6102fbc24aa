"""The page for people: what it says in Python runs, and the settings that it names exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from rookery.tune import config
from rookery.tune.tuner import Tuner

PAGE = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()


def test_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "Where do you live?", "completion": "In a pond."}] * 4
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Tuner(config.load(None, ["train=rows.jsonl", "out=run", "steps=12", "batch=2", "ctx_len=32"]), live=False).run()
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})
    assert "pond" in capsys.readouterr().out


def test_every_method_and_setting_is_there() -> None:
    for method in config.METHODS:
        assert f"`{method}`" in PAGE
    known = {*config.KEYS.home, *config.KEYS.renamed}
    said = set(re.findall(r"\b([a-z_]+)=[a-z0-9]", "\n".join(re.findall(r"`([^`\n]*)`", PAGE))))
    assert said - known == set() | (said & {"law", "poet"})
