"""`rookery lab report`: the page of an experiment or of a log, made anew."""

from __future__ import annotations

import argparse
import os

from rookery.cli import lab_tables, options
from rookery.errors import CannotWrite, InputError


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab report",
        "[options] LOG|DIR",
        "Of a folder that `rookery lab compare` wrote to, finished or not: write report.html,\n"
        "metrics.csv and manifest.json there anew. Of a log of `rookery lab watch`: write\n"
        "LOG.html, one page without network.",
    )
    made.add_argument("source", metavar="LOG|DIR", help="a log or a folder")
    made.add_argument("-o", "--output", metavar="FILE", help="the page of a log (default: LOG.html)")
    made.add_argument("--plots", metavar="DIR", help="write each picture of an experiment as .png and .svg too")
    lab_tables.add_force(made, "FILE")
    options.add_general(made)
    return made


def run(args: argparse.Namespace) -> int:
    lab_tables.calm_numpy()
    print(_of_folder(args) if os.path.isdir(args.source) else _of_log(args))
    return 0


def _of_folder(args: argparse.Namespace) -> str:
    from rookery.lab import ledger, look, plots
    from rookery.lab.compare import write

    if args.output is not None:
        raise InputError("-o is for a log's page; an experiment's is written into its folder")
    header, records = ledger.read(args.source)
    if not records:
        raise InputError(f"{args.source}: no result yet; run the same `rookery lab compare` again")
    found = write(args.source, header, records)
    if args.plots is not None:
        topics = [topic for topic, _ in header["design"]["passages"]]
        with look.styled():
            for name, draw in plots.all_plots(records, found, topics).items():
                _save(args.plots, name, draw())
    return os.path.join(args.source, "report.html")


def _save(folder: str, name: str, made: object) -> None:
    from rookery.formats.atomic import atomic_write
    from rookery.lab import look

    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise CannotWrite(folder, f"cannot be written ({error.strerror})") from None
    for kind in ("svg", "png") if made is not None else ():
        with atomic_write(os.path.join(folder, f"{name}.{kind}")) as file:
            file.write(look.saved(made, kind))


def _of_log(args: argparse.Namespace) -> str:
    from rookery.formats.atomic import atomic_write
    from rookery.lab.log_report import html

    if args.plots is not None:
        raise InputError("--plots is for an experiment's folder; a log's page has its pictures in it")
    target = args.output or f"{args.source}.html"
    lab_tables.check_target(target, args.force)
    text = html(args.source)
    with atomic_write(target) as file:
        file.write(text.encode())
    return str(target)
