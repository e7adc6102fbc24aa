"""`rookery convert`: the same tensors, bit for bit, in another format."""

from __future__ import annotations

import argparse
import json

from rookery.cli import options
from rookery.cli.progress import Job


def parser() -> options.Parser:
    made = options.Parser(
        "rookery convert",
        "[options] IN OUT",
        "Write a model in another format. Values never change; blocks become float32\n"
        "where the format has none, vectors in a GGUF too. llama.cpp opens the GGUF of a\n"
        "v6 or v7; that of a v4 or v5 is Rookery's own. OUT is complete or untouched,\n"
        "whenever the work is cut short.",
    )
    made.add_argument(
        "source", metavar="IN", help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, or a Hugging Face folder"
    )
    made.add_argument("target", metavar="OUT", help="the file to write; with --to hf a new or empty folder")
    made.add_argument("--to", metavar="FORMAT", help="pth, safetensors, gguf or hf (default: by the suffix of OUT)")
    made.add_argument("--force", action="store_true", help="overwrite OUT")
    options.add_general(made, json="print what was written as one object")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery import formats, weights

    with Job(f"converting {args.source}"):
        weights.convert(args.source, args.target, to=args.to, force=args.force)
    written, size = formats.detect(args.target), formats.size(args.target)
    if args.json:
        print(json.dumps({"source": args.source, "target": args.target, "format": written, "bytes": size}))
    else:
        print(f"wrote {args.target}: {written}, {size / 1e6:.1f} MB")
    return 0
