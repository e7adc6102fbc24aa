"""`rookery quantize`: a smaller model, its matrices in blocks."""

from __future__ import annotations

import argparse
import json
import os

from rookery.cli import options
from rookery.cli.progress import Job

TYPES = "q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, f16, bf16, f32"


def parser() -> options.Parser:
    made = options.Parser(
        "rookery quantize",
        "[--type TYPE] [--packed] [options] IN OUT",
        "Write a model as a GGUF with its matrices in a smaller type. Vectors stay exact,\n"
        "low-rank pairs too unless asked. Rows that are no multiple of 256 make q4_k into\n"
        "q5_0, q5_k into q5_1 and q6_k into q8_0; of 32, anything into f16. OUT is complete\n"
        "or untouched, whenever the work is cut short.\n\n"
        "With --packed the same values are written as the native engine wants them in memory,\n"
        "which it then maps instead of making them at every start. Without --type these are\n"
        "the values of IN as they are. Only Rookery reads such a file; `convert` unpacks it.",
    )
    made.add_argument("source", metavar="IN", help="a model file")
    made.add_argument("target", metavar="OUT", help="the .gguf file to write; with --packed the .safetensors file")
    made.add_argument("--type", metavar="TYPE", help=TYPES)
    made.add_argument("--packed", action="store_true", help="lay the matrices out for the native engine")
    made.add_argument("--head", metavar="TYPE", help="of the matrix that gives the logits (default: --type)")
    made.add_argument("--embedding", metavar="TYPE", help="of the token embedding (default: --type)")
    made.add_argument("--lora", action="store_true", help="change the type of the low-rank pairs too")
    made.add_argument("--force", action="store_true", help="overwrite OUT")
    made.add_argument(
        "-t", "--threads", type=options.whole(1), metavar="N", help="threads that encode (default: all cores)"
    )
    options.add_general(made, json="print what was written as one object")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery.errors import InputError
    from rookery.weights.quantise import Plan, quantise

    if args.type is None and not args.packed:
        raise InputError("required: --type (or --packed, which alone keeps the types; see rookery quantize --help)")
    plan = Plan(_lower(args.type), _lower(args.head), _lower(args.embedding), args.lora)
    with Job(f"{'quantising' if args.type else 'packing'} {args.source}", "million numbers") as job:

        def progress(done: int, total: int) -> None:
            job.update(round(done / 1e6), max(1, round(total / 1e6)))

        types = quantise(args.source, args.target, plan, args.force, args.threads, progress, args.packed)
    size = os.path.getsize(args.target)
    if args.json:
        print(json.dumps({"source": args.source, "target": args.target, "bytes": size, "tensors": types}))
    else:
        listing = ", ".join(f"{count} {dtype}" for dtype, count in sorted(types.items()))
        print(f"wrote {args.target}: {size / 1e6:.1f} MB, tensors: {listing}")
    return 0


def _lower(name: str | None) -> str | None:
    return name and name.lower()
