"""`rookery merge`: a base and what was tuned on it, as one model."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from typing import Any, cast

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError

TYPES = ("f32", "bf16", "f16", "same")


def parser() -> options.Parser:
    made = options.Parser(
        "rookery merge",
        "[options] BASE ADAPTER [ADAPTER ...] OUT",
        "Write a base and adapters, applied in their order, as one model. What no adapter\n"
        "touches is written bit for bit; changed tensors are float32 unless --dtype says\n"
        "otherwise (`rookery quantize` makes them small). A base that was rounded to int8 or\n"
        "nf4 under training is rounded so again. A tuned state, which may stand for an\n"
        "adapter, becomes the one that the model begins its reading from (v5 to v7).",
    )
    made.add_argument("base", metavar="BASE", help="the model file that was tuned")
    made.add_argument("adapters", nargs="+", metavar="ADAPTER", help="an adapter's file or folder, or a tuned state")
    made.add_argument("target", metavar="OUT", help="the file to write; with --to hf a new or empty folder")
    made.add_argument("--to", metavar="FORMAT", help="pth, safetensors, gguf or hf (default: by the suffix of OUT)")
    made.add_argument(
        "--dtype",
        default="f32",
        choices=TYPES,
        metavar="TYPE",
        help="of the changed tensors: f32, bf16, f16 or same, which is the base's (default: f32)",
    )
    made.add_argument(
        "--scale", type=_number, default=1.0, metavar="X", help="how far to go from base to tuned (default: 1)"
    )
    made.add_argument("--alpha", type=_number, metavar="X", help="of an RWKV-PEFT LoRA, whose file does not say it")
    made.add_argument("--init", metavar="FILE", help="the init_pissa.pth of an RWKV-PEFT PiSSA")
    made.add_argument("--force", action="store_true", help="overwrite OUT; drop a state's token shifts")
    options.add_general(made, json="print what was written as one object")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery import formats, weights
    from rookery.state import State
    from rookery.weights.adapters.merge_file import How, merge

    with Job(f"merging into {args.base}", "million numbers") as job:

        def progress(done: int, total: int) -> None:
            job.update(round(done / 1e6), max(1, round(total / 1e6)))

        base = weights.load(args.base)
        found = {path: _opened(path, base, args) for path in args.adapters}
        states = [path for path, one in found.items() if isinstance(one, State)]
        adapters = [found[path] for path in args.adapters if path not in states]
        if len(states) > 1:
            raise InputError(f"{states[1]}: a model begins with one tuned state, and {states[0]} is there")
        begin = time_state(states[0], found[states[0]], args.force)[0] if states else None
        how = How(args.scale, args.dtype)
        changed = merge(base, adapters, args.target, args.to, how, begin, args.force, progress)
    _warn(base, adapters)
    written, size = formats.detect(args.target), formats.size(args.target)
    types = dict(Counter(t.dtype for t in (changed | (begin or {})).values()))
    if args.json:
        said = {"base": args.base, "adapters": args.adapters, "target": args.target, "format": written}
        print(json.dumps(said | {"bytes": size, "changed": types}))
        return 0
    listing = ", ".join(f"{count} {dtype}" for dtype, count in sorted(types.items()))
    print(f"wrote {args.target}: {written}, {size / 1e6:.1f} MB, changed tensors: {listing}")
    return 0


def _opened(path: str, base: Any, args: argparse.Namespace) -> Any:
    """An Adapter, or a tuned State. Raises FileError, AdapterError and StateError."""
    from rookery import formats, tuned_state
    from rookery.model import Model
    from rookery.state import State
    from rookery.weights import adapters

    if os.path.isfile(path):
        file = formats.read(path)
        if file.metadata.get("rookery.kind") == "state" or tuned_state.is_one(file):
            model = Model(base, cast(Any, None))  # which runs nothing, but knows its own states
            return State.load(path, model, allow_lineage=True)
    foreign = {"alpha": args.alpha, "init": args.init}
    return adapters.load(path, **{key: value for key, value in foreign.items() if value is not None})


def time_state(path: str, state: Any, force: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """`tuned_state.tensors`; says what `force` dropped. Raises StateError that names the file."""
    from rookery import tuned_state
    from rookery.errors import StateError

    try:
        found = tuned_state.tensors(state, force)
    except StateError as error:
        raise StateError(f"{path}: {error}") from None
    if tuned_state.shifted(state):
        print(f"rookery: {path}: its token shifts were dropped; what begins with the rest is not it", file=sys.stderr)
    return found


def _warn(base: Any, adapters: list[Any]) -> None:
    """Of rounding that was not the training's."""
    from rookery.formats import blocks

    dtype = base.tensors["blocks.0.ffn.key.weight"].dtype
    for one in adapters:
        if one.quant != "none" and one.base_fingerprint != base.fingerprint and dtype in blocks.BLOCKS:
            line = f"{one.path} was trained over {one.quant}; {base.path} lies in {dtype}, and was merged as it is"
            print(f"rookery: {line}", file=sys.stderr)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value
