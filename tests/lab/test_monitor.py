"""The monitor: what it measures is what the metrics say of the captures, and its log outlives the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import errors
from rookery.lab import journal, metrics, monitor
from rookery.lab.monitor import Monitor, read
from rookery.state import State

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOKENS = np.random.default_rng(0).integers(0, 256, 40)


def open_(name: str = "v7") -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes")


def measured(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("time", "run", "sequence")}


@pytest.mark.parametrize("name", ["v4", "v5.2", "v7"])
def test_a_row_is_what_the_metrics_say(name: str, tmp_path: Path) -> None:
    model, log, ranks = open_(name), tmp_path / "log", name != "v4"
    heard: list[Any] = []
    with model.trace("state.*", every=8) as t, Monitor(model, log, window=3, every=8, ranks=ranks, on_row=heard.append):
        model.forward(TOKENS)
    rows = list(read(log))
    assert heard == rows
    assert [row["tokens"] for row in rows] == t.tokens.tolist() == [8, 16, 24, 32, 40]
    flat = np.concatenate([t[point].reshape(5, -1) for point in t.names], axis=1)
    states = [metrics.parts(State(model.config, capture, model.weights)) for capture in flat]
    deltas = [metrics.state_delta(a, b) for a, b in pairwise(states)]
    rel = [metrics.rel_delta(a["layers.1.wkv"], b["layers.1.wkv"]) for a, b in pairwise(states)]
    assert not {"delta", "rel_delta", "coherence", "coherence_cv"} & rows[0].keys()
    assert [row["delta"] for row in rows[1:]] == deltas
    assert [row["rel_delta"]["wkv"][1] for row in rows[1:]] == rel
    for i, row in enumerate(rows):
        for piece in ("att_shift", "ffn_shift", "wkv"):
            assert row["rms"][piece][1] == metrics.rms(states[i][f"layers.1.{piece}"])
        if ranks:
            spectrum = metrics.singular_values(states[i]["layers.1.wkv"])
            assert row["effective_rank"][1] == metrics.effective_rank(spectrum).tolist()
        assert row["nonfinite"] == {}
    for i in (3, 4):
        assert rows[i]["coherence"] == metrics.coherence(deltas[:i], window=3)
        steadiness = metrics.coherence_cv(rel[:i], window=3)
        assert (rows[i]["coherence_cv"]["wkv"][1], rows[i]["mean_rel_delta"]["wkv"][1]) == steadiness


def test_going_on_with_a_log_is_as_never_having_stopped(tmp_path: Path) -> None:
    model = open_()
    prompts = [TOKENS[:20], TOKENS[3:33], TOKENS[9:]]
    with Monitor(model, tmp_path / "whole", window=5, every=4) as whole:
        for prompt in prompts:
            model.forward(prompt)
    for i, prompt in enumerate(prompts, 1):
        with Monitor(model, tmp_path / "parts", window=5, every=4) as m:
            model.forward(prompt)
        assert m.rows[-1]["run"] == i
    assert [*map(measured, read(tmp_path / "parts"))] == [*map(measured, read(tmp_path / "whole"))]
    assert len(m.rows) == len(whole.rows) == 5
    assert [*map(measured, m.rows)] == [*map(measured, whole.rows)]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, log = open_(), tmp_path / "log"
    with Monitor(model, log, window=5, every=1):
        model.forward(TOKENS)
    monkeypatch.setattr(journal, "BLOCK", 100)  # less than a line
    parsed = 0
    loads = json.loads

    def counted(line: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return loads(line)

    monkeypatch.setattr(json, "loads", counted)
    with Monitor(model, log, window=5, every=1) as m:
        pass
    assert [row["tokens"] for row in m.rows] == [36, 37, 38, 39, 40]
    assert parsed < 35


def test_a_monitored_run_gives_the_same_bits_and_ends_with_its_block(tmp_path: Path) -> None:
    model = open_()
    logits, state = model.forward(TOKENS)
    with Monitor(model, tmp_path / "log", every=3):
        watched, after = model.forward(TOKENS)
    assert np.array_equal(watched, logits)
    assert np.array_equal(after.flat, state.flat)
    m = Monitor(model, tmp_path / "log")

    def broken() -> None:
        with m:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert model.traces is None
    with Monitor(model, tmp_path / "log"):  # nobody holds it
        pass


def test_memory_is_bounded(tmp_path: Path) -> None:
    model = open_()
    with Monitor(model, tmp_path / "log", window=4, every=1) as m:
        for _ in range(3 * monitor.KEPT):
            model.forward([1, 2])
        assert len(m._before) == monitor.KEPT
        assert len(m.rows) == 4
    assert len(list(read(tmp_path / "log"))) == 6 * monitor.KEPT


def test_sequences_of_a_batch_are_compared_each_with_itself(tmp_path: Path) -> None:
    model = open_()
    with Monitor(model, tmp_path / "both", every=4):
        model.forward_batch([TOKENS[:12], TOKENS[20:32]])
    alone = {}
    for i, tokens in enumerate((TOKENS[:12], TOKENS[20:32])):
        with Monitor(model, tmp_path / f"{i}", every=4):
            model.forward(tokens)
        alone[i] = list(read(tmp_path / f"{i}"))
    for i, rows in alone.items():
        mine = [row for row in read(tmp_path / "both") if row["sequence"] == i]
        assert [row.get("delta") for row in mine] == [row.get("delta") for row in rows]
        assert [row.get("rel_delta") for row in mine] == [row.get("rel_delta") for row in rows]


def test_what_is_not_finite_is_counted_and_null(tmp_path: Path) -> None:
    model = open_()
    state = model.state()
    state.layer(1).wkv[0, 0, 0] = np.inf
    with pytest.warns(UserWarning, match="NaN or infinite"), Monitor(model, tmp_path / "log", every=1) as m:
        model.forward([1, 2, 3], state)
    rows = list(read(tmp_path / "log"))
    assert all(row["nonfinite"]["layers.1.wkv"] > 0 for row in rows)
    assert sum(row["nonfinite"]["layers.1.wkv"] for row in rows) == m.nonfinite["state.layers.1.wkv"]
    assert rows[-1]["delta"] is rows[-1]["rms"]["wkv"][1] is rows[-1]["rel_delta"]["wkv"][1] is None
    assert rows[-1]["coherence"] is rows[-1]["coherence_cv"]["wkv"][1] is None
    assert rows[-1]["rel_delta"]["wkv"][0] > 0
    with Monitor(model, tmp_path / "log", window=64, every=1) as again:  # the nulls are read back as what they are
        model.forward([1, 2])
    assert again.rows[-1]["delta"] > 0
    assert again.rows[-1]["coherence"] is None


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 60, "line"])
def test_a_line_cut_short_is_skipped_and_said(lost: int | str, tmp_path: Path) -> None:
    model, log = open_(), tmp_path / "log"
    with Monitor(model, log, every=8):
        model.forward(TOKENS)
    data = log.read_bytes()
    log.write_bytes(data[: -lost if isinstance(lost, int) else data[:-1].rindex(b"\n") + 2])
    with pytest.warns(UserWarning, match="the last line was cut short and is left out"):
        assert [row["tokens"] for row in read(log)] == [8, 16, 24, 32]
    m = Monitor(model, log, every=8)
    with pytest.warns(UserWarning, match="cut short"):
        m.__enter__()
    assert [row["tokens"] for row in m.rows] == [8, 16, 24, 32]
    model.forward(TOKENS[:8])
    m.__exit__(None, None, None)
    assert [row["tokens"] for row in read(log)] == [8, 16, 24, 32, 8]


CHILD = """
import sys, warnings, rookery
from rookery.lab.monitor import Monitor
warnings.simplefilter("ignore")
model = rookery.load(sys.argv[1], tokenizer="bytes")
with Monitor(model, sys.argv[2], every=1, on_row=lambda row: print(row["tokens"], flush=True)):
    state = None
    while True:
        state = model.forward(1, state)[1]
"""


def test_a_killed_monitor_leaves_every_row_that_was_told_of(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = [sys.executable, "-c", CHILD, FIXTURES / "v7.safetensors", log]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(20):
            child.stdout.readline()
        with pytest.raises(errors.CannotWrite, match="another monitor is writing it"), Monitor(open_(), log):
            pass
        child.send_signal(signal.SIGKILL)
        told = 20 + sum(line.endswith("\n") for line in child.stdout)
    assert len(list(read(log))) in (told, told + 1)
    with Monitor(open_(), log) as m:
        assert m.rows[-1]["tokens"] >= told


def test_the_log_of_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Monitor(open_("v6"), log):
        pass
    before = log.read_bytes()
    with (
        pytest.raises(errors.CannotWrite, match="is the log of another model: its fingerprint is"),
        Monitor(open_(), log),
    ):
        pass
    assert log.read_bytes() == before


def test_files_that_are_no_logs_are_left_alone(tmp_path: Path) -> None:
    model, log = open_(), tmp_path / "log"
    with Monitor(model, log, every=8):
        model.forward(TOKENS[:16])
    first, run, *rest = log.read_bytes().splitlines(keepends=True)
    cases: list[tuple[bytes, type[errors.FileError]]] = [
        (b"my notes, without a line's end", errors.UnknownFormat),
        (b"\x89PNG\r\n\x1a\n", errors.UnknownFormat),
        (b"[" * 100_000 + b"\n", errors.UnknownFormat),
        (first[:-1], errors.UnknownFormat),
        (first.replace(b'"version": 1', b'"version": 2'), errors.NewerFile),
        (first + b"{}\n" + rest[0], errors.BadHeader),
        (first + run + b"nonsense\n" + rest[0], errors.BadHeader),
        (first + run + b'{"kind": "capture", "run": "x"}\n', errors.BadHeader),
    ]
    for data, error in cases:
        log.write_bytes(data)
        for use in (lambda: list(read(log)), lambda: Monitor(model, log).__enter__()):
            with pytest.raises(error) as caught:
                use()
            assert "\n" not in str(caught.value)
        assert log.read_bytes() == data
    assert model.traces is None
    with pytest.raises(errors.MissingFile):
        list(read(tmp_path / "none"))
    with pytest.raises(errors.CannotWrite), Monitor(model, tmp_path):
        pass


def test_a_full_disk_keeps_the_lines_that_were_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, log = open_(), tmp_path / "log"
    m, write = Monitor(model, log, every=8), os.write

    def run() -> None:
        with m:
            model.forward(TOKENS[:16])
            monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
            model.forward(TOKENS[:16])

    with pytest.raises(errors.CannotWrite, match="no space left"):
        run()
    monkeypatch.undo()
    assert model.traces is None
    assert [row["tokens"] for row in read(log)] == [8, 16]


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="window 0"):
        Monitor(open_(), tmp_path / "log", window=0)
    with pytest.raises(errors.InputError, match="every -1"):
        Monitor(open_(), tmp_path / "log", every=-1)
    with pytest.raises(errors.InputError, match="RWKV-4 Dove has no state matrices"):
        Monitor(open_("v4"), tmp_path / "log", ranks=True)
    assert not (tmp_path / "log").exists()
