"""`rookery lab diff`: how far two states lie apart."""

from __future__ import annotations

import argparse
import json

from rookery.cli import lab_tables, options

COLUMNS = ("", "delta", "rel_delta", "cosine", "nonfinite")


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab diff",
        "[options] A B",
        "How far two states of one model lie apart, by layer and head. delta is the L2 distance\n"
        "over sqrt(n), in the state's units; rel_delta that distance over the mean norm, 0 to 2.",
    )
    made.add_argument("a", metavar="A", help="a saved state")
    made.add_argument("b", metavar="B", help="another of the same model")
    options.add_general(made, json="print the rows as one list of objects")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery.errors import StateError
    from rookery.lab.tables import difference
    from rookery.state import State, shapes

    a, b = State.load(args.a), State.load(args.b)
    if shapes(a.config) != shapes(b.config) or a.origin.lineage != b.origin.lineage:
        raise StateError(f"{args.b}: a state of another model than {args.a}; only states of one model can be compared")
    rows = difference(a, b)
    if args.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print(lab_tables.table(lab_tables.named(rows), COLUMNS))
    return 0
