"""`rookery lab`: the commands of the state lab, each in a file of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from rookery.cli import options
from rookery.errors import InputError

COMMANDS = {
    "compare": "an experiment over several substrates, with its report",
    "watch": "watch the state while text is written, and keep a log",
    "perturb": "push the state, and see what follows",
    "report": "the page of an experiment or of a log, made anew",
    "capture": "read a text and keep the state after it",
    "show": "what a state holds, by layer and head",
    "diff": "how far two states lie apart, by layer and head",
    "import-llama": "turn a state that llama.cpp saved into one of ours",
}


class _Lab(options.Parser):
    """Hands over to the parser of the command named first."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = list(args or [])
        if not given or given[0].startswith("-"):
            found = super().parse_args(given, namespace)  # --help ends here
            self.print_help()
            raise SystemExit(2)
        name, *rest = given
        if name not in COMMANDS:
            near = get_close_matches(name.lower(), COMMANDS, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
            raise InputError(f"no command {name!r} in the lab; {hint}")
        command = import_module(f"rookery.cli.lab_{name.replace('-', '_')}")
        found = command.parser().parse_args(rest)
        found.lab = command
        return found


def parser() -> options.Parser:
    listing = "\n".join(f"  {name:<13} {what}" for name, what in COMMANDS.items())
    return _Lab(
        "rookery lab",
        "COMMAND ...",
        "Watch what a model's state is becoming.",
        f"commands:\n{listing}\n\n`rookery lab COMMAND --help` says more of each.",
    )


def run(args: argparse.Namespace) -> int:
    code: int = args.lab.run(args)
    return code
