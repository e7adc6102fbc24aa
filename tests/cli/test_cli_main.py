"""Choosing a command, staying light, and ending well whatever happens to the streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import BYTES, MODEL, check_mistake, environment, finish, start

import rookery as package
from rookery.cli import generate
from rookery.cli import main as entry
from rookery.cli.main import COMMANDS, printable

LONG = ["generate", *BYTES, "-n", 1_000_000, "--temperature", 2, "--top-p", 1, "x"]


def test_help_and_version(rookery: Any) -> None:
    code, out, err = rookery("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS)
    assert rookery("--version") == (0, f"rookery {package.__version__}\n", "")
    assert rookery() == (2, "", out)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["genrate"], "did you mean generate?"),
        (["INFO"], "did you mean info?"),
        (["xyzzy"], "choose from generate, chat, serve"),
        (["--frobnicate"], "--frobnicate"),
        (["info", "a", "b"], "unrecognized arguments: b (see rookery info --help)"),
        (["convert", "a"], "required: OUT"),
        (["generate", "--temp", "1"], "--temp"),
    ],
)
def test_a_wrong_command_line_is_one_line(rookery: Any, args: list[str], part: str) -> None:
    check_mistake(rookery(*args), part)


def test_a_message_is_one_line_whatever_a_name_holds(rookery: Any) -> None:
    check_mistake(rookery("info", "two\nlines\x1b[31m"), r"two\nlines\x1b[31m: ")
    assert printable("a\nb\x1b[0mä\udcff") == r"a\nb\x1b[0mä\udcff"


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], [], ["nonsense"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_what_only_talks_imports_nothing_heavy(args: list[str]) -> None:
    program = (
        "import json, sys; from rookery.cli.main import main; "
        f"main({args!r}); print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert not modules & {"numpy", "torch", "rookery.model", "rookery.sampling", "rookery.formats"}
    commands = {name for name in modules if name.startswith("rookery.cli.")} - {
        "rookery.cli.main", "rookery.cli.options", "rookery.cli.progress", "rookery.cli.runs"
    }  # fmt: skip
    assert commands <= {f"rookery.cli.{args[0]}"} if args else not commands


def test_debug_shows_the_traceback(rookery: Any) -> None:
    code, out, err = rookery("info", "--debug", "/no/such/file")
    assert (code, out) == (2, "")
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("rookery: /no/such/file: ")


@pytest.mark.parametrize(("error", "line"), [
    (MemoryError("12 GB"), "rookery: not enough memory (12 GB)\n"), (MemoryError(), "rookery: not enough memory\n"),
    (OSError(5, "Input/output error", "disk"), "rookery: disk: Input/output error\n"),
    (OSError(28, "No space left on device"), "rookery: output: No space left on device\n"),
])  # fmt: skip
def test_what_the_system_refuses_is_one_line(
    rookery: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(generate, "run", fail)
    assert rookery("generate") == (2, "", line)


def test_a_bug_is_not_hidden(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_run", lambda arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        rookery("info")


def test_a_reader_that_has_had_enough() -> None:
    """As in `rookery generate ... | head -c 10`."""
    process = start(*LONG)
    assert process.stdout is not None
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    process.stdout = None
    assert finish(process) == (0, "", "")


@pytest.mark.parametrize(
    "args", [["--help"], ["info", MODEL], ["generate", *BYTES, "-n", "3", "x"]], ids=lambda a: a[0]
)
def test_a_pipe_that_was_closed_before_the_first_byte(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        process = start(*args, stdout=write)
    finally:
        os.close(write)
    assert finish(process) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["info", MODEL], ["generate", *BYTES, "-n", "3", "x"]], ids=lambda a: a[0])
def test_a_full_disk(args: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        check_mistake(finish(start(*args, stdout=full)), "No space left on device")


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_streams_closed_from_the_start() -> None:
    command = " ".join([sys.executable, "-m", "rookery", "info", MODEL])
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"], capture_output=True, timeout=120, check=True, env=environment()
        )
        assert done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_quietly_and_leaves_whole_text() -> None:
    process = start(*LONG)
    assert process.stdout is not None
    begin = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, "")
    assert begin
    assert (begin + out.encode()).endswith(b"\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_terminal_without_the_letters(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt"
    prompt.write_text("白嘴鸦")
    process = start("generate", *BYTES, "--echo", "-n", 2, "-f", prompt, env=environment(PYTHONIOENCODING="ascii"))
    code, out, _ = finish(process)
    assert code == 0
    assert out.startswith("???")
