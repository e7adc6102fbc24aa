"""`rookery chat`: a talk in the terminal, or one turn for every line of a pipe."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from rookery.cli import options
from rookery.cli.main import printable
from rookery.cli.progress import Job
from rookery.errors import InputError, MissingExtra

MAX_TOKENS = 512


def parser() -> options.Parser:
    made = options.Parser(
        "rookery chat",
        "[options]",
        "Talk with a model.\n\n"
        "Talks are kept in $XDG_DATA_HOME/rookery (default: ~/.local/share/rookery) after every\n"
        "turn; --resume goes on with one. /help lists what can be typed besides messages.\n"
        "Where stdin or stdout is no terminal, every line of stdin is a message and the replies\n"
        "go to stdout.",
    )
    talk = made.add_argument_group("talk")
    talk.add_argument(
        "--template",
        metavar="NAME",
        help="how the model reads a talk: raven, world, g1, coder, plain, or a .jinja file (default: its own)",
    )
    talk.add_argument("--system", metavar="TEXT", help="who the model is to be, read before the first turn")
    talk.add_argument(
        "--think",
        metavar="MODE",
        help="thoughts before the answer, where the template has them: off, fake, on, short, medium, long",
    )
    talk.add_argument(
        "--profile",
        metavar="NAME",
        help="sampling by name: g1, careful, raven, ... (default: the template's, else demo)",
    )
    talk.add_argument(
        "-n",
        "--max-tokens",
        type=options.whole(1),
        default=MAX_TOKENS,
        metavar="N",
        help=f"tokens of a reply at most (default: {MAX_TOKENS})",
    )
    talk.add_argument("--name", metavar="NAME", help="the name of a new talk (default: made up)")
    talk.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="[NAME]",
        help="go on with a talk that was kept (default: the newest of this model)",
    )
    talk.add_argument(
        "--store",
        metavar="FILE",
        help="where talks are kept: a file, or redis://HOST (default: talks.db in the folder above)",
    )
    talk.add_argument("--no-save", action="store_true", help="keep nothing")
    options.add_general(
        made, json="one object for each reply: text, stop_reason, tokens, prompt_tokens, seconds, talk, turn"
    )
    options.add_model(made, state=True)
    options.add_sampling(made, profile=True)
    return made


def run(args: argparse.Namespace) -> int:
    terminal = not args.json and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    _check(args, terminal)
    with Job(f"loading {args.model}"):
        model, state = options.load_with_state(args)
    from rookery.cli.chat_shelf import Shelf

    shelf = Shelf(model, args, warn, state)
    if terminal:
        _talk(shelf, args)
    else:
        from rookery.cli import chat_pipe

        chat_pipe.run(shelf.start(), args.max_tokens, args.json, warn)
    return 0


def _check(args: argparse.Namespace, terminal: bool) -> None:
    """What can be refused before a model is read: a mistake should show at once."""
    if terminal and not all(find_spec(name) for name in ("rich", "prompt_toolkit")):
        raise MissingExtra("chat in a terminal", "chat")
    if args.no_save and (args.store or args.resume is not None):
        raise InputError("--no-save keeps nothing, so neither --store nor --resume goes with it")
    from rookery.chat import PROFILES
    from rookery.cli import chat_commands as commands
    from rookery.sampling import Sampling

    if args.profile is not None and args.profile not in PROFILES:
        raise InputError(f"no profile {args.profile!r}; choose from {', '.join(PROFILES)}")
    for name in (args.name, args.resume):
        if name:
            commands.name(name)
    Sampling(**{name: value for name in options.SAMPLING if (value := getattr(args, name)) is not None})


def _is_terminal(stream: Any) -> bool:
    return stream is not None and bool(stream.isatty())


def warn(line: str) -> None:
    print(f"rookery: {printable(line)}", file=sys.stderr)


def _talk(shelf: Any, args: argparse.Namespace) -> None:
    """Ask and answer until Ctrl-D, /quit, or Ctrl-C twice."""
    from rookery.cli.chat_look import Screen
    from rookery.cli.chat_prompt import Prompt, silent_keys
    from rookery.cli.chat_talk import Chat

    chat = Chat(options.model_name(args), shelf.start(), shelf, Screen(), args.max_tokens)
    chat.greet()
    print()
    going_on = True
    prompt = Prompt(shelf.history, lambda width: chat.status().line(width), chat.choices)
    with suppress(EOFError):
        while going_on:
            line = prompt.ask()
            with silent_keys(), suppress(KeyboardInterrupt):  # of a command; a reply has its own way
                going_on = chat.handle(line)
            print()
