"""`rookery generate`: continue a text on stdout, tokens per second on stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError, MissingFile, NoPermission, NotAFile

INTERRUPTED = 130


def parser() -> options.Parser:
    made = options.Parser(
        "rookery generate",
        "[options] [PROMPT ...]",
        "Continue a text.\n\n"
        "The prompt is the arguments, else the file of -f, else what is piped into stdin;\n"
        "of several they are joined by line ends, and the argument - asks for stdin too.\n"
        "A single source is taken exactly as it is, its last line end included.\n"
        "The continuation is printed, and on stderr the speed.",
    )
    made.add_argument("prompt", nargs="*", metavar="PROMPT", help="the text to continue; - stands for stdin")
    made.add_argument("-f", "--file", metavar="FILE", help="a file with the text to continue")
    made.add_argument(
        "-n", "--max-tokens", type=options.whole(0), default=256, metavar="N", help="tokens at most (default: 256)"
    )
    made.add_argument("--echo", action="store_true", help="print the prompt before its continuation")
    options.add_limits(made)
    options.add_general(made, json="print one object at the end: text, tokens, stop_reason, timings, model, seed")
    options.add_model(made, state=True)
    options.add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    sampling = options.sampling(args)  # before the model is read: a mistake should show at once
    grammar = _grammar(args)
    prompt = _joined(_sources(args))
    with Job(f"loading {args.model}"):
        model, state = options.load_with_state(args)
    limits = {"stop": args.stop, "constraint": _constraint(model, grammar)}
    _warn(prompt)
    job = Job("reading the prompt", "tokens")
    stream = model.stream(prompt, args.max_tokens, sampling, args.seed, state, progress=job.update, **limits)
    if args.echo and not args.json:
        sys.stdout.write(prompt)
    pieces, interrupted = [""], False
    try:
        for piece in _patiently(job, stream):
            if not args.json:
                sys.stdout.write(piece)
                sys.stdout.flush()
                pieces.clear()
            pieces.append(piece)  # what was written, so that an interrupt before it does not cost the last line end
    except KeyboardInterrupt:
        interrupted = True
    if args.json:
        print(json.dumps(_report(args, model, prompt, stream, "".join(pieces))))
    elif not "".join(pieces).endswith("\n"):
        print(flush=True)
    if interrupted:
        return INTERRUPTED
    if not args.json:
        if grammar and stream.stop_reason == "length" and not stream.constraint.finished:
            print("rookery: the text is unfinished: -n allows no more tokens", file=sys.stderr)
        _print_speed(stream)
    return 0


def _grammar(args: argparse.Namespace) -> dict[str, str]:
    """What the text must follow: "schema", "regex" or "grammar", and its text."""
    given = {name: value for name in ("schema", "regex", "grammar") if (value := getattr(args, name)) is not None}
    if len(given) > 1:
        raise InputError(f"--{' and --'.join(given)}: a text can follow only one of them")
    if "schema" in given and not given["schema"].lstrip().startswith("{"):
        given["schema"] = _text(given["schema"], "a JSON schema")
    if "grammar" in given:
        given["grammar"] = _text(given["grammar"], "a grammar in Lark or GBNF")
    return given


def _constraint(model: Any, grammar: dict[str, str]) -> Any:
    """The constraint of `Model.stream`, None where nothing is asked for."""
    if not grammar:
        return None
    from rookery.chat.grammar import constraint

    with Job("compiling the grammar"):
        return constraint(model.tokenizer, model.config.n_vocab, **grammar)


def _warn(prompt: str) -> None:
    from rookery.chat import trailing_space

    if trailing_space(prompt):
        print(
            "rookery: the prompt ends in a colon and a space; leave the space out, the reply begins with it",
            file=sys.stderr,
        )


def _sources(args: argparse.Namespace) -> list[tuple[str, bytes]]:
    """Where the prompt comes from, and its bytes. Raises InputError if there are none."""
    found = [("the prompt", os.fsencode(" ".join(word for word in args.prompt if word != "-")))]
    if args.file is not None:
        found.append((args.file, _read(args.file, "the text to continue")))
    if "-" in args.prompt or not (args.prompt or args.file):  # else an idle pipe would be waited for, for ever
        found.append(("stdin", _piped()))
    found = [(where, data) for where, data in found if data]
    if not found:
        raise InputError("an empty prompt; give a text as argument, with -f FILE or through a pipe")
    return found


def _text(path: str, wanted: str) -> str:
    return _joined([(path, _read(path, wanted))])


def _read(path: str, wanted: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise MissingFile(path, f"no such file; wanted {wanted}") from None
    except IsADirectoryError:
        raise NotAFile(path, f"is a folder; wanted a file with {wanted}") from None
    except PermissionError:
        raise NoPermission(path, "may not be read by this user") from None


def _piped() -> bytes:
    """All of stdin, unless it is a terminal, closed or unreadable."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    with Job("waiting for the prompt on stdin"):
        try:
            return sys.stdin.buffer.read()
        except OSError:
            return b""


def _joined(sources: list[tuple[str, bytes]]) -> str:
    """The sources as one text, whatever the tokenizer. Raises InputError for what is not UTF-8."""
    texts = []
    for where, data in sources:
        try:
            texts.append(data.decode())
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} (0x{data[error.start]:02x})"
            raise InputError(f"{where}: {byte} is not valid UTF-8; other bytes are for the Python API") from None
    return "\n".join(texts)


def _patiently(job: Job, stream: Any) -> Iterator[str]:
    """The stream's pieces, with `job` watching over the wait for the first."""
    pieces = iter(stream)
    with job:
        first = next(pieces, "")
    yield first
    yield from pieces


def _report(args: argparse.Namespace, model: Any, prompt: str, stream: Any, text: str) -> dict[str, Any]:
    return {
        "model": args.model,
        **({"adapter": args.adapter} if args.adapter else {}),
        **({"state": args.state} if args.state else {}),
        "backend": model.backend,
        **({"prompt": prompt} if args.echo else {}),
        "text": text,
        "tokens": stream.tokens,
        "stop_reason": stream.stop_reason or "interrupt",
        "seed": stream.sampler.seed,
        "prompt_tokens": stream.prompt_tokens,
        "prefill_seconds": stream.prefill_seconds,
        "decode_seconds": stream.decode_seconds,
    }


def _print_speed(stream: Any) -> None:
    prefill = stream.prompt_tokens / max(stream.prefill_seconds, 1e-9)
    decode = len(stream.tokens) / max(stream.decode_seconds, 1e-9)
    print(
        f"rookery: prompt {stream.prompt_tokens} tokens, {prefill:.1f} tokens/s; "
        f"new {len(stream.tokens)} tokens, {decode:.1f} tokens/s; seed {stream.sampler.seed}",
        file=sys.stderr,
    )
