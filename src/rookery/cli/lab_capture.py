"""`rookery lab capture`: read a text and keep the state after it."""

from __future__ import annotations

import argparse
import json
import sys

from rookery.cli import lab_tables, options
from rookery.cli.progress import Job


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab capture",
        "[options] OUT PROMPT ...",
        "Read a text and write the state after it as safetensors: `rookery lab show` and `diff`\n"
        "read it, and rookery.State.load.",
    )
    made.add_argument("output", metavar="OUT", help="the file to write")
    made.add_argument("prompt", nargs="+", metavar="PROMPT", help="the text to read; several words are joined")
    made.add_argument("--from", dest="start", metavar="STATE", help="go on from this state")
    lab_tables.add_force(made, "OUT")
    options.add_general(made, json="print what was written as one object")
    options.add_model(made)
    return made


def run(args: argparse.Namespace) -> int:
    lab_tables.check_target(args.output, args.force)
    text = lab_tables.prompt(args.prompt)
    with Job(f"loading {args.model}"):
        model = options.load_model(args)
    from rookery.state import State

    start = None if args.start is None else State.load(args.start, model)
    tokens = model.tokenizer.encode(text)
    with Job("reading the text", "tokens") as job:
        _, state = model.forward(tokens, start, progress=job.update)
    state.save(args.output)
    if args.json:
        print(json.dumps({"output": args.output, "tokens": len(tokens), "numbers": state.flat.size}))
    else:
        said = f"{args.output}: {state.flat.size:,} numbers after {len(tokens)} tokens"
        print(f"rookery: {said}", file=sys.stderr)
    return 0
