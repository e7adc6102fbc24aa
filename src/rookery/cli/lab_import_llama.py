"""`rookery lab import-llama`: a state that llama.cpp saved becomes one of ours."""

from __future__ import annotations

import argparse
import sys

from rookery.cli import lab_tables, options
from rookery.cli.progress import Job


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab import-llama",
        "[options] BLOB OUT",
        "Turn a state that llama.cpp saved (llama_state_seq_get_data, a slot's or a prompt\n"
        "cache's file; RWKV-6 and 7) into a state of the model -m. The file does not say which\n"
        "weights made it: give those that did.",
    )
    made.add_argument("blob", metavar="BLOB", help="the saved bytes")
    made.add_argument("output", metavar="OUT", help="the state to write, as safetensors")
    lab_tables.add_force(made, "OUT")
    options.add_general(made)
    options.add_model(made)
    return made


def run(args: argparse.Namespace) -> int:
    from rookery.lab.llama_state import import_llama

    lab_tables.check_target(args.output, args.force)
    with Job(f"loading {args.model}"):
        model = options.load_model(args)
    state = import_llama(args.blob, model)
    state.save(args.output)
    print(f"rookery: {args.output}: {state.flat.size:,} numbers", file=sys.stderr)
    return 0
