"""What may be typed in `rookery chat`: commands, their arguments, and names of talks. No terminal, no model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from rookery.cli.main import printable
from rookery.cli.options import SAMPLING
from rookery.errors import InputError

# name: (argument, what it does); /help shows them in this order
COMMANDS: dict[str, tuple[str, str]] = {
    "help": ("", "show this list"),
    "retry": ("", "take the last reply back and have another one"),
    "more": ("", "go on with a reply that was cut or stopped"),
    "rewind": ("[N]", "go back N turns (1)"),
    "branch": ("[NAME]", "a second line of the talk from here on"),
    "tree": ("", "all turns of the talk, as a tree"),
    "goto": ("ID", "go to any turn of /tree, or to a branch by its name"),
    "state": ("", "the model's state: size, layers, what the last turn changed"),
    "set": ("[KEY VALUE]", "change a setting, or show them all"),
    "system": ("TEXT", "tell the model who it is; before the first turn"),
    "talks": ("", "the talks that are kept"),
    "resume": ("[NAME]", "go on with a kept talk (the newest)"),
    "save": ("NAME", "write the talk to a file of its own"),
    "load": ("NAME", "go on with a talk that was saved"),
    "quit": ("", "leave; the talk is kept"),
}
MAX_TOKENS = "max_tokens"
SETTINGS = (*SAMPLING, MAX_TOKENS, "think")
SUFFIX = ".talk"
_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    argument: str = ""


def parse(line: str) -> Command | str:
    """A command, or the text of a turn. Raises InputError for a command that does not exist or lacks its argument.

    A command is a slash and letters, then nothing or a blank: `/usr/bin` is text, and so is what begins with a blank.
    """
    found = _COMMAND.fullmatch(line.rstrip())
    if not found:
        return line.strip()
    name, argument = found[1].lower(), (found[2] or "").strip()
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1, 0.5)
        meant = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise InputError(f"no command /{printable(found[1])}; {meant} (a blank before the slash makes it a message)")
    wanted = COMMANDS[name][0]
    if argument and not wanted:
        raise InputError(f"/{name} takes no argument")
    if not argument and wanted and not wanted.startswith("["):
        raise InputError(f"/{name} wants its argument: /{name} {wanted}")
    return Command(name, argument)


def whole(text: str, what: str, least: int = 1) -> int:
    """`text` as a whole number of at least `least`. Raises InputError."""
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
        raise InputError(f"{what} {printable(text)[:40]!r}: a whole number of {least} or more is wanted")
    return int(text)


def setting(text: str) -> tuple[str, str]:
    """The key and the value of `/set KEY VALUE`, `KEY=VALUE` too. Raises InputError."""
    key, *value = re.split(r"\s*=\s*|\s+", text, maxsplit=1)
    key = key.replace("-", "_").lower()
    if key not in SETTINGS:
        near = get_close_matches(key, SETTINGS, 1, 0.5)
        raise InputError(
            f"no setting {printable(key)[:40]!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(SETTINGS))
        )
    if not value or not value[0]:
        raise InputError(f"/set {key} wants a value")
    return key, value[0]


def changed(sampling: Any, key: str, text: str) -> Any:
    """`sampling` with one field set from what was typed. Raises InputError for a value that makes no sense."""
    kind = SAMPLING[key][0]
    try:
        value = kind(text)
    except ValueError:
        kinds = {int: "a whole number", float: "a number"}
        raise InputError(f"{key} {printable(text)[:40]!r}: {kinds[kind]} is wanted") from None
    return replace(sampling, **{key: value})


def name(text: str) -> str:
    """The name of a talk, which is also a file's: never a path. Raises InputError."""
    wrong = None
    if not 1 <= len(text) <= 100:
        wrong = "1 to 100 letters are wanted"
    elif not text.isprintable():
        wrong = "control characters are not allowed"
    elif set(text) & set('/\\:*?"<>|') or text.startswith((".", "~")) or ".." in text:
        wrong = "a name is wanted, not a path"
    if wrong:
        raise InputError(f"talk {printable(text)[:40]!r}: {wrong}")
    return text


def talk_file(folder: str, text: str) -> str:
    """Where the talk of this name lies in `folder`. Raises InputError for what would lie elsewhere, by links too."""
    path = os.path.join(folder, name(text) + SUFFIX)
    if os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise InputError(f"{printable(path)}: is a link that leads out of the folder of talks")
    return path


def saved(folder: str) -> list[str]:
    """The names of the talks in `folder`, sorted."""
    try:
        found = os.listdir(folder)
    except OSError:
        return []
    return sorted(file.removesuffix(SUFFIX) for file in found if file.endswith(SUFFIX) and not file.startswith("."))
