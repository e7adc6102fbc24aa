"""From the command line to one command, and from whatever goes wrong to one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from rookery import __version__
from rookery.cli.options import Parser
from rookery.errors import InputError, RookeryError

COMMANDS = {
    "generate": "continue a text",
    "chat": "talk with a model",
    "serve": "serve a model over HTTP",
    "info": "say what a model file is and holds",
    "convert": "write a model in another format",
    "quantize": "write a model in smaller types",
    "train": "train a model from nothing",
    "tune": "tune a model on examples: an adapter, a state or all of it",
    "merge": "write a base and its adapters as one model",
    "plan": "say what tuning or serving a model will take",
    "data": "tokenise text for training",
    "eval": "measure what a model can do",
    "bench": "measure speed and memory",
    "lab": "watch, push and compare states",
    "pull": "download a model from the Hugging Face hub",
    "doctor": "check this installation",
}

OK, MISTAKE, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code; nothing is raised but a bug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return OK
    except (RookeryError, OSError, MemoryError) as error:
        if "--debug" in arguments:
            import traceback

            traceback.print_exc()
        with suppress(OSError):
            print(f"rookery: {printable(_line(error))}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()
        return MISTAKE


def _run(arguments: list[str]) -> int:
    parser = _parser()
    try:
        if arguments and not arguments[0].startswith("-"):
            name, *rest = arguments
            if name not in COMMANDS:
                raise InputError(_unknown(name))
            command = import_module(f"rookery.cli.{name}")
            code: int = command.run(command.parser().parse_args(rest))
            return code
        parser.parse_args(arguments)  # --help and --version exit here
    except SystemExit as done:
        return int(done.code or OK)
    parser.print_help(sys.stderr)
    return MISTAKE


def _parser() -> Parser:
    listing = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        "rookery",
        "COMMAND ...",
        "Run, convert and inspect RWKV language models, v4 to v7.",
        f"commands:\n{listing}\n\n`rookery COMMAND --help` says more of each.",
    )
    parser.add_argument("--version", action="version", version=f"rookery {__version__}")
    return parser


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), COMMANDS, 1, 0.5)
    return f"no command {name!r}; " + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}")


def _line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    if isinstance(error, OSError):
        return f"{os.fsdecode(error.filename) if error.filename else 'output'}: {error.strerror or error}"
    return str(error)


def printable(text: str) -> str:
    """`text` with line ends, terminal codes and the like escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _prepare_streams() -> None:
    """A stream closed from outside is one to nowhere; a terminal that lacks a letter gets a question mark."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, it is stdout from here on
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _abandon_stdout() -> None:
    """Send what stdout still buffers nowhere, so that the interpreter's own flush at exit stays quiet."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
