"""`rookery train`: a model from nothing, by the recipe, from a TOML file."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from rookery.cli import options, runs


def parser() -> options.Parser:
    made = runs.Flags(
        "rookery train",
        "[options] CONFIG [key=value ...]",
        "Train a model by the reference recipe. CONFIG is a TOML file; key=value on top of it\n"
        "sets single keys (--keys lists them all), and so do RWKV-LM's flags. The same command\n"
        "goes on where a run was interrupted, on a CPU to the bit. With several processes:\n"
        "  python -m torch.distributed.run --nproc-per-node 2 -m rookery train CONFIG",
    )
    made.mixed = True
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
    return runs.run_of(lambda: _alone(args))


def _alone(args: argparse.Namespace) -> int:
    from rookery.train import config

    settings = runs.settings_of(args, config.load, "CONFIG, a TOML file", "train")
    if args.dry_run:
        return _dry_run(settings, args.json)
    trainer = runs.made(_room().Trainer, settings)
    path = trainer.run()
    if trainer.parallel.main:
        _tell(trainer, path, args.json)
    return 0 if path else runs.INTERRUPTED


def _tell(trainer: Any, path: Any, as_json: bool) -> None:
    settings, steps = trainer.settings, trainer.done
    if as_json:
        print(json.dumps({"out": settings.run.out, "model": str(path) if path else None, "step": steps}))
    elif path:
        print(f"wrote {path}: {steps} steps, {steps * settings.tokens_a_step:,} tokens")
    else:
        print(f"stopped after step {steps} of {settings.steps}; the same command goes on from there")


def _room() -> Any:
    """train.trainer, which needs torch."""
    import rookery.backends.torch  # noqa: F401  # says which extra is missing
    from rookery.train import trainer

    return trainer


def _dry_run(settings: Any, as_json: bool) -> int:
    _room()
    from rookery.train import estimate

    found = estimate.dry_run(settings)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found.json()) if as_json else found.text())
    return 0
