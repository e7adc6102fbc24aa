"""`rookery serve`: a model over HTTP, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from rookery.cli import options
from rookery.cli.main import printable
from rookery.errors import InputError, MissingExtra

_ID = re.compile(r"([\w.:-]{1,100})=(.+)")  # a model id and a file
LEVELS = ("debug", "info", "warning", "error")


def parser() -> options.Parser:
    made = options.Parser(
        "rookery serve",
        "[options]",
        "Serve a model over HTTP as OpenAI's API does, and with it /v1/states, /tokenize, /metrics\n"
        "and a page to chat at /.\n\n"
        "Only this machine can reach it unless --host says otherwise, which needs --api-key-file.\n"
        "/health/ready answers 200 when it is ready. SIGTERM or Ctrl-C lets streams finish;\n"
        "a second one ends at once.",
        epilog="A line of the key file is `sha256:HEX SCOPES NAME`, as --hash-key writes it, or `KEY SCOPES NAME`.\n"
        "SCOPES: read (lists, tokenize, /metrics), chat (and generate), or admin (all).",
    )
    place = made.add_argument_group("place")
    place.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    place.add_argument(
        "--port", type=options.whole(0), default=8000, metavar="N", help="0 takes a free one (default: 8000)"
    )
    place.add_argument(
        "--store",
        metavar="DIR",
        help="where talks are kept: a folder, or redis://HOST (default: $XDG_DATA_HOME/rookery/serve)",
    )
    place.add_argument("--half", action="store_true", help="keep states in 16 bits, which rounds them")
    place.add_argument(
        "--alias",
        metavar="NAME[,NAME...]",
        help="the model's id for clients, and its other names (default: its file's name)",
    )
    place.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="how the model reads a talk: raven, world, g1, coder, plain, or a .jinja file (default: its own)",
    )
    who = made.add_argument_group("who may call")
    who.add_argument("--api-key-file", metavar="FILE", help="keys that are known, a line each; readable by you alone")
    who.add_argument("--hash-key", action="store_true", help="read a key from stdin, print its line for that file")
    who.add_argument("--insecure", action="store_true", help="listen at a public address without keys")
    who.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="let this site's pages call; may be given again"
    )
    limits = made.add_argument_group("limits")
    number = options.whole(1)
    limits.add_argument(
        "--max-batch", type=number, default=16, metavar="N", help="texts written side by side (default: 16)"
    )
    limits.add_argument(
        "--max-waiting", type=number, default=512, metavar="N", help="others that may wait (default: 512)"
    )
    limits.add_argument(
        "--drain",
        type=options.whole(0),
        default=30,
        metavar="SECONDS",
        help="time for streams to finish at the end (default: 30)",
    )
    logs = made.add_argument_group("logs")
    logs.add_argument(
        "--records",
        action="store_true",
        help="write what every request read, changed and wrote to records.jsonl in the store's folder",
    )
    logs.add_argument("--log-level", choices=LEVELS, default="info", metavar="LEVEL", help=f"{', '.join(LEVELS)}")
    options.add_general(made)
    options.add_model(made, state=True, ids=True)
    return made


def run(args: argparse.Namespace) -> int:
    from rookery import formats

    run_server = _server()
    if args.hash_key:
        print(_hashed(sys.stdin.readline().strip()))
        return 0
    args.adapter, adapters = _ids(args.adapter)
    for text in args.state:  # what is no file at all is refused before the model is read
        formats.read(_split(text)[1])
    settings = _settings(args, {name: options.adapters(args, files) for name, files in adapters.items()})
    run_server.log_to_stderr(args.log_level)
    named = list(chain.from_iterable(settings.adapters.values()))
    run_server.serve(settings, lambda: options.load_model(args, named), warn)
    return 0


def _server() -> Any:
    """The module that runs a server. Raises MissingExtra."""
    try:
        from rookery.server import run as run_server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rookery"):
            raise
        raise MissingExtra("serving", "serve") from error
    return run_server


def _ids(given: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The files that were given without a NAME, and those with one, by it. A path may have a = in it, too."""
    plain: list[str] = []
    named: dict[str, list[str]] = {}
    for text in given:
        name, file = _split(text)
        (plain if name is None else named.setdefault(name, [])).append(file)
    return plain, named


def _split(text: str) -> tuple[str | None, str]:
    found = _ID.fullmatch(text)
    return (None, text) if found is None or os.path.exists(text) else (found[1], found[2])


def _settings(args: argparse.Namespace, adapters: Mapping[str, Sequence[Any]]) -> Any:
    from rookery.cli.chat_shelf import data_folder
    from rookery.server.settings import Settings

    states, named = _ids(args.state)
    for name, files in ("all texts", states), *named.items():
        if len(files) > 1:
            raise InputError(f"--state {files[1]}: {name} cannot begin with two states; give one, or another NAME=")
    return Settings(
        host=args.host,
        port=args.port,
        alias=args.alias,
        store=args.store or os.path.join(data_folder(), "serve"),
        half=args.half,
        template=args.chat_template,
        adapters=adapters,
        state=states[0] if states else None,
        states={name: file for name, (file,) in named.items()},
        records=args.records,
        api_key_file=args.api_key_file,
        insecure=args.insecure,
        cors=tuple(args.cors),
        max_batch=args.max_batch,
        max_waiting=args.max_waiting,
        drain_seconds=args.drain,
    )


def _hashed(key: str) -> str:
    from rookery.server import keys

    if len(key) < keys.SHORTEST or len(key.split()) != 1:
        raise InputError(f"wanted a key of {keys.SHORTEST} characters or more on stdin, without blanks")
    return keys.line(key)


def warn(line: str) -> None:
    print(f"rookery: {printable(line)}", file=sys.stderr)
