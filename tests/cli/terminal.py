"""Running the command in a process of its own, and the shape of what it may say."""

from __future__ import annotations

import os
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


def environment(**more: str) -> dict[str, str]:
    """This process's, with stdout buffered as it is for a user: what is left in the buffer is half of the trouble."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | more


def start(*args: object, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "rookery", *map(str, args)], **{**pipes, "env": environment(), **options}
    )


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Result:
    """What it said, but for the notice that everything says where the core is not built."""
    out, err = process.communicate(stdin, timeout=120)
    said = (err or b"").decode().splitlines(keepends=True)
    return Result(
        process.returncode, (out or b"").decode(), "".join(line for line in said if "NO NATIVE CORE" not in line)
    )


def check_mistake(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr, which has all `parts`."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("rookery: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    for part in parts:
        assert part in result.err
