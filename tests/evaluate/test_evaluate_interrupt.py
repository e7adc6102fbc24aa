"""`rookery eval` as a user has it: stopped at any moment, two at once, a disk that is full, data that is not."""

from __future__ import annotations

import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
import terminal
from terminal import Result, finish, start

from rookery.cli.main import main
from rookery.evaluate import data

V7 = Path(__file__).parents[1] / "fixtures" / "v7.safetensors"
LINE = '{"text": "It was a day and the fox sat by the well"}'
Run = Callable[..., Result]


@pytest.fixture
def rookery(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        return Result(main([str(arg) for arg in args]), *capsys.readouterr())

    return run


def check_mistake(result: Result, *parts: str) -> None:
    """A mistake in one line, after what is said of a job that takes its time on a busy machine."""
    lines = result.err.splitlines(keepends=True)
    said = "".join(line for line in lines if not re.fullmatch(r"rookery: (reading|measuring) .*\(\d+ s\)\n", line))
    terminal.check_mistake(result._replace(err=said), *parts)


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    """A run of two tasks that takes long enough to be stopped."""
    passages = tmp_path / "passages.jsonl"
    passages.write_text("".join(json.dumps({"text": f"{'It was a day. ' * n} The fox"}) + "\n" for n in range(1, 41)))
    settings = ["hops=0,1", "distances=0", "repeats=50"]
    return ["eval", "multihop", "lambada", *settings, "--data", passages, "--batch", "1", "-t", "1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def rows(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.jsonl"))


def begun(given: list[object], out: Path, size: int) -> subprocess.Popen[bytes]:
    """A process that has written so many bytes of rows, or has ended."""
    process = start(*given, "--out", out)
    while process.poll() is None and rows(out) < size:
        time.sleep(0.001)
    return process


def test_stopped_again_and_again(rookery: Run, given: list[object], tmp_path: Path) -> None:
    """Killed, or by Ctrl-C, at moments that are drawn; of one kill a torn row is left."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert rookery(*given, "--out", whole).code == 0
    moments, left = random.Random(10), []
    for number in (signal.SIGINT, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = begun(given, broken, rows(broken) + moments.randrange(1, rows(whole) // 8))
        process.send_signal(number)
        stopped = finish(process)
        left.append(rows(broken))
        if stopped.code == 130:
            assert stopped.err.endswith(f"rookery: stopped; the same command goes on from the rows in {broken}\n")
            assert "Traceback" not in stopped.err
        else:
            assert stopped.code == (-9 if number == signal.SIGKILL else 0)
    assert 0 < left[0] < rows(whole)
    file = broken / "multihop.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert rookery(*given, "--out", broken).code == 0
    assert contents(broken) == contents(whole)


@pytest.mark.parametrize(
    ("size", "said"), [(100, "manifest.json: cannot be written"), (3333, "multihop.jsonl: cannot be written")]
)
def test_a_full_disk(rookery: Run, given: list[object], tmp_path: Path, size: int, said: str) -> None:
    """A size that no file may pass stands for it; when there is room the same command goes on."""
    resource = pytest.importorskip("resource")
    given += ["--limit", "30"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert rookery(*given, "--out", whole).code == 0
    full = start(*given, "--out", out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    check_mistake(finish(full), f"{out}/{said} (File too large)")
    assert rookery(*given, "--out", out).code == 0
    assert contents(out) == contents(whole)


def test_two_at_once_and_the_lock_of_one_that_died(rookery: Run, given: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = begun(given, out, 1000)
    first.send_signal(signal.SIGSTOP)
    check_mistake(rookery(*given, "--out", out), str(out), "another run is writing there", "choose another --out")
    first.kill()
    assert finish(first).code == -9
    assert rookery(*given, "--out", out).code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "1"], "tasks.multihop.settings.seed was 0, is 1"),
        (["--prefix", "none"], "model.prefix was [0], is []"),
        (["hops=0,1,2"], "tasks.multihop.settings.hops was [0, 1], is [0, 1, 2]"),
        (["-m", V7, "--tokenizer", "bytes"], "model.parameters was "),
        (["--data", "other"], "tasks.lambada.data.sha256 was "),
        (["--backend", "reference"], "model.arithmetic was "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_run_in_the_same_folder(
    rookery: Run, given: list[object], tmp_path: Path, more: list[object], said: str
) -> None:
    out = ["--limit", "1", "--out", tmp_path / "out"]
    assert rookery(*given, *out).code == 0
    before = contents(tmp_path / "out")
    if more[0] == "--data":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "passages.jsonl").write_text(LINE)
        given[given.index("--data") + 1] = tmp_path / "other" / "passages.jsonl"
        more = []
    check_mistake(
        rookery(*given, *more, *out), str(tmp_path / "out"), "is of another run", said, "choose another --out"
    )
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([], ["no task", "perplexity, lambada"]),
        (["lamabda"], ["no task 'lamabda'", "did you mean lambada?"]),
        (["multihop", "hop=3"], ["multihop has no setting 'hop'", "did you mean hops?"]),
        (["multihop", "hops=x"], ["multihop.hops='x'", "whole numbers"]),
        (["multihop", "needle.seed=1"], ["'needle' is not among the tasks (multihop)"]),
        (["multihop", "--limit", "0"], ["--limit", "'0' is no whole number of 1 or more"]),
        (["multihop", "--limit=-3"], ["--limit", "'-3' is no whole number of 1 or more"]),
        (["multihop", "--prefix", "4096"], ["token 4096 is outside the model's vocabulary"]),
        (["multihop", "--workers", "0"], ["--workers", "'0' is no whole number of 1 or more"]),
        (["multihop", "-m", V7], ["says nothing of its tokenizer", "--tokenizer bytes|"]),
        (["lambada"], ["lambada needs its data", "--data FILE", "lambada_test.jsonl", "5,153 lines"]),
        (["lambada", "--data", "."], ["holds no data for lambada", "lambada_test.jsonl"]),
        (["lambada", "--data", "none.jsonl"], ["none.jsonl", "No such file", "check the path"]),
        (["lambada", "--data", "/dev/zero"], ["/dev/zero", "wanted a file"]),
        (["multihop", "--out", "/dev/null"], ["/dev/null", "cannot be made a folder"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:30],
)
def test_what_is_not_there(
    rookery: Run, monkeypatch: Any, tmp_path: Path, given: list[object], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check_mistake(rookery("eval", *given), *parts)


BAD = {
    "no field": (b'{"txt": 1}', "line 3: no field 'text', wanted a text; it has 'txt'"),
    "another type": (b'{"text": [1]}', "line 3: 'text' is [1]; wanted a text"),
    "no word": (b'{"text": "word"}', "line 3: 'text' has no last word"),
    "no object": (b"[1]", "line 3: is no object"),
    "no JSON": (b"{", "line 3: is no JSON"),
    "very deep": (b"[" * 200_000, "line 3: is no JSON"),
    "a long number": (b'{"text": ' + b"9" * 6000 + b"}", "line 3: is no JSON"),
    "half a surrogate pair": (rb'{"text": "a \ud800 b"}', "line 3: 'text' has half a surrogate pair"),
    "latin-1": (b'{"text": "caf\xe9 x"}', "line 3: is no UTF-8 (byte 13)"),
    "ten megabytes": (b'{"txt": "' + b"x " * 5_000_000 + b'"}', "line 3: no field 'text'"),
    "a name that steers": (b'{"\\u001b[31m\\n": 1}', r"line 3: no field 'text', wanted a text; it has '\x1b[31m\n'"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_a_bad_line(rookery: Run, tmp_path: Path, bad: bytes, said: str, packed: bool) -> None:
    """Behind a good line and an empty one."""
    file, content = tmp_path / "data", LINE.encode() + b"\r\n\r\n" + bad + b"\n"
    file.write_bytes(gzip.compress(content, 1) if packed else content)
    result = rookery("eval", "lambada", "--data", file)
    check_mistake(result, str(file), said)
    assert max(map(len, result.err.splitlines())) < 300 + len(str(file))


def test_what_looks_bad_and_is_not(rookery: Run, tmp_path: Path) -> None:
    """A byte order mark, lines that end as on Windows, empty ones, none at the end."""
    (tmp_path / "plain").write_text(f"{LINE}\n{LINE}\n")
    (tmp_path / "odd").write_bytes(f"\ufeff\r\n{LINE}\r\n \r\n\r\n{LINE}".encode())
    plain, odd = (rookery("eval", "lambada", "--data", tmp_path / name) for name in ("plain", "odd"))
    assert plain.code == odd.code == 0
    assert plain.out == odd.out


def test_packed_data_that_is_none(rookery: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LONGEST", 1 << 20)
    bomb = gzip.compress(b'{"text": "' + b"a" * (2 << 20))
    good = gzip.compress(f"{LINE}\n".encode())
    (tmp_path / "empty").touch()
    for content, said in {
        bomb: "line 1: over 1 MB in one line",
        good[:-12]: "cannot be unpacked",
        good[:-8] + bytes(8): "CRC check failed",
        good[:20] + bytes(20) + good[40:]: "cannot be unpacked",
        gzip.compress(b"\n\n"): "holds no item",
    }.items():
        (tmp_path / "data.gz").write_bytes(content)
        check_mistake(rookery("eval", "lambada", "--data", tmp_path / "data.gz"), said)
    check_mistake(rookery("eval", "lambada", "--data", tmp_path / "empty"), "has no bytes")
