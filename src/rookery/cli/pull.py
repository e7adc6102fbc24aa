"""`rookery pull`: a model from the Hugging Face hub into the cache, every byte checked."""

from __future__ import annotations

import argparse
import json

from rookery.cli import options
from rookery.cli.progress import Job


def parser() -> options.Parser:
    made = options.Parser(
        "rookery pull",
        "[options] NAME",
        "Download a model from the Hugging Face hub into its cache, go on where an earlier\n"
        "download stopped, check every byte, and print the path. Every command then takes\n"
        "the NAME for a model. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are heeded.",
    )
    made.add_argument(
        "name",
        metavar="NAME",
        help="ORG/NAME, ORG/NAME:FILE or ORG/NAME@REVISION:FILE; the FILE . is the whole Hugging Face folder",
    )
    options.add_general(made, json="print one object: name, path")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery import hub

    job = Job(f"pulling {args.name}", "MB")
    with job:
        path = hub.pull(args.name, lambda done, total: job.update(done // 1_000_000, total // 1_000_000))
    print(json.dumps({"name": args.name, "path": path}) if args.json else path)
    return 0
