"""Running the command in a process of its own, and the shape of what it may say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

MODEL = str(Path(__file__).resolve().parents[1] / "fixtures" / "v7.safetensors")
BYTES = ["-m", MODEL, "--tokenizer", "bytes"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


def start(*args: object, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "rookery", *map(str, args)], **pipes)


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Result:
    out, err = process.communicate(stdin, timeout=120)
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


def check_mistake(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr, which has all `parts`."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("rookery: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    for part in parts:
        assert part in result.err
