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
        "--type TYPE [options] IN OUT",
        "Write a model as a GGUF with its matrices in a smaller type. Vectors stay exact,\n"
        "low-rank pairs too unless asked. Rows that are no multiple of 256 make q4_k into\n"
        "q5_0, q5_k into q5_1 and q6_k into q8_0; of 32, anything into f16. OUT is complete\n"
        "or untouched, whenever the work is cut short.",
    )
    made.add_argument("source", metavar="IN", help="a model file")
    made.add_argument("target", metavar="OUT", help="the .gguf file to write")
    made.add_argument("--type", required=True, metavar="TYPE", help=TYPES)
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
    from rookery.weights.quantise import Plan, quantise

    plan = Plan(args.type.lower(), _lower(args.head), _lower(args.embedding), args.lora)
    with Job(f"quantising {args.source}", "million numbers") as job:

        def progress(done: int, total: int) -> None:
            job.update(round(done / 1e6), max(1, round(total / 1e6)))

        types = quantise(args.source, args.target, plan, args.force, args.threads, progress)
    size = os.path.getsize(args.target)
    if args.json:
        print(json.dumps({"source": args.source, "target": args.target, "bytes": size, "tensors": types}))
    else:
        listing = ", ".join(f"{count} {dtype}" for dtype, count in sorted(types.items()))
        print(f"wrote {args.target}: {size / 1e6:.1f} MB, tensors: {listing}")
    return 0


def _lower(name: str | None) -> str | None:
    return name and name.lower()
