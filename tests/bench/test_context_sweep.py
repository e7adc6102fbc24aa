"""The harness of `rookery bench context`: what is timed, what becomes of points that cannot be, and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from context_fakes import BANDWIDTH, MEGA, Clock, Fakes, Peer

from rookery.bench import memory
from rookery.bench.context import peers, roofline
from rookery.bench.context import point as points
from rookery.bench.context import sweep as sweeps
from rookery.bench.context.settings import QUICK, STREAMS, Point, Settings
from rookery.bench.context.store import POINTS, SETTINGS, Store
from rookery.bench.context.summary import summary
from rookery.bench.context.sweep import PROCESS, sweep
from rookery.errors import CannotWrite, DamagedFile, InputError

POPEN: Callable[..., Any] = subprocess.Popen
SMALL = Settings(
    ("rwkv7", "transformer-mha"), lengths=(512, 2048), constant_lengths=(1_000_000,), prefill_lengths=(512,),
    cool_down=0, memory_limit=10**10, seconds=120,
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(points.time, "perf_counter", made)
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    return made


def measured(point: Point, settings: Settings, peer: Any) -> dict[str, Any]:
    return points.measure(point, settings, lambda kind, settings: peer)


# what is timed


def test_decode_is_timed_from_its_depth_and_injecting_is_not(clock: Clock) -> None:
    peer = Peer("transformer-gqa", clock)
    row = measured(Point("decode", "transformer-gqa", 2048), SMALL, peer)
    assert (row["status"], row["state"], row["tokens"]) == ("measured", "injected", 64)
    assert peer.calls == [("inject", 2048)] * 6  # the warm-up and five repeats
    assert peer.steps == points.WARM_UP + 5 * 64
    assert len(row["tokens_per_second"]["samples"]) == 5
    assert row["bytes_per_token"] == 100 * MEGA + 2048 * 8000
    roof = roofline.roof(row, BANDWIDTH)
    assert roof is not None
    assert 0.38 * roof < row["tokens_per_second"]["median"] < 0.42 * roof  # half of it, a fifth of the steps longer
    assert "speed_to_reference" not in row


def test_a_constant_state_is_paired_with_the_shortest_depth(clock: Clock) -> None:
    class Slower(Peer):
        """Of which depth does matter: the planted error that pairing is there for."""

        def step(self, token: int) -> None:
            super().step(token)
            self.clock.now += 1.0 if self.depth > 1_000_000 else 0.0

    at = Point("decode", "rwkv7", 1_000_000)
    same, slower = Peer("rwkv7", clock), Slower("rwkv7", clock)
    row = measured(at, SMALL, same)
    assert [depth for _, depth in same.calls[1:]] == [10**6, 512, 512, 10**6, 10**6, 512, 512, 10**6, 10**6, 512]
    assert row["speed_to_reference"]["samples"] == pytest.approx([1.0] * 5, rel=0.02)
    assert measured(Point("decode", "rwkv7", 512), SMALL, same).get("speed_to_reference") is None
    rows = [row, measured(at, Settings(("rwkv7",), tokens=2), slower)]
    for found, holds in zip(rows, (1, 0), strict=True):
        (said,) = summary(SMALL, {}, [found])["depth_verified"]
        assert (said["depths"], said["depths_with_1_inside"]) == (1, holds)
        assert said["chance"] == 1 - 2**-4
    assert rows[1]["speed_to_reference"]["median"] < 0.1


def test_slow_steps_are_shared_among_the_repeats_and_slower_ones_left_out(clock: Clock) -> None:
    def row(seconds: float) -> dict[str, Any]:
        peer = Peer("transformer-mha", clock, speed=1e-1 / seconds)
        return measured(Point("decode", "transformer-mha", 28_125), SMALL, peer)  # 1 GB: 0.1 s at the bandwidth

    assert row(0.05)["tokens"] == 64
    assert row(0.3)["tokens"] == 13  # 65 in five repeats
    late = row(3.0)
    assert (late["status"], late["why"]) == ("skipped", "about 195 s for 5 repeats; 120 s are allowed")
    assert "tokens_per_second" not in late


def test_prefill_is_read_and_the_first_token_waits_for_it(clock: Clock) -> None:
    peer = Peer("transformer-gqa", clock)
    row = measured(Point("prefill", "transformer-gqa", 2048), SMALL, peer)
    assert peer.calls == [("prefill", 512)] * 2 + [("prefill", 2048)] * 5
    assert row["state"] == "read"
    assert row["prefill_tokens_per_second"]["median"] == pytest.approx(1000)
    assert row["first_token_seconds"]["median"] == pytest.approx(2.048 + 116.4e6 / 5e9, rel=0.02)
    assert (row["tokens"], peer.steps) == (13, 5 * 14)
    late = measured(Point("prefill", "transformer-gqa", 65_536), SMALL, peer)
    assert late["why"] == "about 328 s for 5 repeats; 120 s are allowed"


def test_a_training_step_is_timed_after_the_first(clock: Clock) -> None:
    peer = Peer("rwkv7", clock)
    row = measured(Point("train", "rwkv7", 512), SMALL, peer)
    assert peer.calls == [("train", 512)] * 6
    assert row["step_seconds"]["samples"] == pytest.approx([5.12] * 5)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_is_refused_is_a_row(clock: Clock, error: Exception) -> None:
    class Greedy(Peer):
        def inject(self, depth: int, extra: int) -> None:
            raise error

    assert measured(Point("decode", "rwkv7", 512), SMALL, Greedy("rwkv7", clock))["status"] == "oom"


@pytest.mark.parametrize("said", ["shapes differ", "written-to tensor refers to a single memory location"])
def test_another_error_is_no_lack_of_memory(clock: Clock, said: str) -> None:
    class Broken(Peer):
        def inject(self, depth: int, extra: int) -> None:
            raise RuntimeError(said)

    with pytest.raises(RuntimeError, match=said):
        measured(Point("decode", "rwkv7", 512), SMALL, Broken("rwkv7", clock))


def test_spread() -> None:
    found = points.spread([5, 1, 2, 4, 3])
    assert (found["q1"], found["median"], found["q3"]) == (2, 3, 4)
    assert found["samples"] == [5, 1, 2, 4, 3]


# the roof


def test_the_roof_is_the_most_that_was_read_and_a_point_above_it_is_seen(clock: Clock, tmp_path: Path) -> None:
    fakes = Fakes(clock, {"rwkv7": 1.5})
    rows = sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn)
    assert roofline.ceiling(rows) == BANDWIDTH
    found = summary(SMALL, {}, rows)
    assert found["above_roofline"] == [["decode", "rwkv7", n] for n in (512, 2048, 1_000_000)]
    for row in found["points"]:
        if row["phase"] == "decode":
            assert row["roofline_tokens_per_second"] == pytest.approx(1e10 / row["bytes_per_token"])
    assert not summary(SMALL, {}, [row for row in rows if row["phase"] != "stream"])["above_roofline"]


def test_a_stream_is_measured() -> None:
    pytest.importorskip("torch")
    found = roofline.stream(size=1 << 22, passes=2)
    assert {name: len(rates) for name, rates in found.items()} == {"sum": 2, "mv": 2, "copy": 2}
    assert min(min(rates) for rates in found.values()) > 0


# all points


def test_every_point_once_in_an_order_of_the_seed() -> None:
    found = SMALL.points(lambda kind: kind.startswith("transformer"))
    by_phase = {phase: sorted(p[1:] for p in found if p.phase == phase) for phase in ("stream", "decode", "prefill")}
    assert by_phase["stream"] == [("stream", i) for i in range(STREAMS)]
    assert by_phase["decode"] == [
        *(("rwkv7", n) for n in (512, 2048, 1_000_000)), ("transformer-mha", 512), ("transformer-mha", 2048),
    ]  # fmt: skip
    assert by_phase["prefill"] == [("rwkv7", 512), ("transformer-mha", 512)]
    assert len(found) == len(set(found)) == STREAMS + 7
    assert found == SMALL.points(lambda kind: kind.startswith("transformer"))
    other = Settings(**{**vars(SMALL), "seed": 1}).points(lambda kind: kind.startswith("transformer"))
    assert sorted(other) == sorted(found)
    assert other != found


def test_native_does_not_train() -> None:
    settings = Settings(("rwkv7", "rwkv7-native"), train_lengths=(512,))
    assert [p.kind for p in settings.points(lambda kind: False) if p.phase == "train"] == ["rwkv7"]


def test_what_does_not_fit_is_a_row_and_is_not_started(clock: Clock, tmp_path: Path) -> None:
    deep = Point("decode", "transformer-mha", 2048)
    fakes = Fakes(clock)
    limit = fakes.need(deep, SMALL) + PROCESS
    for short, status in ((0, "measured"), (1, "oom")):
        settings = Settings(**{**vars(SMALL), "memory_limit": limit - short})
        fakes.spawned.clear()
        rows = sweep(settings, tmp_path / str(short), fakes.need, fakes.spawn)
        (row,) = [row for row in rows if (row["phase"], row["kind"], row["length"]) == deep]
        assert row["status"] == status
        assert (row["need_bytes"], row["available_bytes"]) == (limit - PROCESS, limit - short)
        assert (deep in fakes.spawned) == (status == "measured")


def test_what_did_not_fit_is_kept_like_what_was_measured(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fakes = Fakes(clock)
    monkeypatch.setattr(memory, "available", lambda: PROCESS + 110 * MEGA)
    rows = sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn)
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    fakes.spawned.clear()
    assert sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn) == rows
    assert {row["status"] for row in rows} == {"measured", "oom"}
    assert not fakes.spawned


def test_the_machines_own_memory_counts_too(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    fakes = Fakes(clock)
    rows = sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn)
    assert {row["status"] for row in rows} == {"oom"}
    assert not fakes.spawned


# going on


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_sweep_goes_on_to_the_same_files(clock: Clock, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    fakes = Fakes(clock)
    rows = sweep(SMALL, whole, fakes.need, fakes.spawn)
    order, at = list(fakes.spawned), len(fakes.spawned) // 2
    clock.now, fakes.spawned = 0.0, []

    def stopped(point: Point, settings: Settings) -> dict[str, Any]:
        if len(fakes.spawned) == at:
            raise KeyboardInterrupt
        return fakes.spawn(point, settings)

    with pytest.raises(KeyboardInterrupt):
        sweep(SMALL, parted, fakes.need, stopped)
    with open(parted / POINTS, "ab") as file:
        file.write(b'{"phase": "decode", "ki')  # and the machine fell over in the next line
    again = sweep(SMALL, parted, fakes.need, fakes.spawn)
    assert fakes.spawned == order
    assert [row["tokens_per_second"]["median"] for row in again if "tokens" in row] == pytest.approx(
        [row["tokens_per_second"]["median"] for row in rows if "tokens" in row], rel=1e-9
    )
    assert files(parted)[SETTINGS] == files(whole)[SETTINGS]
    lines = [[json.loads(line)["kind"] for line in files(f)[POINTS].splitlines()] for f in (whole, parted)]
    assert lines[0] == lines[1]
    before = files(parted)
    assert sweep(SMALL, parted, fakes.need, fakes.spawn) == again
    assert files(parted) == before


def test_what_failed_is_tried_again(clock: Clock, tmp_path: Path) -> None:
    fakes, bad = Fakes(clock), Point("decode", "rwkv7", 512)
    fakes.broken.add(bad)
    rows = sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn)
    assert [row["why"] for row in rows if row["status"] == "failed"] == ["ValueError: planted"]
    fakes.broken.clear()
    fakes.spawned.clear()
    rows = sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn)
    assert fakes.spawned == [bad]
    assert {row["status"] for row in rows} == {"measured"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lengths": (512, 4096)}, r"settings\.lengths \[512, 2048\], now \[512, 4096\]"),
        ({"seed": 3}, r"settings\.seed 0, now 3"),
    ],
)
def test_other_settings_want_another_folder(clock: Clock, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    fakes = Fakes(clock)
    sweep(SMALL, tmp_path / "out", fakes.need, fakes.spawn)
    with pytest.raises(CannotWrite, match=f"another sweep .{said}.; give another folder"):
        sweep(Settings(**{**vars(SMALL), **change}), tmp_path / "out", fakes.need, fakes.spawn)


def test_another_machine_wants_another_folder(tmp_path: Path) -> None:
    Store(tmp_path / "out", {"machine": {"torch": "2.13"}}).close()
    with pytest.raises(CannotWrite, match=r'machine.torch "2.13", now "2.14"'):
        Store(tmp_path / "out", {"machine": {"torch": "2.14"}})


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("Dear")
    with pytest.raises(CannotWrite, match="not empty"):
        Store(tmp_path / "full", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file: cannot be written"):
        Store(tmp_path / "file", {})
    Store(tmp_path / "out", {}).close()
    (tmp_path / "out" / POINTS).write_text('{"phase": "decode", "kind": "lstm", "length": 5}\n[1]\n')
    with pytest.raises(DamagedFile, match="line 2 is no point"):
        Store(tmp_path / "out", {})
    (tmp_path / "out" / SETTINGS).write_text("[]")
    with pytest.raises(DamagedFile, match="no JSON object"):
        Store(tmp_path / "out", {})


def test_two_sweeps_in_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    store = Store(tmp_path / "out", {})
    with pytest.raises(CannotWrite, match="another sweep is writing there"):
        Store(tmp_path / "out", {})
    store.close()
    Store(tmp_path / "out", {}).close()


# settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kinds": ()}, "at least one"),
        ({"kinds": ("lstm", "lstm")}, "each once"),
        ({"lengths": ()}, "no lengths"),
        ({"lengths": (512, 0)}, r"lengths \[512, 0\]: different whole numbers of 1 or more"),
        ({"prefill_lengths": (7, 7)}, "different whole"),
        ({"repeats": 1}, "repeats 1: 2 or more"),
        ({"dtype": "int8"}, "dtype 'int8': float32 or bfloat16"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(**{"kinds": ("lstm",), **given})


def test_settings_survive_json() -> None:
    assert Settings.of(json.loads(json.dumps(vars(SMALL)))) == SMALL
    assert Settings(("lstm",), **QUICK).parameters < Settings(("lstm",)).parameters


# processes


def answers(monkeypatch: pytest.MonkeyPatch, code: str) -> dict[str, Any]:
    """What becomes of a point whose process runs `code`."""
    monkeypatch.setattr(sweeps.subprocess, "Popen", lambda command, **how: POPEN([sys.executable, "-c", code], **how))
    return sweeps.process(Point("decode", "lstm", 7), SMALL)


def test_a_process_that_is_killed_is_a_row_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    row = answers(monkeypatch, f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert (row["status"], row["why"]) == ("oom", "the system killed it while it ran")


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    row = answers(monkeypatch, "print('noise'); raise ValueError('planted')")
    assert (row["status"], row["why"]) == ("failed", "ValueError: planted")
    assert answers(monkeypatch, "import os; os._exit(3)")["why"] == "exit code 3"


def test_a_process_gets_its_point_and_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    row = answers(monkeypatch, "import sys; print('noise'); print(sys.stdin.readline().strip())")
    assert Point(**row["point"]) == ("decode", "lstm", 7)
    assert Settings.of(row["settings"]) == SMALL


def test_a_point_ends_with_its_sweep() -> None:
    at = Point("stream", "stream", 0)
    request = json.dumps({"point": at._asdict(), "settings": vars(SMALL)}).encode() + b"\n"
    command = [sys.executable, "-m", "rookery.bench.context.point"]
    done = subprocess.run(command, input=request, capture_output=True)  # which closes stdin
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_has_a_tiny_model(dtype: str) -> None:
    """Each process begins with one."""
    for kind in (*peers.KINDS, *peers.NATIVE):
        tiny = points.spec(Settings((kind,), dtype=dtype, **points.TINY))
        assert peers.plan(kind, tiny).parameters == pytest.approx(tiny.parameters, rel=0.03)


def test_one_real_point() -> None:
    pytest.importorskip("torch")
    settings = Settings(
        ("rwkv7",), parameters=200_000, layers=2, vocab=256, lengths=(16,), tokens=4, repeats=2, cool_down=0
    )
    at = Point("decode", "rwkv7", 1_000_000)
    row = sweeps.process(at, settings)
    assert row["status"] == "measured", row
    assert (row["kind"], row["phase"], row["length"], row["tokens"]) == ("rwkv7", "decode", 1_000_000, 4)
    assert abs(row["parameters"] / 200_000 - 1) < 0.03
    assert np.isfinite(row["tokens_per_second"]["samples"]).all()
    assert len(row["speed_to_reference"]["samples"]) == 2
    assert row["state_bytes"] < row["bytes_per_token"]
    if sys.platform == "linux":
        assert 50 * MEGA < row["baseline_bytes"] < 2000 * MEGA
        assert row["peak_bytes"] > row["weight_bytes"] // 2  # small ones lie partly in pages that imports left free
    assert sweeps.counted(at, settings) >= row["weight_bytes"] + row["state_bytes"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="wants Linux")
def test_threads_are_pinned() -> None:
    code = "from rookery.bench.context import point; import os; point.pin(1); print(len(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
