"""`rookery train` in several processes, several times: what torchrun does, without its importing torch each time.

    python ranks.py PHASES      a JSON list of {"world", "words", "accident": [rank, step, kind], "lose": [globs]}

Every process is forked from this one; "command" may stand in the place of `train`. What matches `lose` is removed
before a phase. An accident happens to one process when it begins that step. The last line is a JSON list of phases,
each a list of {"code", "out", "err"} by rank.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from datetime import timedelta
from glob import glob
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rookery.cli.main import main
from rookery.errors import DamagedFile
from rookery.train import report
from rookery.train.trainer import Trainer


def arrange(rank: int, step: int, kind: str) -> None:
    own_step = Trainer.step

    def accident(trainer: Trainer) -> tuple[float, float]:
        if (trainer.parallel.rank, trainer.done) == (rank, step):
            if kind == "error":
                raise DamagedFile("tokens.bin", "is damaged")
            if kind == "disk":
                os.fsync = full
            if kind in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, kind))
        return own_step(trainer)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Trainer.step = accident  # type: ignore[method-assign]


def child(phase: dict[str, Any], rank: int, port: int, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": phase["world"], "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        if phase.get("accident"):
            arrange(*phase["accident"])
        code = main([phase.get("command", "train"), *phase["words"]])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(phase: dict[str, Any]) -> list[dict[str, Any]]:
    for pattern in phase.get("lose", ()):
        for path in map(Path, glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [child(phase, rank, store.port, folder) for rank in range(phase["world"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        said = [{kind: (folder / f"{r}.{kind}").read_text() for kind in ("out", "err")} for r in range(len(codes))]
    return [{"code": code, **texts} for code, texts in zip(codes, said, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    report.plot = lambda *_: None  # type: ignore[assignment]
    print(json.dumps([run(phase) for phase in json.loads(sys.argv[1])]))
