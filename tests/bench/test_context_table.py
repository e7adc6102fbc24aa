"""What a sweep's rows become: the summary, the table, the CSV and the pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from context_fakes import Clock, Fakes

from rookery.bench import memory
from rookery.bench.context import peers, plot, report, table
from rookery.bench.context import point as points
from rookery.bench.context.settings import Settings
from rookery.bench.context.summary import TITLES, chosen, summary
from rookery.bench.context.sweep import PROCESS, sweep

KINDS = ("rwkv7", "transformer-mha", "rwkv7-native")
SETTINGS = Settings(
    KINDS, lengths=(512, 32_768), constant_lengths=(1_000_000,), prefill_lengths=(512, 8192),
    train_lengths=(512, 65_536), cool_down=0, memory_limit=450_000_000 + PROCESS, seconds=300, threads=2,
)  # fmt: skip
MACHINE = {"processor": "Abacus", "cores": 2, "memory_bytes": 24_000_000_000, "torch": "2.13.0"}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A sweep in which each way to have no value occurs, and native is above the roof."""
    clock = Clock()
    monkeypatch.setattr(points.time, "perf_counter", clock)
    monkeypatch.setattr(memory, "available", lambda: None)
    found = sweep(SETTINGS, tmp_path / "sweep", (fakes := Fakes(clock, {"rwkv7-native": 1.3})).need, fakes.spawn)
    for row in found:
        if row["kind"] == "rwkv7-native" and "runtime" in row:
            row |= {"runtime": "native core", "note": "not in torch"}
        if (row["phase"], row["kind"], row["length"]) == ("prefill", "rwkv7", 8192):
            row |= {"status": "failed", "why": "ValueError: a | b"}
    return found


@pytest.fixture
def found(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return summary(SETTINGS, MACHINE, rows)


def test_the_table(found: dict[str, Any]) -> None:
    assert table.markdown(found) == (Path(__file__).parent / "context_table.md").read_text()


def test_a_wide_range_verifies_nothing(found: dict[str, Any]) -> None:
    for low, high, said in ((0.8, 1.1, "yes"), (0.28, 1.27, "too noisy to say"), (0.9, 0.99, "NO"), (1.1, 3.0, "NO")):
        found["depth_verified"][0] |= {"low": low, "high": high}
        line = next(text for text in table.markdown(found).splitlines() if f"{low:.3f} to {high:.3f}" in text)
        assert said in [cell.strip() for cell in line.split("|")]


def test_cells(found: dict[str, Any]) -> None:
    assert table.absent({"status": "oom", "need_bytes": 17_200_000_000}) == "needs 17.2 GB"
    assert [table.size(n) for n in (None, 5, 1000, 999_600, 2_500_000, 17_250_000_000, 2e12)] == [
        "", "5 B", "1 kB", "1e+03 kB", "2.5 MB", "17.2 GB", "2,000 GB",
    ]  # fmt: skip


def test_all_points_are_in_the_csv(found: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO(table.comma_separated(found))))
    assert len(lines) == len(found["points"])
    assert all(None not in line and None not in line.values() for line in lines)
    deep = next(line for line in lines if (line["kind"], line["length"]) == ("rwkv7", "1000000"))
    assert (deep["phase"], deep["state"], deep["tokens"], deep["weight_bytes"]) == (
        "decode", "injected", "64", "100000000",
    )  # fmt: skip
    assert float(deep["tokens_per_second_median"]) == pytest.approx(41.1, abs=0.1)


def test_the_summary_has_every_point_but_no_samples(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assert len(found["points"]) == len([row for row in rows if row["phase"] != "stream"])
    assert "samples" not in json.dumps(found)
    assert [model["kind"] for model in found["models"]] == list(KINDS)
    assert {(v["kind"], v["length"]) for v in found["injection_verified"]} == {(kind, 512) for kind in KINDS}


def test_the_pictures(found: dict[str, Any], tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib", reason="of the extra train")
    written = report.write(tmp_path, SETTINGS, MACHINE, rows)
    assert written == found
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {
        "table.md", "table.csv", "summary.json", "decode.png", "memory.png", "prefill.png", "train.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_bytes()) == json.loads(json.dumps(found))
    axes = plot.decode(found).axes[0]
    said = [text.get_text() for text in axes.texts]
    assert said == [
        f"{TITLES[row['kind']]}: {table.absent(row)}"
        for row in chosen(found, "decode", measured=False)
        if row["status"] != "measured"
    ]
    solid = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(solid) == {TITLES[kind] for kind in KINDS}
    assert list(solid["RWKV-7"].get_xdata()) == [512, 32_768, 1_000_000]
    assert len({line.get_marker() for line in solid.values()}) == len(KINDS)
    assert sum(line.get_linestyle() == "--" for line in axes.lines) == len(KINDS)
    assert "RUNTIMES DIFFER" in plot.decode(found).get_suptitle()


def test_nothing_measured_is_said_too() -> None:
    rows = [
        {"phase": "decode", "kind": "lstm", "length": n, "status": "oom", "why": "too much", "need_bytes": 10**12,
         "available_bytes": 10**9}
        for n in (512, 1024)
    ]  # fmt: skip
    found = summary(Settings(("lstm",), lengths=(512, 1024)), MACHINE, rows)
    text = table.markdown(found)
    assert "nothing measured" in text
    assert "Roof: not measured" in text
    assert text.count("1,000 GB") == 2 * 4
    assert [draw(found) for draw in (plot.decode, plot.memory, plot.prefill, plot.train)] == [None] * 4


def test_markers_and_titles_for_every_kind() -> None:
    for kind in peers.KINDS:
        assert kind in TITLES
        assert kind in plot.MARKERS
    assert len({plot.colour(kind) for kind in plot.MARKERS}) == len(plot.MARKERS)
    assert len(set(plot.MARKERS.values())) == len(plot.MARKERS)
