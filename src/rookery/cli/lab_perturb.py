"""`rookery lab perturb`: push the state, and see what follows."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec

from rookery.cli import lab_tables, options
from rookery.cli.progress import Job
from rookery.errors import InputError, MissingExtra

COLUMNS = (
    "component", "size", "kl", "kl_per_square", "half_life", "first_difference", "equal_share", "edit_distance",
)  # fmt: skip


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab perturb",
        "[options] PROMPT ...",
        "Read a text, push each component of the state by several sizes in random directions,\n"
        "and measure: kl, of the next token, in nats (kl_per_square: nats per squared size, for\n"
        "small ones); half_life, in tokens, of the push while the text --follow is read;\n"
        "first_difference, tokens until a text written from there differs (median; - where most\n"
        "stay equal; equal_share do), and the edit_distance of the texts, in tokens.\n"
        f"{lab_tables.EXACT}",
    )
    made.add_argument("prompt", nargs="*", metavar="PROMPT", help="the text to read (default: one of the lab's)")
    made.add_argument("--follow", metavar="TEXT", help="read after the push (default: the rest of the lab's text)")
    made.add_argument(
        "--components", default="*", metavar="GLOB,..", help="what to push, such as 'layers.*.wkv' (default: all)"
    )
    made.add_argument(
        "--sizes", default="0.01,0.1,1", metavar="X,..", help="relative to the component (default: 0.01,0.1,1)"
    )
    made.add_argument("--seeds", type=options.whole(1), default=5, metavar="N", help="directions (default: 5)")
    made.add_argument(
        "-n", "--max-tokens", type=options.whole(1), default=32, metavar="N", help="tokens written (default: 32)"
    )
    made.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of these (default: 0, greedy)")
    made.add_argument("--plot", metavar="FILE", help="draw it, as .svg or .png")
    lab_tables.add_force(made, "the plot")
    options.add_general(made, json="print the rows as one list of objects, curves among them")
    options.add_model(made)
    return made


def run(args: argparse.Namespace) -> int:
    lab_tables.calm_numpy()
    if args.plot is not None:
        _check_plot(args.plot, args.force)
    from rookery.lab.passages import PASSAGES
    from rookery.lab.perturb import picture, sweep
    from rookery.lab.substrates.rwkv import RWKV
    from rookery.sampling import Sampling

    sizes, sampling = _sizes(args.sizes), Sampling(temperature=args.temperature)
    words = PASSAGES[0][1].split(" ")
    text = " ".join(args.prompt) or " ".join(words[:30])
    model = lab_tables.load_exact(args)
    end = model.tokenizer.end
    substrate = RWKV(model, sampling, () if end is None else (end,))
    for token in model.tokenizer.encode(text):
        substrate.step(token)
    follow = model.tokenizer.encode(args.follow or " " + " ".join(words[30:]))[:32]
    with Job("pushing", "component sizes") as job:
        rows = sweep(
            substrate, follow, args.components.split(","), sizes, args.seeds, args.max_tokens, sampling, job.update
        )
    if args.plot is not None:
        _draw(picture, rows, args.plot)
    print(json.dumps(rows, allow_nan=False) if args.json else lab_tables.table(rows, COLUMNS))
    return 0


def _sizes(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--sizes {text!r}: numbers with commas between them are wanted") from None


def _check_plot(path: str, force: bool) -> None:
    if find_spec("matplotlib") is None:
        raise MissingExtra("a plot", "lab")
    if os.path.splitext(path)[1] not in (".svg", ".png"):
        raise InputError(f"--plot {path}: a name that ends in .svg or .png is wanted")
    lab_tables.check_target(path, force)


def _draw(picture: object, rows: Sequence[dict[str, object]], path: str) -> None:
    from rookery.formats.atomic import atomic_write
    from rookery.lab import look

    assert callable(picture)
    with look.styled(), atomic_write(path) as file:
        file.write(look.saved(picture(rows), os.path.splitext(path)[1][1:]))
