"""Where a person types in `rookery chat`: one line or several, with history, completion and the status line below."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rookery.cli.chat_commands import COMMANDS

SIGN, MORE = "> ", "  "


class Prompt:
    """`ask()` gives what was typed. Raises EOFError for Ctrl-D on an empty line, KeyboardInterrupt for Ctrl-C."""

    def __init__(
        self, history: str | None, status: Callable[[int], str], names: Callable[[str], Iterable[str]]
    ) -> None:
        """history: a file, or None to forget. status: the line below, for a width. names: what may follow a command."""
        self._status = status
        self._session = None if os.environ.get("TERM") == "dumb" else self._make(history, names)

    def ask(self) -> str:
        if self._session is not None:
            return str(self._session.prompt())
        line = input(SIGN)
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input(MORE)
        return line

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
            key_bindings=_keys(),
            completer=_completer(names),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,  # a menu would want lines that a small window lacks
            bottom_toolbar=self._toolbar,
            style=Style.from_dict(
                {"sign": "bold ansicyan", "bottom-toolbar": "noreverse", "bottom-toolbar.text": "dim"}
            ),
        )

    def _toolbar(self) -> Any:
        from prompt_toolkit.application import get_app

        return [("", self._status(get_app().output.get_size().columns))]


def _keys() -> Any:
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

    return keys


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

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
