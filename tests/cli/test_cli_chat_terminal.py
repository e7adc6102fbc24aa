"""`rookery chat` in a real terminal: tmux draws what a person would see; pexpect reads the very bytes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import BYTES, environment, finish, start

pytest.importorskip("prompt_toolkit")
pytest.importorskip("rich")

PATIENCE = 60.0  # seconds until something that should come is given up
NAMED = ["--name", "river", "--temperature", "0"]
ENDLESS = [*BYTES, "--template", "world", "--temperature", "2", "--top-p", "1", "-n", "10000000"]


class Terminal:
    """A tmux window in which `rookery chat` runs."""

    def __init__(self, folder: Path, *args: str, width: int = 80, height: int = 24, **more: str) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        settings = {"XDG_DATA_HOME": str(folder), "TERM": "screen", "LC_ALL": "C.UTF-8"} | more
        words = [f"{name}={value}" for name, value in settings.items()]
        # tmux now and then misses the end of a program, so a shell writes it down
        self._ended = folder / "ended"
        self._ended.unlink(missing_ok=True)
        shell = ["sh", "-c", 'trap : INT; "$@"; echo $? > "$0"', str(self._ended)]
        program = [*shell, "env", *words, sys.executable, "-m", "rookery", "chat", *args]
        self._do("start-server", ";", "set", "-g", "remain-on-exit", "on", ";", "new-session", "-d", "-s", "chat",
                 "-x", f"{width}", "-y", f"{height}", *program)  # fmt: skip
        self.until(lambda: self.prompted() or self.exit_code() is not None)

    def _do(self, *words: str) -> str:
        ran = subprocess.run(
            [*self._tmux, *words], capture_output=True, check=True, env=environment(TERM="xterm", LC_ALL="C.UTF-8")
        )
        return ran.stdout.decode()

    def screen(self) -> list[str]:
        """The lines seen, without blank ones at the end."""
        return self._do("capture-pane", "-p", "-t", "chat").rstrip().split("\n")

    def everything(self) -> str:
        """All that was printed, with lines that were too long joined again."""
        return self._do("capture-pane", "-p", "-J", "-S", "-", "-t", "chat")

    def prompted(self) -> bool:
        """Whether the program waits for a line: an empty prompt with the status line below."""
        lines = [line for line in self.screen() if line]
        return len(lines) > 1 and lines[-2].rstrip() == ">" and lines[-1].startswith(" ")

    def until(self, true: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, self.screen()
            time.sleep(0.05)

    def shows(self, text: str) -> None:
        self.until(lambda: text in self.everything())

    def flows(self, height: int) -> None:
        """Wait for a reply that fills the window and has pushed what was asked out of it."""
        self.until(lambda: len(self.screen()) == height and not any(line.startswith("> ") for line in self.screen()))

    def keys(self, *keys: str) -> None:
        self._do("send-keys", "-t", "chat", *keys)

    def type(self, text: str) -> None:
        self._do("send-keys", "-t", "chat", "-l", text)

    def ask(self, text: str) -> list[str]:
        """Type a line and wait until it is answered; the lines of the answer."""
        self.type(text)
        self.until(lambda: text.split("\n")[-1] in "".join(self.screen()))
        before = self.everything().count("\n> ")
        self.keys("Enter")
        self.until(lambda: self.prompted() and self.everything().count("\n> ") > before)
        answer = self.everything().rpartition(f"\n> {text}")[2].rpartition("\n> ")[0]
        return [line.rstrip() for line in answer.split("\n") if line.strip()]

    def status(self) -> str:
        return self.screen()[-1]

    def resize(self, width: int, height: int) -> None:
        self._do("resize-window", "-t", "chat", "-x", f"{width}", "-y", f"{height}")

    def pid(self) -> int:
        """The program's."""
        shell = self._do("display-message", "-p", "-t", "chat", "#{pane_pid}").strip()
        return int(subprocess.run(["pgrep", "-P", shell], capture_output=True, check=True).stdout)

    def exit_code(self) -> int | None:
        said = self._ended.read_text() if self._ended.exists() else ""
        return int(said) if said.endswith("\n") else None

    def leave(self, *keys: str) -> int | None:
        self.keys(*keys)
        self.until(lambda: self.exit_code() is not None)
        return self.exit_code()

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """`terminal("--resume")`: the program in a window; the one before is closed."""
    if not (shutil.which("tmux") and shutil.which("pgrep")):
        pytest.skip("tmux or pgrep is not installed")
    opened: list[Terminal] = []

    def made(*args: str, **more: Any) -> Terminal:
        for old in opened:
            old.close()
        opened.append(Terminal(tmp_path, *args, **more))
        return opened[-1]

    yield made
    for old in opened:
        old.close()


def test_a_talk_goes_on_in_another_process(terminal: Any, tmp_path: Path) -> None:
    window = terminal(*NAMED)
    assert window.screen()[0].startswith("gosling, format ")
    assert window.ask("Hello")
    assert window.status().startswith(" gosling · river · 1 turn · ")
    window.ask("Who are you?")
    tree = window.ask("/tree")
    assert "Hello → " in tree[0]
    assert tree[1].startswith("* ")
    assert "[main] Who are you? → " in tree[1]
    window.ask("/rewind")
    window.ask("/branch side")
    assert " river/side · 1 turn " in window.status()
    window.ask("Tell me a story.")
    tree = window.ask("/tree")
    assert len(tree) == 3
    assert window.leave("C-d") == 0

    again = terminal("--resume")
    assert " river/side · 2 turns " in again.status()
    assert again.ask("/tree") == tree
    assert again.ask("/goto main")[0].startswith("after: Hello")
    assert again.leave("/quit", "Enter") == 0


def test_lines_are_typed_pasted_and_remembered(terminal: Any, tmp_path: Path) -> None:
    window = terminal(*NAMED, "-n", "8")
    window.keys("one", "M-Enter", "two \\", "Enter", "three")
    window.until(lambda: [line.rstrip() for line in window.screen()[3:6]] == ["> one", "  two", "  three"])
    window.keys("Enter")
    window.until(window.prompted)
    window._do("set-buffer", "pasted\n\nlines")
    window._do("paste-buffer", "-p", "-t", "chat")
    window.shows("  lines")
    window.keys("Enter")
    window.until(lambda: window.prompted() and " 2 turns " in window.status())
    history = tmp_path / "rookery" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert [line for line in history.read_text().splitlines() if line.startswith("+")] == [
        "+one", "+two ", "+three", "+pasted", "+", "+lines"
    ]  # fmt: skip
    window.leave("C-d")

    again = terminal("--resume")
    again.keys("Up")
    again.until(lambda: "> pasted" in again.screen() and "  lines" in again.screen())


def test_talk_files_have_names_and_no_paths(terminal: Any, tmp_path: Path) -> None:
    window = terminal(*NAMED, "-n", "8", width=120)
    window.ask("Hello")
    assert window.ask("/save mine")[0].endswith("talks/mine.talk")
    assert "wanted, not a path" in window.ask("/save ../../mine")[0]
    assert "wanted, not a path" in window.ask("/load /etc/passwd")[0]
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("mine*")] == [Path("rookery/talks/mine.talk")]
    window.leave("C-d")
    again = terminal()
    assert again.ask("/load mine")[1] == "> Hello"
    assert "did you mean /talks?" in again.ask("/talk")[0]
    assert len(again.ask("/talks")) == 3


def test_ctrl_c_stops_the_reply_and_no_more(terminal: Any) -> None:
    window = terminal(*ENDLESS)
    window.type("Hello")
    window.keys("Enter")
    window.flows(24)
    window.keys("C-c")
    window.shows("(stopped; /more goes on)")
    window.until(window.prompted)
    assert " · 1 turn " in window.status()
    window.type("no")
    window.keys("C-c")
    window.until(lambda: window.prompted() and "Ctrl-C again" in window.status())
    window.type("x")
    window.until(lambda: " · 1 turn " in window.status())
    window.keys("BSpace")
    window.ask("/set max_tokens 9")
    window.ask("again")
    assert " · 2 turns " in window.status()
    assert len(window.ask("/tree")) == 2
    assert window.leave("C-c", "C-c") == 0


def test_kill_loses_no_turn_that_was_ended(terminal: Any) -> None:
    window = terminal(*ENDLESS, "--name", "river")
    window.ask("/set max_tokens 9")
    window.ask("Hello")
    tree = window.ask("/tree")
    window.ask("/set max_tokens 10000000")
    window.type("again")
    window.keys("Enter")
    window.flows(24)
    os.kill(window.pid(), signal.SIGKILL)
    window.until(lambda: window.exit_code() == 128 + signal.SIGKILL)
    again = terminal(*BYTES, "--resume")
    assert " river · 1 turn · " in again.status()
    assert again.ask("/tree") == tree
    again.ask("/set max_tokens 9")
    again.ask("again")
    assert " river · 2 turns " in again.status()


def test_the_window_may_change_during_a_reply(terminal: Any) -> None:
    window = terminal(*ENDLESS, "--name", "a talk", width=40, height=12)
    window.type("Hello")
    window.keys("Enter")
    window.flows(12)
    window.resize(100, 30)
    window.flows(30)
    window.resize(30, 8)
    window.flows(8)
    window.keys("C-c")
    window.until(window.prompted)
    assert window.status() == " v7 · a talk · 1 turn"
    assert window.leave("C-d") == 0


def test_a_reply_does_not_steer_the_terminal(terminal: Any) -> None:
    """Random bytes for 20,000 tokens: a bell, a title, a cleared screen or another character set would show."""
    window = terminal(*ENDLESS, "--seed", "1")
    window.ask("/set max_tokens 20000")
    title = window._do("display-message", "-p", "-t", "chat", "#{pane_title} #{alternate_on} #{insert_flag}")
    window.type("Hello")
    window.keys("Enter")
    window.flows(24)
    window.type("typed ahead")
    window.shows("(cut at 20000 tokens")
    window.until(lambda: window.screen()[-2:-1] == ["> typed ahead"])
    assert "typed" not in window.everything().rpartition("(cut")[0]
    window.keys("C-c")
    window.until(window.prompted)
    assert r"\x1b" in window.everything()
    assert window._do("display-message", "-p", "-t", "chat", "#{pane_title} #{alternate_on} #{insert_flag}") == title
    assert window.ask("/tree")[0].startswith("* ")


# the very bytes


def spoken(tmp_path: Path, lines: list[str], **settings: str) -> bytes:
    """What the program writes to a terminal while these lines are typed, until it ends."""
    pexpect = pytest.importorskip("pexpect")
    env = environment(XDG_DATA_HOME=str(tmp_path), PROMPT_TOOLKIT_NO_CPR="1", **settings)
    env = {name: value for name, value in env.items() if name not in {"NO_COLOR", "COLUMNS"} - {*settings}}
    child = pexpect.spawn(
        sys.executable, ["-m", "rookery", "chat", *NAMED], env=env, timeout=PATIENCE, dimensions=(24, 80)
    )
    heard = b""
    for line in lines:
        child.expect_exact("> ")
        heard += child.before + child.after
        child.sendline(line.encode()) if settings["TERM"] == "dumb" else child.send(line.encode() + b"\r")
        child.expect_exact(line)
        heard += child.before + child.after
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    return bytes(heard + child.before)


COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")


def test_a_terminal_that_only_prints(tmp_path: Path) -> None:
    heard = spoken(tmp_path, ["Hello", "/tree", "/state", "/quit"], TERM="dumb")
    assert b"\x1b" not in heard
    assert "Hello → ".encode() in heard
    assert b"numbers, 203 KB" in heard


def test_colour_unless_it_is_not_wanted(tmp_path: Path) -> None:
    assert COLOUR.search(spoken(tmp_path, ["/quit"], TERM="xterm-256color"))
    assert not COLOUR.search(spoken(tmp_path, ["/nonsense", "/quit"], TERM="xterm-256color", NO_COLOR="1"))


def test_ctrl_c_ends_a_pipe(tmp_path: Path) -> None:
    process = start("chat", *ENDLESS, "--no-save", stdin=subprocess.PIPE, env=environment(XDG_DATA_HOME=str(tmp_path)))
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    process.stdout.read(1000)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (130, "")


def test_a_pipe_has_only_replies_on_stdout(tmp_path: Path) -> None:
    env = environment(XDG_DATA_HOME=str(tmp_path))
    code, out, err = finish(start("chat", *NAMED, stdin=subprocess.PIPE, env=env), b"Hello\nHello\n")
    assert code == 0
    assert err.count("\n") == 2
    assert all(line.startswith("rookery: prompt ") for line in err.splitlines())
    assert "rookery" not in out
