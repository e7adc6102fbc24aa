"""`rookery eval`: the usual tables of one model."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from functools import partial
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError

WIDTH, COLUMN = 100, 25  # of the list of tasks, and where what is said of each begins


def parser() -> options.Parser:
    made = options.Parser(
        "rookery eval",
        "TASK... [NAME=VALUE...] [options]",
        "Measure what a model can do.\n\n"
        "A setting is NAME=VALUE, or TASK.NAME=VALUE where several tasks have it. Figures come with\n"
        "their standard errors or 95 % intervals, and with the score of chance.\n"
        "-m http://HOST:PORT asks a server.",
    )
    made.mixed = True
    made.add_argument("given", nargs="*", metavar="TASK", help="what to measure, see --list")
    made.add_argument("--list", action="store_true", help="show the tasks and their settings")
    made.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[TASK=]FILE",
        help="the data, or a folder with data under its usual names",
    )
    made.add_argument("--limit", type=options.whole(1), metavar="N", help="only the first N items of each task")
    made.add_argument(
        "-o", "--out", metavar="DIR", help="keep rows and figures there; a run that was stopped goes on there"
    )
    made.add_argument(
        "--prefix",
        type=_ids,
        metavar="ID,...",
        help="token ids read before every text; none for none (default: the token that ends a text)",
    )
    made.add_argument("--seed", type=options.whole(0), metavar="N", help="of all that is drawn (default: 0)")
    made.add_argument(
        "--batch", type=options.whole(1), default=32, metavar="N", help="items asked about together (default: 32)"
    )
    made.add_argument(
        "--workers",
        type=options.whole(1),
        metavar="N",
        help="processes of Ray that read side by side, each with the model (default: none)",
    )
    options.add_general(made, json="print one object: manifest and results")
    options.add_model(made)
    return made


def run(args: argparse.Namespace) -> int:
    from rookery.evaluate import text

    if args.list:
        print(_listing())
        return 0
    from rookery.evaluate import run as measure

    tasks = _tasks(args)
    with Job(f"reading {args.model}"):
        scorer = _scorer(args)
    reader = _workers(args, scorer.about) if args.workers else None
    try:
        with Job(f"measuring {options.model_name(args)}", "items") as job:
            found = measure(
                scorer, tasks, args.limit, args.out, args.batch, lambda task, *done: job.update(*done), reader
            )
    except KeyboardInterrupt:
        if args.out:
            print(f"rookery: stopped; the same command goes on from the rows in {args.out}", file=sys.stderr)
        raise
    print(text.dumps(found) if args.json else text.report(found["results"]))
    return 0


def _tasks(args: argparse.Namespace) -> list[Any]:
    """The tasks that were named, each with its settings and its data. Raises InputError."""
    from rookery.evaluate import tasks

    names = [word for word in args.given if "=" not in word]
    if not names:
        raise InputError(f"no task: name at least one of {', '.join(tasks.TASKS)} (see rookery eval --list)")
    rooms = {name: tasks.module(name) for name in names}
    given: dict[str, dict[str, str]] = {name: {} for name in names}
    for word in args.given:
        if "=" in word:
            for name, key, value in _setting(word, rooms):
                given[name][key] = value
    if args.seed is not None:
        for name, room in rooms.items():
            if "seed" in room.Settings.__dataclass_fields__:
                given[name].setdefault("seed", str(args.seed))
    data = _data(args.data, names)
    return [tasks.make(name, given[name], data.get(name)) for name in names]


def _setting(word: str, rooms: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(task, name, value) for each task that `NAME=VALUE` is for."""
    left, _, value = word.partition("=")
    task, dot, name = left.partition(".")
    if dot:
        if task not in rooms:
            raise InputError(f"{word!r}: {task!r} is not among the tasks ({', '.join(rooms)})")
        return [(task, name, value)]
    having = [task for task, room in rooms.items() if left in room.Settings.__dataclass_fields__]
    return [(task, left, value) for task in having or rooms]  # of none: each says what it knows


def _data(given: list[str], names: list[str]) -> dict[str, str]:
    """The data of each task: that with its name, else the one without. Raises InputError."""
    named = [word.partition("=") for word in given]
    found = {task: path for task, equals, path in named if equals and task in names}
    others = [word for word, (task, equals, _) in zip(given, named, strict=True) if not equals or task not in names]
    if len(others) > 1:
        raise InputError(f"--data {others[0]} and --data {others[1]}: say which is for which task, --data TASK=FILE")
    return {name: others[0] for name in names if others} | found


def _scorer(args: argparse.Namespace) -> Any:
    from rookery.evaluate import Local, Remote

    if args.model.startswith(("http://", "https://")):
        return Remote(args.model, prefix=args.prefix)
    return Local(options.load_model(args), args.prefix)


def _workers(args: argparse.Namespace, about: dict[str, Any]) -> Any:
    """Who reads in this process's place."""
    from rookery.evaluate import jobs

    there = argparse.Namespace(**vars(args))
    there.model, there.adapter = jobs.placed(args.model), [jobs.placed(file) for file in args.adapter]
    there.tokenizer = args.tokenizer and jobs.placed(args.tokenizer)
    return jobs.reader(partial(_worker, there), about, args.workers, args.threads, args.batch)


def _worker(args: argparse.Namespace, threads: int) -> Any:
    args.threads = threads
    return _scorer(args)


def _ids(text: str) -> tuple[int, ...]:
    """Token ids with commas between them, or "none"."""
    if text.strip().lower() in ("", "none"):
        return ()
    one = options.whole(0)
    return tuple(one(part) for part in text.split(","))


def _listing() -> str:
    from rookery.evaluate import settings, tasks

    lines = []
    for name, what in tasks.TASKS.items():
        room = tasks.module(name)
        lines.append(f"{name:<{COLUMN}} {what}")
        for key, default, help in settings.describe(room.Settings):
            lines += _entry(f"{key}={default}", help)
        if room.FILES:
            lines += _entry("--data FILE", f"in a folder {' or '.join(room.FILES)}; {room.SOURCE}")
    return "\n".join(lines)


def _entry(left: str, help: str) -> list[str]:
    """Of a list: `left`, what it means beside it, or below where `left` is long."""
    lines = textwrap.wrap(help, WIDTH - COLUMN - 1, break_on_hyphens=False)
    first = f"    {left}"
    over = [first] if len(first) > COLUMN else []
    return over + [f"{'' if over or n else first:<{COLUMN}} {line}" for n, line in enumerate(lines)]
