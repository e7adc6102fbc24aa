"""Where a person types in `rookery chat`: one line or several, with history, completion and the status line below."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rookery.cli.chat_commands import COMMANDS

SIGN, MORE = "> ", "  "
AGAIN = " Ctrl-C again, or Ctrl-D, leaves"


class Prompt:
    """`ask()` gives what was typed. Ctrl-C clears the line; twice in a row, or Ctrl-D on an empty line: EOFError."""

    def __init__(
        self, history: str | None, status: Callable[[int], str], names: Callable[[str], Iterable[str]]
    ) -> None:
        """history: a file, or None to forget. status: the line below, for a width. names: what may follow a command."""
        self._status = status
        self._leaving = False  # whether Ctrl-C was the last key
        from prompt_toolkit.utils import is_dumb_terminal

        self._session = None if is_dumb_terminal() else self._make(history, names)

    def ask(self) -> str:
        self._leaving = False
        return _plainly() if self._session is None else str(self._session.prompt())

    def _make(self, history: str | None, names: Callable[[str], Iterable[str]]) -> Any:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.shortcuts import CompleteStyle
        from prompt_toolkit.styles import Style

        return PromptSession(
            [("class:sign", SIGN)],
            multiline=True,  # Enter is bound below; this lets pasted lines stay lines
            prompt_continuation=MORE,
            history=_history(history) if history else InMemoryHistory(),
            key_bindings=self._keys(),
            completer=_completer(names),
            complete_while_typing=False,
            complete_style=CompleteStyle.MULTI_COLUMN,
            reserve_space_for_menu=min(4, shutil.get_terminal_size().lines // 6),
            bottom_toolbar=self._toolbar,
            style=Style.from_dict(
                {"sign": "bold ansicyan", "bottom-toolbar": "noreverse", "bottom-toolbar.text": "dim"}
            ),
        )

    def _toolbar(self) -> Any:
        from prompt_toolkit.application import get_app

        app = get_app()
        self._leaving = self._leaving and not app.current_buffer.text
        return [("", AGAIN if self._leaving else self._status(app.output.get_size().columns))]

    def _keys(self) -> Any:
        """Enter sends; Alt-Enter, or Enter behind a backslash, begins another line."""
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.key_binding import KeyBindings

        keys, typing = KeyBindings(), has_focus(DEFAULT_BUFFER)  # not while the history is searched

        @keys.add("enter", filter=typing)
        def _(event: Any) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=typing)
        def _(event: Any) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-c", filter=typing)
        @keys.add("<sigint>", filter=typing)
        def _(event: Any) -> None:
            if self._leaving and not event.current_buffer.text:
                event.app.exit(exception=EOFError)
            event.current_buffer.reset()
            self._leaving = True

        return keys


def _plainly() -> str:
    """What is typed at a terminal that can do nothing but print."""
    interrupted = False
    while True:
        try:
            line = input(SIGN)
            while line.endswith("\\"):
                line = line[:-1] + "\n" + input(MORE)
            return line
        except KeyboardInterrupt:
            if interrupted:
                raise EOFError from None
            print(f"\n{AGAIN.strip()}")
            interrupted = True


def _completer(names: Callable[[str], Iterable[str]]) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        """A command's name, then what may follow it."""

        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Any]:
            head, blank, rest = document.text_before_cursor.partition(" ")
            typed = rest if blank else head[1:]
            for choice in () if head[:1] != "/" else names(head[1:]) if blank else COMMANDS:
                if choice.startswith(typed):
                    yield Completion(choice + ("" if blank else " "), -len(typed), choice)

    return Commands()


def _history(path: str) -> Any:
    """A history of which a full disk costs no more than its last lines."""
    from prompt_toolkit.history import FileHistory

    class Kept(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            with suppress(OSError):
                return list(super().load_history_strings())
            return []

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
                os.chmod(path, 0o600)
                super().store_string(string)

    return Kept(path)


@contextmanager
def silent_keys() -> Iterator[None]:
    """What is typed while a reply is written is kept for the next prompt, and not shown in the midst of the reply."""
    try:
        import termios
    except ImportError:  # no such terminals here
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
