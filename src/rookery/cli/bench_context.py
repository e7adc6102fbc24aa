"""`rookery bench context`: speed and memory against context, for RWKV and what one might take instead."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError, MissingExtra

AGAINST = {
    "transformer": ("transformer-gqa", "transformer-mha"),
    "transformer-gqa": ("transformer-gqa",),
    "transformer-mha": ("transformer-mha",),
    "mamba2": ("mamba2",),
    "lstm": ("lstm",),
}
VERSIONS = ("4", "5", "6", "7")
NONE = "none"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
FAILED = 1


def parser() -> options.Parser:
    made = options.Parser(
        "rookery bench context",
        "[options] --out DIR",
        "Measure decode at depth, prefill, time to first token and memory against the context,\n"
        "for RWKV and for other architectures of equally many parameters, weights random.\n\n"
        "Deep decode begins from a made-up state or KV of that depth, and says so; prompts are\n"
        "really read. Every point is a process of its own. What does not fit, or would take too\n"
        "long, is a row that says what it needs. DIR gets points.jsonl, table.md, table.csv,\n"
        "summary.json and pictures; the same command goes on after it was stopped. With the\n"
        "defaults it takes about 20 minutes on two cores, with --quick about two.\n"
        "Lengths are written 512,2048 or 512,...,4096 (doubled) or 512,2048,...,32768\n(times 4).",
    )
    made.add_argument("--out", required=True, metavar="DIR", help="folder to write, or to go on with")
    made.add_argument(
        "--against", type=_against, default=_against("transformer,mamba2,lstm"), metavar="NAME,..",
        help="transformer (with few KV heads and with all), mamba2, lstm, or none (default: all)",
    )  # fmt: skip
    made.add_argument(
        "--rwkv", type=_versions, default=VERSIONS, metavar="V,..", help="4,5,6,7 or none (default: 4,5,6,7)"
    )
    made.add_argument("--native", action="store_true", help="RWKV-7 on the native back end too: another runtime")
    made.add_argument(
        "--parameters",
        type=_count,
        metavar="N",
        help="of each model's blocks, without embedding and head (default: 25M)",
    )
    made.add_argument("--layers", type=options.whole(1), metavar="N", help="of each model (default: 8)")
    made.add_argument("--vocab", type=options.whole(2), metavar="N", help="of each model (default: 8192)")
    made.add_argument("--dtype", metavar="TYPE", help="float32 or bfloat16 (default: float32)")
    made.add_argument("-t", "--threads", type=options.whole(1), metavar="N", help="(default: one a physical core)")
    lengths = made.add_argument_group("points")
    lengths.add_argument(
        "--lengths", type=_lengths, metavar="N,..", help="depths of decode (default: 512,2048,...,524288)"
    )
    lengths.add_argument(
        "--constant-lengths", type=_lengths, metavar="N,..",
        help="more depths for models whose state does not grow, or none (default: 1000000)",
    )  # fmt: skip
    lengths.add_argument(
        "--prefill-lengths", type=_lengths, metavar="N,..", help="prompts, or none (default: 512,2048,8192)"
    )
    lengths.add_argument("--train", action="store_true", help="measure training steps too")
    lengths.add_argument("--train-lengths", type=_lengths, metavar="N,..", help="(default: 512,2048,8192)")
    lengths.add_argument("--quick", action="store_true", help="small models and few lengths: about two minutes")
    how = made.add_argument_group("measuring")
    how.add_argument("--repeats", type=options.whole(2), metavar="N", help="of each point (default: 5)")
    how.add_argument("--tokens", type=options.whole(1), metavar="N", help="decoded in each repeat (default: 64)")
    how.add_argument(
        "--seconds", type=options.whole(1), metavar="N",
        help="that the repeats of a point may take; longer ones are left out and listed (default: 180)",
    )  # fmt: skip
    how.add_argument("--memory-limit", type=_count, metavar="N", help="bytes a point may need (default: what is free)")
    how.add_argument("--seed", type=options.whole(0), metavar="N", help="of weights, tokens and order (default: 0)")
    options.add_general(made, json="print what summary.json holds")
    return made


def run(args: argparse.Namespace) -> int:
    for module in ("torch", "matplotlib"):
        if find_spec(module) is None:
            raise MissingExtra(f"rookery bench context ({module})", "train")
    from rookery.bench.context import report, table
    from rookery.bench.context.sweep import machine, sweep

    settings = _settings(args)
    with Job("measuring", "points") as job:
        rows = sweep(settings, args.out, progress=job.update)
    found = report.write(args.out, settings, machine(), rows)
    print(json.dumps(found, allow_nan=False) if args.json else table.markdown(found), end="\n" if args.json else "")
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        print(f"rookery: {row['phase']} of {row['kind']} at {row['length']:,} failed: {row['why']}", file=sys.stderr)
    return FAILED if failed else 0


def _settings(args: argparse.Namespace) -> Any:
    """What was given, over --quick, over the defaults. Raises InputError."""
    from rookery.backends.native.runner import cores
    from rookery.bench.context.settings import QUICK, TRAIN_LENGTHS, Settings

    if args.train_lengths and not args.train:
        raise InputError("--train-lengths is for --train")
    if args.threads and args.threads > (most := _processors()):
        raise InputError(f"--threads {args.threads}: at most {most} are wanted, a processor each")
    names = (
        "parameters", "layers", "vocab", "dtype", "threads", "lengths", "constant_lengths", "prefill_lengths",
        "train_lengths", "tokens", "repeats", "seconds", "memory_limit", "seed",
    )  # fmt: skip
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.train:
        given.setdefault("train_lengths", TRAIN_LENGTHS[:1] if args.quick else TRAIN_LENGTHS)
    kinds = [f"rwkv{version}" for version in args.rwkv] + ["rwkv7-native"] * args.native + list(args.against)
    return Settings(tuple(kinds), **{"threads": cores(), **(QUICK if args.quick else {}), **given})


def _processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _against(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for name in [] if text == NONE else text.split(","):
        if name not in AGAINST:
            near = get_close_matches(name.lower(), AGAINST, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(AGAINST)}"
            raise argparse.ArgumentTypeError(f"no model {name!r}; {hint}")
        found += AGAINST[name]
    return tuple(dict.fromkeys(found))


def _versions(text: str) -> tuple[str, ...]:
    found = () if text == NONE else tuple(dict.fromkeys(text.split(",")))
    for version in found:
        if version not in VERSIONS:
            raise argparse.ArgumentTypeError(f"no RWKV {version!r}; choose from {', '.join(VERSIONS)}")
    return found


def _count(text: str) -> int:
    """25M, 1.5G or 25000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", text.strip().upper())
    if not match or (count := int(float(match[1]) * UNITS[match[2]])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number like 25M, 1.5G or 25000000")
    return count


def _lengths(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; ... goes on by the factor before it, or doubles."""
    one = options.whole(1)
    found: list[int] = []
    parts = [] if text == NONE else text.split(",")
    for at, part in enumerate(parts):
        if part.strip() != "...":
            found.append(one(part))
            continue
        end = one(parts[at + 1]) if found and at + 1 < len(parts) else 0
        step, left = divmod(found[-1], found[-2]) if len(found) > 1 else (2, 0)
        if step < 2 or left or end <= (found or [0])[-1]:
            raise argparse.ArgumentTypeError(f"{text!r}: ... stands between growing lengths, as in 512,...,4096")
        while found[-1] * step < end:
            found.append(found[-1] * step)
    return tuple(dict.fromkeys(found))
