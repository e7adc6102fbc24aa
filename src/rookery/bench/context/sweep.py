"""All points of a sweep, one process after the other, and what becomes of those that cannot be measured."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from rookery.bench import memory
from rookery.bench.context.settings import Point, Settings
from rookery.bench.context.store import Row, Store

Need: TypeAlias = Callable[[Point, Settings], int]  # bytes, computed without building anything
Spawn: TypeAlias = Callable[[Point, Settings], Row]
Progress: TypeAlias = Callable[[int, int], None]  # points done, points in all

PROCESS = 400_000_000  # bytes of Python and torch themselves, beside what is counted
TOO_MUCH = f"not started: with {PROCESS / 1e9:g} GB for Python and torch it is more than there was"


def counted(point: Point, settings: Settings) -> int:
    """What the point's model, state and work take, from the shapes of its tensors."""
    from rookery.bench.context import peers
    from rookery.bench.context.point import spec

    return int(peers.need(point.kind, spec(settings), point.length, train=point.phase == "train"))


def grows(kind: str, settings: Settings, need: Need) -> bool:
    """Whether this kind's state grows with every token: then it needs more memory at a greater depth."""
    at = [need(Point("decode", kind, depth), settings) for depth in (1 << 10, 1 << 20)]
    return at[1] > at[0]


def _row(point: Point, settings: Settings, need: Need, spawn: Spawn) -> Row:
    wanted = 0 if point.phase == "stream" else need(point, settings)
    free = _available(settings.memory_limit)
    facts = {"need_bytes": wanted, "available_bytes": free}
    if free is not None and wanted + PROCESS > free:
        return {**point._asdict(), "status": "oom", "why": TOO_MUCH, **facts}
    time.sleep(settings.cool_down)
    return spawn(point, settings) | facts


def _available(limit: int | None) -> int | None:
    known = [size for size in (limit, memory.available()) if size is not None]
    return min(known, default=None)


def process(point: Point, settings: Settings) -> Row:
    """The row that a process of its own finds; where the process ends otherwise, why."""
    request = json.dumps({"point": point._asdict(), "settings": vars(settings)})
    command = [sys.executable, "-m", "rookery.bench.context.point"]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as child,
    ):
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(request.encode() + b"\n")
            child.stdin.flush()
            answer = child.stdout.read()  # stdin stays open meanwhile: its end would end the child
            code = child.wait()
        except BrokenPipeError:
            answer, code = b"", child.wait()
        except BaseException:
            child.kill()
            raise
        said.seek(0)
        return _answer(point, answer, code, said.read().decode(errors="replace"))


def _answer(point: Point, answer: bytes, code: int, said: str) -> Row:
    if code == 0:
        row: Row = json.loads(answer.splitlines()[-1])
        return row
    if code == -signal.SIGKILL:
        return {**point._asdict(), "status": "oom", "why": "the system killed it while it ran"}
    last = (said.strip().splitlines() or [f"exit code {code}"])[-1]
    return {**point._asdict(), "status": "failed", "why": last[:300]}


def sweep(
    settings: Settings,
    folder: str | os.PathLike[str],
    need: Need = counted,
    spawn: Spawn = process,
    progress: Progress = lambda done, total: None,
) -> list[Row]:
    """Measure every point that `folder` does not have yet; rows of all points, in the settings' order.

    A row's status is "measured", "skipped" (it would take too long), "oom" (with the computed need) or "failed"; the
    last are tried again by the next sweep. Raises CannotWrite, DamagedFile.
    """
    points = settings.points(lambda kind: grows(kind, settings, need))
    store = Store(folder, {"settings": vars(settings), "machine": machine()})
    try:
        for done, point in enumerate(points):
            progress(done, len(points))
            if store.rows.get(point, {"status": "failed"})["status"] == "failed":
                store.add(_row(point, settings, need, spawn))
        progress(len(points), len(points))
        return [store.rows[point] for point in points]
    finally:
        store.close()


def machine() -> dict[str, Any]:
    """What a measurement depends on besides its settings."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory.installed(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("rookery", "numpy", "torch", "transformers")},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()
