"""A run: tasks asked of one model, a row for each item, figures over the rows.

With a folder the run is kept: `manifest.json` says what was asked of which model, `TASK.jsonl` has the rows in order,
`results.json` the figures. A run that was stopped, however, goes on behind its last whole row when it is started again,
and all files are in the end the same to the byte.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from rookery import __version__
from rookery.errors import InputError
from rookery.evaluate import data
from rookery.evaluate.kept import Kept, Rows
from rookery.evaluate.requests import Answer, Coder, Continue, Likelihood, Passage, Request, Scorer
from rookery.evaluate.task import Item, Task

Progress = Callable[[str, int, int], None]  # task, items done, items in all (0: not known)
Asked: TypeAlias = Iterator[tuple[Item, Sequence[Answer]]]
Reader = Callable[[Iterable[Item]], Asked]  # items to answers, in their order; more than one item may be on its way

BATCH = 32  # items that are asked about together
HELD = 4 << 20  # characters or ids of a batch, about; some 30 bytes each


def run(
    scorer: Scorer,
    tasks: Sequence[Task],
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
    reader: Reader | None = None,
) -> dict[str, Any]:
    """{"manifest": ..., "results": {task: figures}}, the figures under lm-eval's keys.

    `limit`: only the first so many items of each task. `out`: a folder in which the run is kept, and gone on with.
    `batch`: items that are asked about together, which changes no figure. `reader`: who answers instead of this
    process. Raises InputError, FileError subclasses.
    """
    _check(tasks, limit, batch)
    about = manifest(scorer, tasks)
    results = {}
    with ExitStack() as stack:
        kept = stack.enter_context(Kept(out, about)) if out is not None else None
        for task in tasks:
            rows = stack.enter_context(kept.rows(task.name)) if kept else Rows()
            results[task.name] = _one(
                task, scorer.coder, rows, limit, reader or _here(scorer, batch), progress or _silent
            )
            if kept:
                kept.write(results)
    return {"manifest": about, "results": results}


def manifest(scorer: Scorer, tasks: Sequence[Task]) -> dict[str, Any]:
    """All that decides the figures. What is equal for two runs gives the same rows."""
    return {
        "format": "rookery.evaluate",
        "version": 1,
        "model": scorer.about,
        "tasks": {task.name: {"settings": vars(task.settings), "data": _data(task)} for task in tasks},
        "versions": {"rookery": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def _check(tasks: Sequence[Task], limit: int | None, batch: int) -> None:
    if not tasks:
        raise InputError("no task: name at least one")
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"the task {twice} is given twice; run it once for each of its settings")
    for name, value in {"limit": limit, "batch": batch}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: 1 or more is wanted")


def _one(task: Task, coder: Coder, rows: Rows, limit: int | None, reader: Reader, progress: Progress) -> dict[str, Any]:
    items = task.items(coder)
    done = len(list(islice(items, min(len(rows), limit or len(rows)))))
    if limit is None and done < len(rows):
        raise InputError(f"{task.name}: {len(rows)} rows are kept, but its data has {done} items; choose another --out")
    progress(task.name, done, limit or 0)
    for item, answers in reader(islice(items, None if limit is None else limit - done)):
        rows.add({"item": done, **item.about, **task.row(item, answers)})
        done += 1
        progress(task.name, done, limit or 0)
    if not done:
        raise InputError(f"{task.name}: its data holds no item")
    return {"n": done, **task.summary(rows.first(done))}


def _here(scorer: Scorer, batch: int) -> Reader:
    """Batches of items, asked in this process."""

    def read(items: Iterable[Item]) -> Asked:
        for some in batches(items, batch):
            answers = iter(scorer.answer([request for item in some for request in item.requests]))
            for item in some:
                yield item, list(islice(answers, len(item.requests)))

    return read


def batches(items: Iterable[Item], batch: int) -> Iterator[list[Item]]:
    """At most `batch` items, and fewer where they are long: a very long one then needs no more memory than alone."""
    some: list[Item] = []
    held = 0
    for item in items:
        some.append(item)
        held += sum(map(_length, item.requests))
        if len(some) == batch or held >= HELD:
            yield some
            some, held = [], 0
    if some:
        yield some


def _length(request: Request) -> int:
    """Characters or ids, without the little that follows a context."""
    match request:
        case Likelihood(context=text) | Passage(text=text) | Continue(prompt=text):
            return len(text)


def _silent(task: str, done: int, total: int) -> None:
    pass


def _data(task: Task) -> dict[str, str] | None:
    path = getattr(task, "path", None)
    return None if path is None else {"file": os.path.basename(path), "sha256": data.digest(path)}
