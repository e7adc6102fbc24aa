"""`rookery train`: a model from nothing, by the recipe, from a TOML file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rookery.cli import options
from rookery.errors import InputError

INTERRUPTED = 130


class _Parser(options.Parser):
    """Takes RWKV-LM's `--n_layer 12` as the override n_layer=12."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
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
            out.append(f"{name}={value}")
        return out


def parser() -> options.Parser:
    made = _Parser(
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
    from rookery.train import config

    if args.keys:
        print(config.describe(), end="")
        return 0
    files = [s for s in args.settings if "=" not in s]
    if len(files) > 1:
        raise InputError(f"{files[1]!r}: one CONFIG is wanted; a key is set by key=value")
    if not args.settings:
        raise InputError("required: CONFIG, a TOML file (`rookery train --keys` prints one with all defaults)")
    settings = config.load(files[0] if files else None, [s for s in args.settings if "=" in s])
    if args.dry_run:
        return _dry_run(settings, args.json)
    trainer = _room().Trainer(settings)
    try:
        path = trainer.run()
    finally:
        trainer.parallel.close()
    if trainer.parallel.main:
        done = {"out": settings.run.out, "model": str(path) if path else None, "step": trainer.done}
        if args.json:
            print(json.dumps(done))
        else:
            print(
                f"wrote {path}: {trainer.done} steps, {trainer.done * settings.tokens_a_step:,} tokens"
                if path
                else f"stopped after step {trainer.done} of {settings.steps}; the same command goes on from there"
            )
    return 0 if path else INTERRUPTED


def _room() -> Any:
    """train.trainer, which needs torch."""
    import rookery.backends.torch  # noqa: F401  # says which extra is missing
    from rookery.train import trainer

    return trainer


def _dry_run(settings: Any, as_json: bool) -> int:
    _room()
    from rookery.train import estimate

    found = estimate.dry_run(settings)
    print(json.dumps(found.json()) if as_json else found.text())
    return 0
