"""`rookery convert`: a model, an adapter or a tuned state, the same numbers in another format."""

from __future__ import annotations

import argparse
import json
import os

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError


def parser() -> options.Parser:
    made = options.Parser(
        "rookery convert",
        "[options] IN OUT",
        "Write a model in another format. Values never change; blocks become float32\n"
        "where the format has none, vectors in a GGUF too. llama.cpp opens the GGUF of a\n"
        "v6 or v7; that of a v4 or v5 is Rookery's own. OUT is complete or untouched,\n"
        "whenever the work is cut short.\n\n"
        "An adapter becomes RWKV-PEFT's (--to pth), Hugging Face peft's folder (--to hf) or\n"
        "Rookery's own; a state becomes the time_state of RWKV-LM and RWKV-PEFT.",
    )
    made.add_argument(
        "source", metavar="IN", help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, or a Hugging Face folder"
    )
    made.add_argument("target", metavar="OUT", help="the file to write; with --to hf a new or empty folder")
    made.add_argument("--to", metavar="FORMAT", help="pth, safetensors, gguf or hf (default: by the suffix of OUT)")
    made.add_argument("--force", action="store_true", help="overwrite OUT; drop a state's token shifts")
    made.add_argument("--alpha", type=float, metavar="X", help="of an RWKV-PEFT LoRA, whose file does not say it")
    made.add_argument("--init", metavar="FILE", help="what a PiSSA began as: init_pissa.pth, or peft's folder of it")
    options.add_general(made, json="print what was written as one object")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery import formats, weights
    from rookery.weights.convert import check_target

    with Job(f"converting {args.source}"):
        if args.to != "hf":
            check_target(args.source, args.target, args.force)
        kind = _kind(args.source)
        if kind != "adapter" and (args.alpha, args.init) != (None, None):
            raise InputError(f"{args.source}: a {kind}; --alpha and --init are for adapters of others")
        if kind == "adapter":
            _adapter(args)
        elif kind == "state":
            _state(args)
        else:
            weights.convert(args.source, args.target, to=args.to, force=args.force)
    written = "hf" if os.path.isdir(args.target) else formats.detect(args.target)
    size = formats.size(args.target)
    if args.json:
        print(json.dumps({"source": args.source, "target": args.target, "format": written, "bytes": size}))
    else:
        print(f"wrote {args.target}: {written}, {size / 1e6:.1f} MB")
    return 0


def _kind(path: str) -> str:
    """What lies there: an adapter, a state or, as far as this can say, a model."""
    from rookery import formats, tuned_state
    from rookery.weights import adapters

    if adapters.is_one(path):
        return "adapter"
    if os.path.isfile(path) and formats.detect(path) in ("pth", "safetensors"):
        file = formats.read(path)
        if file.metadata.get("rookery.kind") == "state" or tuned_state.is_one(file):
            return "state"
    return "model"


def _adapter(args: argparse.Namespace) -> None:
    from rookery.weights import adapters

    adapters.write(adapters.load(args.source, args.alpha, args.init), args.target, args.to, args.force)


def _state(args: argparse.Namespace) -> None:
    from rookery import formats, tuned_state
    from rookery.cli.merge import time_state
    from rookery.state import State

    if (args.to or formats.suffix_format(args.target)) in ("gguf", "hf"):
        raise InputError(f"{args.target}: a state is written as .pth or .safetensors; name it so")
    file = formats.read(args.source)
    others = tuned_state.is_one(file)
    found = tuned_state.of_others(file) if others else time_state(args.source, State.of_file(file), args.force)
    tensors, said = found
    formats.write(args.target, tensors, said, format=args.to)
