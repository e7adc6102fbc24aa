"""`rookery lab watch`: the state while text is written, live, and in a log that goes on over many generations."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from rookery.cli import options
from rookery.cli.main import printable
from rookery.cli.progress import Job
from rookery.errors import InputError, MissingExtra

INTERRUPTED = 130
SHOWN = 400  # characters of the newest text beneath the strips


def parser() -> options.Parser:
    made = options.Parser(
        "rookery lab watch",
        "[options] PROMPT ...",
        "Continue each prompt and watch the state: how much every layer changes from capture to\n"
        "capture, coherence, ranks. On a terminal as heat strips over the text; a pipe gets the\n"
        "text and, on stderr, a line for each capture. --log keeps every capture, and goes on\n"
        "with the log of an earlier run of the same model.",
    )
    made.add_argument("prompts", nargs="*", metavar="PROMPT", help="the texts to continue, each a generation")
    made.add_argument("--log", metavar="FILE", help="append each capture to FILE, a line of JSON each")
    made.add_argument(
        "--window", type=options.whole(2), default=64, metavar="N", help="captures that coherence is of (default: 64)"
    )
    made.add_argument(
        "--every", type=options.whole(1), default=1, metavar="N", help="tokens between captures (default: 1)"
    )
    made.add_argument(
        "-n", "--max-tokens", type=options.whole(0), default=64, metavar="N", help="of each generation (default: 64)"
    )
    made.add_argument("--repeat", type=options.whole(1), default=1, metavar="N", help="read all prompts N times")
    made.add_argument("--carry", action="store_true", help="go on from the state of the generation before")
    made.add_argument("--no-ranks", action="store_true", help="leave out effective ranks, which cost most")
    options.add_general(made, json="print each capture as one line of JSON, and no text")
    options.add_model(made)
    options.add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    sampling = options.sampling(args)
    if not args.prompts:
        raise InputError("no prompt: give at least one text to continue")
    live = sys.stdout.isatty() and not args.json
    if live and find_spec("rich") is None:
        raise MissingExtra("the live view", "chat")
    with Job(f"loading {args.model}"):
        model = options.load_model(args)
    from rookery.lab.monitor import Monitor

    show: Callable[[Any], None] = _print_json if args.json else _print_line
    ranks = not args.no_ranks and model.config.version != "4"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coherence by its first definition", UserWarning)  # the view says it
        monitor = Monitor(
            model, args.log or _nowhere(), window=args.window, every=args.every, ranks=ranks,
            on_row=None if live else show,
        )  # fmt: skip
        try:
            with monitor:
                (_live if live else _plain)(args, model, sampling, monitor)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def _nowhere() -> str:
    """A log that is deleted with the process: nothing was asked to be kept."""
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="rookery-watch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return f"{folder}/watch.jsonl"


def _streams(args: argparse.Namespace, model: Any, sampling: Any) -> Any:
    """A stream for every generation, in turn."""
    state = None
    for round_ in range(args.repeat):
        for i, prompt in enumerate(args.prompts):
            seed = None if args.seed is None else args.seed + round_ * len(args.prompts) + i
            stream = model.stream(prompt, args.max_tokens, sampling, seed, state=state)
            yield prompt, stream
            if args.carry:
                state = stream.state


def _plain(args: argparse.Namespace, model: Any, sampling: Any, monitor: Any) -> None:
    for _, stream in _streams(args, model, sampling):
        for piece in stream:
            if not args.json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        if not args.json:
            print(flush=True)


def _print_json(row: Any) -> None:
    print(json.dumps(row), flush=True)


def _print_line(row: Any) -> None:
    from rookery.lab.watch import line

    print(line(row), file=sys.stderr)


def _live(args: argparse.Namespace, model: Any, sampling: Any, monitor: Any) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from rookery.lab.watch import panel

    console = Console()
    for prompt, stream in _streams(args, model, sampling):
        text = prompt
        with Live(console=console, refresh_per_second=12, transient=False) as view:
            for piece in stream:
                text += piece
                view.update(Group(panel(monitor.rows, console.width), Text(""), _shown(text)))
            view.update(Group(panel(monitor.rows, console.width), Text(""), _shown(text)))


def _shown(text: str) -> Any:
    """The end of the text, without what a terminal would obey."""
    from rich.text import Text

    return Text("\n".join(map(printable, text[-SHOWN:].split("\n"))))
