"""`rookery lab show`: what a state holds."""

from __future__ import annotations

import argparse
import json

from rookery.cli import lab_tables, options

COLUMNS = ("", "numbers", "rms", "max_abs", "nonfinite", "largest_singular", "effective_rank", "stable_rank")


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab show",
        "[options] STATE",
        "What a saved state holds, by layer and head. rms, max_abs and the largest singular\n"
        "value are in the state's units; the effective rank is exp of the entropy of the\n"
        "singular values over their sum, the stable rank their squares over the largest's.",
    )
    made.add_argument("state", metavar="STATE", help="a file of `rookery lab capture` or State.save")
    options.add_general(made, json="print the rows as one list of objects")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery.lab.tables import contents
    from rookery.state import State

    state = State.load(args.state)
    rows = contents(state)
    if args.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print(f"{args.state}: {state.config.name}, {state.config.n_layer} layers, {state.flat.size:,} numbers")
        print(lab_tables.table(lab_tables.named(rows), COLUMNS))
    return 0
