"""The tasks by name. Each is a module here, imported when it is asked for, with `Settings`, `TASK` (the class), `FILES`
(what its data file is called in a folder; none where it needs none) and `SOURCE` (where to get that). Where that
depends on the settings, `files(settings)` gives the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from rookery.errors import InputError
from rookery.evaluate import data as files
from rookery.evaluate import settings as reading
from rookery.evaluate.task import Task

TASKS = {
    "perplexity": "how well a text is foreseen: by token, word and byte, and by position",
    "lambada": "the last word of a passage that needs the whole of it",
    "hellaswag": "which of four endings follows",
    "piqa": "which of two ways reaches a goal",
    "mmlu": "questions with four answers from 57 subjects",
    "needle": "what stands somewhere in a long text is asked for at its end",
    "multihop": "who has the ball, after it was handed on several times",
    "format": "how far a score moves when only the prompt's form does",
    "mqar": "many pairs of key and value are read, then every key is asked for",
}


def make(name: str, given: Mapping[str, Any] | None = None, data: files.Path | None = None) -> Task:
    """The task `name` with settings `given` (texts or values) over the file, or the folder of files, `data`.

    Raises InputError, with the nearest names, and FileError subclasses.
    """
    room = module(name)
    settings = reading.read(room.Settings, given or {}, name)
    path = None
    names = room.files(settings) if hasattr(room, "files") else room.FILES
    if data is not None and names:
        path = files.find(data, names, name)
    task: Task = room.TASK(settings, path)
    return task


def module(name: str) -> Any:
    """The task's module. Raises InputError for an unknown one."""
    if name not in TASKS:
        near = get_close_matches(name.lower(), TASKS, 3, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(TASKS)}"
        raise InputError(f"no task {name!r}; {hint}")
    return import_module(f"rookery.evaluate.tasks.{name}")
