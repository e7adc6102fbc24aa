"""The lab's page and its two examples run, in small settings, and say what another way computes too."""

from __future__ import annotations

import csv
import importlib
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import rookery
import tolerances
from rookery.lab.passages import PASSAGES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "state-lab.md"
TEXT = PAGE.read_text(encoding="utf-8")
Table = dict[tuple[str, str, str], float]


def run(*command: str | Path, where: Path) -> str:
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=where, env={**os.environ, **threads}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(path: Path, *keys: str) -> Table:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {tuple(row[key] for key in keys): float(row["estimate"]) for row in rows}  # type: ignore[misc]


def test_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    assert len(blocks) >= 7
    (tmp_path / "page.py").write_text("\n".join(blocks) + "\nprint(effect.change)\n")
    less, more = map(float, re.findall(r"-?[\d.]+", run("page.py", where=tmp_path)))
    assert less < -1  # nats: as the page says, steering has a side
    assert more > 1


def test_the_commands_of_the_page_are_there() -> None:
    lines = re.findall(r"^rookery lab (.*)$", TEXT, re.M)
    assert len(lines) >= 8
    for line in lines:
        name, *rest = shlex.split(line, comments=True)
        command = importlib.import_module(f"rookery.cli.lab_{name.replace('-', '_')}")
        command.parser().parse_args(rest)


def test_links_and_pictures() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    assert len(pictures) == 2
    for picture in pictures:
        data = (PAGE.parent / picture).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000
    for example in re.findall(r"examples/state/\w+\.py", TEXT):
        assert (ROOT / example).is_file()


def captures(prompts: list[str], tokens: int) -> list[np.ndarray]:
    model = rookery.load("gosling")
    found = []
    for prompt in prompts:
        run = model.stream(prompt, max_tokens=tokens, seed=42)
        list(run)
        found.append(run.state.flat.astype(np.float64))
    return found


def test_cold_boot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = ROOT / "examples" / "state" / "cold_boot.py"
    said = run(script, "--prompts", "4", "--ticks", "4", "--tokens", "2", "--out", "out", where=tmp_path)
    assert "after A differ by 0," in said
    assert "layers.3.wkv" in said
    assert (tmp_path / "out" / "cold-boot.png").read_bytes().startswith(b"\x89PNG")
    found = table(tmp_path / "out" / "cold-boot.csv", "system", "component", "metric")

    states = captures([text[:80] for _, text in PASSAGES[:4]], 4)
    deltas = [float(np.linalg.norm(b - a)) / len(a) ** 0.5 for a, b in pairwise(states)]
    mean = sum(deltas) / len(deltas)
    variance = sum((d - mean) ** 2 for d in deltas) / len(deltas)
    exact = {"rel": tolerances.METRIC}
    assert found["the captures", "all", "state_delta"] == pytest.approx(mean, **exact)
    assert found["the captures", "all", "coherence"] == pytest.approx(1 / (1 + variance), **exact)
    hundredfold = found["in units a hundred times smaller", "all", "coherence"]
    assert hundredfold == pytest.approx(1 / (1 + 1e4 * variance), **exact)

    assert found["white noise, mean 0 and sd 1", "all", "coherence"] > 0.999
    assert found["frozen", "all", "rel_delta"] == 0
    assert found["frozen", "all", "coherence"] == 1
    assert 0 < found["carried", "layers.2.wkv", "rel_delta"] < 2
    assert found["floor, one by one", "layers.2.wkv", "rel_delta"] == 0


def test_perturbation(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = ROOT / "examples" / "state" / "perturbation.py"
    said = run(script, "--texts", "2", "--tokens", "8", "--seeds", "1", "--out", "out", where=tmp_path)
    assert "of 24 pushes" in said
    assert (tmp_path / "out" / "perturbation.png").read_bytes().startswith(b"\x89PNG")
    found = table(tmp_path / "out" / "perturbation.csv", "part", "component", "metric")
    effects = {key: value for key, value in found.items() if key[0] == "next token"}
    assert len(effects) == 12
    assert min(effects.values()) > 0
    floor = found["floor", "layers.1.wkv", "another back end"]
    for layer in range(4):
        name = f"layers.{layer}.wkv"
        left = [found["recovery", name, f"left after {t} tokens"] for t in (1, 8)]
        assert 1 > left[0] > left[1] > 10 * floor
    # By the square law a push of 0.1 is worth a hundredth of a push of 1; other directions: times or over 100.
    first = found["recovery", "layers.3.wkv", "KL of the 1st token"]
    assert 1e-4 < first / effects["next token", "layers.3.wkv", "KL / size^2"] < 1
