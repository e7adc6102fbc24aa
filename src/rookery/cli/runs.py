"""What `rookery train` and `rookery tune` have in common: settings by key=value, a run of one process or many.

Nothing heavy is imported before a run begins.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import InputError, TrainingError

MISTAKE, INTERRUPTED = 2, 130
LISTS = ("train_parts", "lora_parts", "sft_field")  # RWKV-PEFT's flags of several words


class Flags(options.Parser):
    """Takes RWKV-LM's `--n_layer 12` as the override n_layer=12."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_args(self._translated(args or ()), namespace)

    def _translated(self, words: Sequence[str]) -> list[str]:
        out: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            if not word.startswith("--") or word in self._option_string_actions:
                out.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            if not equals:
                value = left.pop(0) if left and not left[0].startswith("--") else "true"
                while name in LISTS and left and not left[0].startswith("--") and "=" not in left[0]:
                    value += " " + left.pop(0)
            out.append(f"{name.replace('-', '_')}={value}")
        return out


def run_of(alone: Callable[[], int]) -> int:
    """`alone()`, which is one process of a run; where SIGTERM is to clean up as Ctrl-C does."""
    with _terminated_as_interrupted():
        return alone() if os.environ.get("WORLD_SIZE", "1") == "1" else _one_of_many(alone)


def _one_of_many(alone: Callable[[], int]) -> int:
    """Where something fails, the process that saw it first speaks and the others end quietly."""
    import rookery.backends.torch  # noqa: F401  # says which extra is missing
    from rookery.train import parallel

    try:
        return alone()
    except Exception as error:
        if not parallel.first_to_fail():
            return MISTAKE
        if parallel.lost(error):
            raise TrainingError(
                "another process of the run was lost; the same command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        parallel.close()


def made(kind: Any, settings: Any) -> Any:
    """A Trainer of this kind, its progress shown."""
    if os.environ.get("RANK", "0") != "0":
        return kind(settings)
    with Job("preparing data and weights", "MB") as job:
        return kind(settings, progress=lambda done, total: job.update(done // 1_000_000, -(-total // 1_000_000)))


def settings_of(args: argparse.Namespace, load: Callable[..., Any], wanted: str, command: str) -> Any:
    """The settings that CONFIG and key=value make by `load`."""
    files = [s for s in args.settings if "=" not in s]
    if len(files) > 1:
        raise InputError(f"{files[1]!r}: one CONFIG is wanted; a key is set by key=value")
    if not args.settings:
        raise InputError(f"required: {wanted} (`rookery {command} --keys` prints one with all defaults)")
    return load(files[0] if files else None, [s for s in args.settings if "=" in s])


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does, where the loop does not take either for a wish to save."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(line: str) -> None:
    """A line on stderr."""
    print(f"rookery: {line}", file=sys.stderr, flush=True)
