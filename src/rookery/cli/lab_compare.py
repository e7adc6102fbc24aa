"""`rookery lab compare`: one experiment over several substrates."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from rookery.cli import lab_tables, options
from rookery.cli.progress import Job
from rookery.errors import InputError, MissingFile


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab compare",
        "[options] [SUBSTRATE ...]",
        "Drive several substrates by the same texts, and left to themselves, and report how\n"
        "their states move, return from a push, and what can be read off them, beside nulls.\n\n"
        "substrates: rwkv transformer physics nulls (frozen iid ar1); default: all.\n"
        "--out gets report.html (one page, no network), metrics.csv and manifest.json; results\n"
        "are kept there as they come, so that the same command goes on after it was stopped.\n"
        f"{lab_tables.EXACT}",
    )
    made.add_argument("substrates", nargs="*", metavar="SUBSTRATE", help="what to compare (default: all four)")
    made.add_argument("--prompts", type=options.whole(2), metavar="N", help="texts (default: 30, or all of -f)")
    made.add_argument(
        "--ticks", type=options.whole(8), metavar="N", help="looks at the state (default: 64 tokens, 10 generations)"
    )
    made.add_argument("--seeds", type=options.whole(1), default=5, metavar="N", help="runs of each text (default: 5)")
    made.add_argument("--tick", default="token", metavar="WHAT", help="token, or generation: 8 tokens (default: token)")
    made.add_argument("--out", default="rookery-lab", metavar="DIR", help="folder to write (default: rookery-lab)")
    made.add_argument(
        "--size", type=float, default=0.1, metavar="X", help="of a push, relative to the component (default: 0.1)"
    )
    made.add_argument(
        "-f", "--file", metavar="FILE", help="your own texts, one a line; a topic and a tab may come before each"
    )
    made.add_argument(
        "--transformer",
        default="gander",
        metavar="DIR",
        help="a Hugging Face folder with safetensors and a tokenizer.json (default: gander, the packaged tiny one)",
    )
    options.add_general(made, json="print every number as one object")
    options.add_model(made)
    return made


def run(args: argparse.Namespace) -> int:
    lab_tables.calm_numpy()
    from rookery.lab.compare import check_extras, compare
    from rookery.lab.design import EVERYTHING, Design
    from rookery.lab.hosts import Models
    from rookery.lab.passages import PASSAGES

    passages = PASSAGES if args.file is None else _passages(args.file)
    design = Design(
        substrates=tuple(args.substrates) or EVERYTHING,
        prompts=args.prompts or len(passages),
        ticks=args.ticks or 0,
        seeds=args.seeds,
        tick=args.tick,
        size=args.size,
        passages=passages,
    )
    check_extras(design)
    models = Models(transformer=args.transformer)
    if "rwkv" in design.substrates:
        models.rwkv = lab_tables.load_exact(args)
    with Job(f"comparing {', '.join(design.substrates)}", "runs") as job:
        rows = compare(design, args.out, models, job.update)
    if args.json:
        print(json.dumps([{**asdict(row), "unit": row.unit} for row in rows], allow_nan=False, default=str))
    else:
        print(os.path.join(args.out, "report.html"))
    return 0


def _passages(path: str) -> tuple[tuple[str, str], ...]:
    """(topic, text) of each line of a file that is not empty."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file if line.strip()]
    except FileNotFoundError:
        raise MissingFile(path, "no such file; wanted texts, one a line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not valid UTF-8") from None
    if len(lines) < 2:
        raise InputError(f"{path}: {len(lines)} texts; at least 2 are wanted, one a line")
    found = []
    for line in lines:
        topic, tab, text = line.partition("\t")
        found.append((topic, text) if tab else ("", line))
    return tuple(found)
