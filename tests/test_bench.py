"""rookery.bench: what is fed, what is counted, what a report holds. Never how long it took."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import bench
from rookery.bench import memory
from rookery.bench.report import spread
from rookery.bench.timing import PASSES, Runs
from rookery.errors import InputError

TINY = bench.Settings(prefill=5, decode=2, depths=(0, 300), rows=(1, 3), repeats=2)


class Watched:
    """A runner that notes the rows of each step."""

    def __init__(self, runner: Any) -> None:
        self.name, self.dtype, self.inner = runner.name, runner.dtype, runner
        self.steps: list[list[int]] = []

    def step(self, rows: Sequence[Any], states: Sequence[Any], every: bool = False) -> Any:
        self.steps.append([len(row) for row in rows])
        assert len({id(state) for state in states}) == len(rows)
        return self.inner.step(rows, states, every)


class Engine:
    """What the native back end lets bench ask."""

    weight_bytes, isa, threads = 1_000_000, "loops", 4

    def stream(self) -> float:
        return 1e-3


@pytest.fixture
def model() -> rookery.Model:
    model = rookery.load("gosling", backend="reference")
    model.runner = Watched(model.runner)  # type: ignore[assignment]
    return model


def test_every_test_feeds_what_it_says(model: rookery.Model) -> None:
    fed: list[int] = []
    runs, steps = Runs(model, TINY, fed.append), model.runner.steps  # type: ignore[attr-defined]
    assert runs.prefill() > 0
    assert steps == [[5]]
    steps.clear()
    assert runs.decode(300, 3) > 0
    assert steps == [[256], [44], [1, 1, 1], [1, 1, 1]]
    steps.clear()
    assert runs.decode(300, 1) > 0
    assert steps == [[1], [1]]  # the state at the depth is kept
    assert fed == [5, 256, 44, 6, 2]
    assert runs.stream() is None


def test_every_run_begins_from_the_same_state(model: rookery.Model) -> None:
    runs = Runs(model, TINY)
    runs.decode(300, 3)
    before = {depth: state.copy() for depth, state in runs._states.items()}
    assert set(before) == {0, 300}
    assert before[300].any()
    runs.warm_up()
    runs.prefill()
    runs.decode(0, 1)
    runs.decode(300, 3)
    for depth, state in before.items():
        np.testing.assert_array_equal(runs._states[depth], state)


def test_bytes_are_of_all_weights_but_the_embedding(model: rookery.Model) -> None:
    c = model.config
    assert Runs(model, TINY).weight_bytes == 4 * (model.weights.parameters - c.n_vocab * c.n_embd)


def test_a_report(model: rookery.Model) -> None:
    heard: list[tuple[int, int]] = []
    asked: list[int | None] = []

    def load(threads: int | None) -> rookery.Model:
        asked.append(threads)
        return model

    report = bench.measure(load, TINY, (1, 2), lambda done, total: heard.append((done, total)))
    assert json.loads(json.dumps(report))["settings"]["rows"] == [1, 3]
    assert heard[-1] == (2 * TINY.total, 2 * TINY.total)
    assert asked == [1, 1, 2, 2]  # a load each repeat, three at most
    assert [run["threads"] for run in report["runs"]] == [1, 2]
    for run in report["runs"]:
        assert [(t["test"], t["tokens"], t["depth"], t["rows"]) for t in run["tests"]] == [
            ("prefill", 5, 0, 1),
            ("decode", 2, 0, 1),
            ("decode", 2, 0, 3),
            ("decode", 2, 300, 1),
            ("decode", 2, 300, 3),
        ]
        for t in run["tests"]:
            rate = t["tokens_per_second"]
            assert 0 < rate["min"] <= rate["median"] <= rate["max"]
            assert len(rate["samples"]) == 2
            assert "share_of_stream" not in t
            if t["test"] == "decode":
                counted = [run["weight_bytes"] * rate / t["rows"] / 1e9 for rate in rate["samples"]]
                assert t["gb_per_second"]["samples"] == pytest.approx(counted)
    assert "of stream" not in bench.table(report)
    assert "isa" not in report["runs"][0]


def test_a_back_end_with_an_engine_is_held_against_its_stream(model: rookery.Model) -> None:
    model.runner.engine = Engine()  # type: ignore[attr-defined]
    report = bench.measure(lambda threads: model, TINY)
    (run,) = report["runs"]
    assert (run["threads"], run["isa"], run["weight_bytes"]) == (4, "loops", 1_000_000)
    assert run["stream_gb_per_second"]["median"] == pytest.approx(1.0)
    assert len(run["stream_gb_per_second"]["samples"]) == 4 * 2
    for test in run["tests"][1:]:
        share, step = test["share_of_stream"]["samples"], test["tokens_per_second"]["samples"]
        assert share == pytest.approx([1e-3 * rate / test["rows"] for rate in step])
    text = bench.table(report)
    assert "of stream" in text
    assert "reference back end, loops" in text
    assert "bare stream 1.0 GB/s" in text


def test_a_stream_is_the_mean_of_some_passes(model: rookery.Model) -> None:
    calls = iter(range(100))
    engine = Engine()
    engine.stream = lambda: float(next(calls))  # type: ignore[method-assign]
    model.runner.engine = engine  # type: ignore[attr-defined]
    assert Runs(model, bench.Settings(decode=5 * PASSES)).stream() == 2.0
    assert next(calls) == 5


def test_tokens_come_from_the_seed(model: rookery.Model) -> None:
    def drawn(seed: int) -> list[int]:
        return list(Runs(model, bench.Settings(seed=seed))._tokens(20))

    assert drawn(1) == drawn(1) != drawn(2)
    assert max(drawn(3)) < model.config.n_vocab


def test_one_kind_of_test_can_be_left_out(model: rookery.Model) -> None:
    def tests(**given: Any) -> list[str]:
        settings = bench.Settings(**{"prefill": 3, "decode": 2, "rows": (1,), "repeats": 1, **given})
        return [t["test"] for t in bench.measure(lambda threads: model, settings)["runs"][0]["tests"]]

    assert tests(prefill=0) == ["decode"]
    assert tests(decode=0, depths=(0, 10_000_000)) == ["prefill"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prefill": 0, "decode": 0}, "nothing to measure"),
        ({"prefill": -1}, "prefill -1: 0 or more"),
        ({"repeats": 0}, "repeats 0: 1 or more"),
        ({"rows": ()}, "rows"),
        ({"rows": (1, 0)}, "of 1 or more"),
        ({"depths": (0, 0)}, "different"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench.Settings(**settings)


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "samples": [3.0, 1.0, 2.0]}


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="wants Linux's /proc/self/clear_refs")
def test_the_peak_of_memory_is_seen_and_forgotten() -> None:
    memory.forget_peak()
    before = memory.peak()
    block = np.frombuffer(mmap.mmap(-1, 50_000_000), np.uint8)  # malloc may have as much resident already
    block[:] = 1
    high, own = memory.peak(), memory.anonymous()
    assert before is not None
    assert high is not None
    assert own is not None
    assert high - before > 45_000_000
    assert own > block.nbytes
    del block
    assert (memory.peak() or 0) > high - 1_000_000  # the kernel's counters are approximate
    assert memory.forget_peak()
    assert (memory.peak() or high) < high - 40_000_000


def test_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none" / "status")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    assert memory.anonymous() is None
    assert not memory.forget_peak()
    most = memory.peak()
    assert most is None or most > 10_000_000


def peers_cpu(*args: object) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "benchmarks" / "peers_cpu.py"
    tiny = ["--repeats", "1", "--decode", "2", "--prefill", "3", "--parallel", "1", "-t", "1", "--backend", "reference"]
    return subprocess.run([sys.executable, script, *tiny, *map(str, args)], capture_output=True, text=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness reads /proc")
def test_the_harness_runs_where_no_peer_is(tmp_path: Path, model: rookery.Model) -> None:
    file = model.weights.path
    done = peers_cpu("--busy", "--depth", "0,4", "--json", tmp_path / "out.json", tmp_path / "none", file)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'none'} is left out" in done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text())["files"]
    assert found["file"] == file
    assert found["engines"]["rookery"].endswith(" reference")
    speeds = ["decode 2", "decode 2 after 4", "decode 2, busy", "prefill 3", "parallel 8 x 1"]
    needs = ["first token, s", "process, s", "peak memory, MB", "anonymous, MB"]
    assert list(found["tests"]) == needs + speeds
    assert all(by["rookery"]["median"] > 0 for by in found["tests"].values())
    assert all(f"\n{name} " in done.stdout for name in [*needs, *speeds, "lost in decode 2, busy"])
