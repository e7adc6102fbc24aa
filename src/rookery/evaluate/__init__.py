"""Measuring models: the usual tables, made on the user's own machine, with their errors.

>>> from rookery import evaluate
>>> evaluate.evaluate("gosling", ["needle", "multihop"], limit=20)["results"]["needle"]["acc"]

`rookery eval` is the same from a terminal. A task (tasks/) makes items; a scorer (local.py, remote/) answers what
they ask; run.py makes rows and figures of it. `LM` is a model class for lm-eval.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rookery.errors import InputError
from rookery.evaluate.local import Local
from rookery.evaluate.requests import Continue, Likelihood, Likely, Passage, Read, Scorer
from rookery.evaluate.run import run
from rookery.evaluate.task import Item, Task
from rookery.evaluate.tasks import TASKS, make
from rookery.model import Model, load

if TYPE_CHECKING:
    from rookery.evaluate.lm import LM as LM
    from rookery.evaluate.remote import Remote as Remote

__all__ = [
    "LM",
    "TASKS",
    "Continue",
    "Item",
    "Likelihood",
    "Likely",
    "Local",
    "Passage",
    "Read",
    "Remote",
    "Scorer",
    "Task",
    "evaluate",
    "make",
    "run",
]
_HOME = {"LM": "rookery.evaluate.lm", "Remote": "rookery.evaluate.remote"}


def evaluate(
    model: Model | str | os.PathLike[str],
    tasks: str | Sequence[str],
    data: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    prefix: Sequence[int] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Run `tasks` by name; see `run`. `model`: a Model or what `rookery.load` opens. `data`: a file, or a folder of
    files under their usual names. `settings`: {task: {name: value}}. `workers`: processes of Ray that open the model
    each for itself, by its path; see jobs.py. Raises InputError, FileError subclasses and MissingExtra.
    """
    if workers is not None and isinstance(model, Model):
        raise InputError(f"workers={workers}: give the model by its path; each worker opens it for itself")
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in settings or {}:
        if name not in names:
            raise InputError(f"settings of {name!r}, which is not among the tasks ({', '.join(names)})")
    made = [make(name, (settings or {}).get(name), data) for name in names]
    scorer, reader = Local(model if isinstance(model, Model) else load(model), prefix), None
    if workers is not None and not isinstance(model, Model):
        from rookery.evaluate import jobs

        reader = jobs.reader(jobs.opened(model, prefix), scorer.about, workers)
    return run(scorer, made, limit, out, reader=reader)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
