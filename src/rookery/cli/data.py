"""`rookery data`: texts become the token file that training reads."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rookery.cli import options
from rookery.cli.progress import Job


def parser() -> options.Parser:
    made = options.Parser(
        "rookery data",
        "[options] IN... -o PREFIX",
        "Tokenise text for training, with all cores: PREFIX.bin and PREFIX.idx are what\n"
        "RWKV-LM reads too. A text file is one document, so is each line of a .jsonl file,\n"
        '{"text": "..."}; token 0 ends a document, unless the tokenizer has no end (bytes,\n'
        "utf16le). What is tokenised is decoded again and compared.",
    )
    made.add_argument(
        "sources",
        nargs="+",
        metavar="IN",
        help="text and .jsonl files in UTF-8 (or .gz of these), folders of them, and the PREFIX of other token files",
    )
    made.add_argument("-o", "--output", required=True, metavar="PREFIX", help="the token file to write")
    made.add_argument(
        "--tokenizer",
        default="world",
        metavar="NAME",
        help="bytes, utf16le, world, a vocabulary or a tokenizer.json (default: world)",
    )
    made.add_argument(
        "--repeat",
        type=options.whole(1),
        default=1,
        metavar="N",
        help="write the documents N times, each time in another order (default: 1)",
    )
    made.add_argument(
        "--seed", type=options.whole(0), metavar="S", help="shuffle, by this number (default: as they come, or 0)"
    )
    made.add_argument(
        "--workers", type=options.whole(0), default=0, metavar="N", help="processes (default: all cores where it pays)"
    )
    made.add_argument(
        "--ctx",
        type=options.numbers(1),
        default=(512,),
        metavar="T",
        help="tell the magic prime for sequences of T tokens; several with commas (default: 512)",
    )
    made.add_argument("--force", action="store_true", help="overwrite PREFIX.bin and PREFIX.idx")
    options.add_general(made, json="print what was written as one object")
    return made


def run(args: argparse.Namespace) -> int:
    from rookery.errors import CannotWrite
    from rookery.train import binidx, corpus

    for path in binidx.paths(args.output):
        if path.exists() and not args.force:
            raise CannotWrite(path, "exists already; --force overwrites it")
    job = Job(f"tokenising for {args.output}", "MB")
    with job:
        built = corpus.build(
            args.sources,
            args.output,
            args.tokenizer,
            repeat=args.repeat,
            seed=args.seed,
            workers=args.workers,
            progress=lambda done, total: job.update(done // 1_000_000, -(-total // 1_000_000)),
        )
    primes = {ctx: _prime(built.tokens, ctx) for ctx in args.ctx}
    ratio = built.text_bytes / built.text_tokens if built.text_tokens else None
    if args.json:
        facts = {**asdict(built), "prefix": args.output, "bytes_per_token": ratio, "magic_primes": primes}
        print(json.dumps(facts))
        return 0
    print(f"wrote {' and '.join(map(str, binidx.paths(args.output)))}")
    print(f"documents        {built.documents:,}" + (f" ({built.empty:,} empty left out)" if built.empty else ""))
    print(f"tokens           {built.tokens:,}")
    if ratio is not None:
        print(f"bytes per token  {ratio:.3f}")
    for ctx, prime in primes.items():
        print(f"magic prime      {prime or 'none: too few tokens'} (for ctx_len {ctx})")
    return 0


def _prime(tokens: int, ctx: int) -> int | None:
    from rookery.errors import InputError
    from rookery.train import order

    try:
        return order.prime_for(tokens, ctx)
    except InputError:
        return None
