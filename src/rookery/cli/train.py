"""`rookery train`: a model from nothing, by the recipe, from a TOML file."""

from __future__ import annotations

import argparse
import json
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


def parser() -> options.Parser:
    made = Flags(
        "rookery train",
        "[options] CONFIG [key=value ...]",
        "Train a model by the reference recipe. CONFIG is a TOML file; key=value on top of it\n"
        "sets single keys (--keys lists them all), and so do RWKV-LM's flags. The same command\n"
        "goes on where a run was interrupted, on a CPU to the bit. With several processes:\n"
        "  python -m torch.distributed.run --nproc-per-node 2 -m rookery train CONFIG",
    )
    made.add_argument("settings", nargs="*", metavar="CONFIG", help="a TOML file, and key=value")
    made.add_argument("--dry-run", action="store_true", help="say parameters, memory and time, and train nothing")
    made.add_argument("--keys", action="store_true", help="print every key with its default and meaning, as TOML")
    options.add_general(made, json="print the outcome as one object")
    return made


def run(args: argparse.Namespace) -> int:
    if args.keys:
        from rookery.train import config

        print(config.describe(), end="")
        return 0
    return run_of(lambda: _alone(args))


def run_of(alone: Callable[[], int]) -> int:
    """`alone()`, which is one process of a run; where SIGTERM is to clean up as Ctrl-C does."""
    with _terminated_as_interrupted():
        return alone() if os.environ.get("WORLD_SIZE", "1") == "1" else _one_of_many(alone)


def _alone(args: argparse.Namespace) -> int:
    from rookery.train import config

    settings = settings_of(args, config.load, "CONFIG, a TOML file", "train")
    if args.dry_run:
        return _dry_run(settings, args.json)
    trainer = made(_room().Trainer, settings)
    path = trainer.run()
    if trainer.parallel.main:
        _tell(trainer, path, args.json)
    return 0 if path else INTERRUPTED


def _one_of_many(alone: Callable[[], int]) -> int:
    """Where something fails, the process that saw it first speaks and the others end quietly."""
    _room()
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


def _tell(trainer: Any, path: Any, as_json: bool) -> None:
    settings, steps = trainer.settings, trainer.done
    if as_json:
        print(json.dumps({"out": settings.run.out, "model": str(path) if path else None, "step": steps}))
    elif path:
        print(f"wrote {path}: {steps} steps, {steps * settings.tokens_a_step:,} tokens")
    else:
        print(f"stopped after step {steps} of {settings.steps}; the same command goes on from there")


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


def _room() -> Any:
    """train.trainer, which needs torch."""
    import rookery.backends.torch  # noqa: F401  # says which extra is missing
    from rookery.train import trainer

    return trainer


def say(line: str) -> None:
    """A line on stderr."""
    print(f"rookery: {line}", file=sys.stderr, flush=True)


def _dry_run(settings: Any, as_json: bool) -> int:
    _room()
    from rookery.train import estimate

    found = estimate.dry_run(settings)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found.json()) if as_json else found.text())
    return 0
