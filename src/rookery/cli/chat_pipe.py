"""`rookery chat` without a terminal: a line of stdin is a message, stdout has the replies, stderr the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from rookery.cli.chat_look import harmless
from rookery.cli.chat_shelf import Keeper
from rookery.cli.progress import Job
from rookery.errors import InputError


def run(session: Any, max_tokens: int, as_json: bool, warn: Callable[[str], None]) -> None:
    """Answer every line that is not blank. Raises InputError for what is not UTF-8."""
    keeper = Keeper(warn)
    for said in messages():
        job = Job("reading the message", "tokens")
        reply = session.say(said, max_tokens, progress=job.update)
        with keeper:
            write(job, reply, not as_json)
        if as_json:
            print(json.dumps(report(session, reply)), flush=True)
        else:
            warn(speed(reply))


def messages() -> Iterator[str]:
    """The lines of stdin, one when it is there: whoever writes may wait for the reply before the next."""
    if sys.stdin is None:
        return
    for number, line in enumerate(iter(sys.stdin.buffer.readline, b""), 1):
        try:
            said = line.decode().strip()
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} (0x{line[error.start]:02x})"
            raise InputError(f"stdin, line {number}: {byte} is not valid UTF-8") from None
        if said:
            yield said


def write(job: Job, reply: Iterator[str], show: bool) -> None:
    """Make the reply and show it as it comes, with a line end. Only a terminal is protected from what it holds."""
    guard = harmless if sys.stdout.isatty() else str
    piece = ""
    try:
        with job:
            first = next(reply, "")
        for piece in chain([first], reply):
            if show:
                sys.stdout.write(guard(piece))
                sys.stdout.flush()
    finally:
        if show and not piece.endswith("\n"):
            print(flush=True)


def report(session: Any, reply: Any) -> dict[str, Any]:
    return {
        "text": reply.text,
        "stop_reason": reply.stop_reason,
        "tokens": reply.tokens,
        "prompt_tokens": reply.prompt_tokens,
        "seconds": reply.prefill_seconds + reply.decode_seconds,
        "talk": session.name,
        "turn": session.turns[-1].id,
    }


def speed(reply: Any) -> str:
    prefill = reply.read_tokens / max(reply.prefill_seconds, 1e-9)
    decode = len(reply.tokens) / max(reply.decode_seconds, 1e-9)
    return (
        f"prompt {reply.prompt_tokens} tokens, {reply.read_tokens} read, {prefill:.1f} tokens/s; "
        f"new {len(reply.tokens)} tokens, {decode:.1f} tokens/s; {reply.stop_reason}"
    )
