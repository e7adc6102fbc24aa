"""`rookery bench`: tokens a second, memory, and how near to what the machine can read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job


class _Bench(options.Parser):
    """Hands over to the parser of `context` where that is named first."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = list(args or [])
        if given[:1] != ["context"]:
            return super().parse_args(given, namespace)
        from rookery.cli import bench_context

        found = bench_context.parser().parse_args(given[1:])
        found.run = bench_context.run
        return found


def parser() -> options.Parser:
    made = _Bench(
        "rookery bench",
        "[options] | context ...",
        "Measure a model's speed and memory on this machine; `rookery bench context --help`\n"
        "compares RWKV with other architectures, from short contexts to a million tokens.\n\n"
        "All tests run once in every repeat, one after the other; shown are medians, least and\n"
        "most. Tokens are random: speed does not depend on the text. Decode is the bare step of\n"
        "the model, without sampling. GB/s counts the bytes of weights that a step reads;\n"
        "the native back end compares it with its threads only reading the same bytes.\n"
        "-t 1,2 measures with 1 thread, then with 2.",
    )
    made.add_argument(
        "-p", "--prefill", type=options.whole(0), default=512, metavar="N", help="tokens of the prompt (default: 512)"
    )
    made.add_argument(
        "-n", "--decode", type=options.whole(0), default=128, metavar="N", help="tokens decoded (default: 128)"
    )
    made.add_argument(
        "--depth", type=options.numbers(0), default=(0,), metavar="N,..", help="tokens read before decode (default: 0)"
    )
    made.add_argument(
        "--rows",
        type=options.numbers(1),
        default=(1, 8),
        metavar="N,..",
        help="sequences decoded together (default: 1,8)",
    )
    made.add_argument("--repeats", type=options.whole(1), default=5, metavar="N", help="of each test (default: 5)")
    made.add_argument("--seed", type=options.whole(0), default=0, metavar="N", help="of the tokens (default: 0)")
    options.add_general(made, json="print one object, every sample in it")
    options.add_model(made, threads=options.numbers(1))
    made.set_defaults(run=_run)
    return made


def run(args: argparse.Namespace) -> int:
    code: int = args.run(args)
    return code


def _run(args: argparse.Namespace) -> int:
    from rookery import bench

    settings = bench.Settings(args.prefill, args.decode, args.depth, args.rows, args.repeats, args.seed)

    def load(threads: int | None) -> Any:
        return options.load_model(argparse.Namespace(**{**vars(args), "threads": threads}))

    with Job(f"measuring {args.model}", "tokens") as job:
        report = bench.measure(load, settings, args.threads or (None,), job.update)
    print(json.dumps(report) if args.json else bench.table(report))
    return 0
