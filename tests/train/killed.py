"""Trains once undisturbed and once killed again and again, and compares what is left to the bit.

    python killed.py FOLDER KILLS key=value ...

Every run is a process of its own, forked from this one, which has imported everything and computed nothing. It is
killed (SIGKILL) in turn at a random moment, in the middle of the bytes of a checkpoint, before a file that is whole
gets its name, and just after. The last line is a JSON object: the kills by kind, and in what the outcomes differ.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from rookery.formats import atomic
from rookery.train import config, report
from rookery.train.trainer import Trainer
from training_runs import config_file, outcome

STEPS = 24
KINDS = ("moment", "bytes", "before", "after")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """A file whose process dies with half of a write on the disk."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.left = file, writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Deadly:
        self.file.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.file.__exit__(*how)

    def write(self, data: Any) -> int:
        self.left -= 1
        if self.left == 0:
            view = memoryview(data).cast("B")
            self.file.write(view[: len(view) // 2])
            self.file.flush()
            die()
        return int(self.file.write(data))


def plant(kind: str, draw: random.Random) -> None:
    """Arrange this process's death while it writes its second checkpoint."""
    replace, count = os.replace, 0

    def replaced(source: Any, target: Any) -> None:
        nonlocal count
        ours = "checkpoints" in str(target)
        count += ours
        if ours and count == 2 and kind == "before":
            die()
        replace(source, target)
        if ours and count == 2 and kind == "after":
            die()

    def opened(path: Any, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115
        return Deadly(file, draw.randint(1, 40)) if "checkpoints" in str(path) and count == 1 else file

    os.replace = replaced  # type: ignore[assignment]
    if kind == "bytes":
        atomic.open = opened  # type: ignore[attr-defined]


def train(settings: Any, kind: str = "", seed: int = 0, trainer: type[Trainer] = Trainer) -> int:
    """Exit status of a process that trains: 0, or -9."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if kind not in ("", "moment"):
                plant(kind, random.Random(seed))
            code = 0 if trainer(settings, live=False).run() else 1
        finally:
            os._exit(code)
    if kind == "moment":
        time.sleep(random.Random(seed).uniform(0.05, 1.0))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, kills: int, *overrides: str) -> None:
    report.plot = lambda *_: None  # type: ignore[assignment]
    path = str(config_file(folder, STEPS))
    whole, broken = (
        config.load(path, ["save_every=2", *overrides, f"out={folder / name}"]) for name in ("whole", "broken")
    )
    assert train(whole) == 0
    killed = dict.fromkeys(KINDS, 0)
    for n in range(kills):
        kind = KINDS[n % len(KINDS)]
        if train(broken, kind, n) == -9:
            killed[kind] += 1
    assert train(broken) == 0
    one, other = outcome(folder / "whole"), outcome(folder / "broken")
    differ = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    left = [p.name for p in (folder / "broken").rglob(".*.tmp")]
    print(json.dumps({"killed": killed, "differ": differ, "left": left, "tensors": len(one)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
