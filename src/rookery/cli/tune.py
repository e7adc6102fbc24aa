"""`rookery tune`: an adapter, a state or a whole model from examples, from a TOML file."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rookery.cli import options, runs


def parser() -> options.Parser:
    made = runs.Flags(
        "rookery tune",
        "[options] [CONFIG] [key=value ...]",
        "Tune a model on examples: jsonl of texts, talks, or prompts and completions.\n"
        "CONFIG is a TOML file; key=value on top of it sets single keys (--keys lists them\n"
        "all), and so do RWKV-PEFT's flags. The least: rookery tune train=talks.jsonl out=run\n"
        "The same command goes on where a run was interrupted. What comes out is an adapter\n"
        "(or a state, or with method=full a model) for --adapter, --state and rookery merge.",
    )
    made.mixed = True
    made.add_argument("settings", nargs="*", metavar="CONFIG", help="a TOML file, and key=value")
    made.add_argument("--keys", action="store_true", help="print every key with its default and meaning, as TOML")
    made.add_argument(
        "--show", action="store_true", help="print the first batch as it is learnt («trained»), and train nothing"
    )
    options.add_general(made, json="print the outcome as one object")
    return made


def run(args: argparse.Namespace) -> int:
    if args.keys:
        from rookery.tune import config

        print(config.describe(), end="")
        return 0
    return runs.run_of(lambda: _alone(args))


def _alone(args: argparse.Namespace) -> int:
    from rookery.tune import config

    settings = runs.settings_of(args, config.load, "train=FILE, or CONFIG", "tune")
    trainer = runs.made(_room().Tuner, settings)
    if args.show:
        return _show(trainer)
    if trainer.parallel.main:
        runs.say(trainer.summary())
    path = trainer.run()
    if trainer.parallel.main:
        _tell(trainer, path, args.json)
    return 0 if path else runs.INTERRUPTED


def _show(trainer: Any) -> int:
    runs.say(trainer.summary())
    for i, text in enumerate(trainer.data.texts(0)):
        print(f"--- row {i + 1}\n{text}")
    return 0


def _tell(trainer: Any, path: Any, as_json: bool) -> None:
    before, after = trainer.losses()
    if as_json:
        outcome = {"out": str(trainer.out), "file": str(path) if path else None, "step": trainer.done}
        print(json.dumps(outcome | {"held_out_before": before, "held_out_after": after}))
    elif path:
        change = "" if before is None else f"; held-out loss {before:.4f} before, {after:.4f} after"
        print(f"wrote {path}: {trainer.done} steps{change}")
    else:
        print(f"stopped after step {trainer.done} of {trainer.settings.steps}; the same command goes on from there")


def _room() -> Any:
    """tune.tuner, which needs torch."""
    import rookery.backends.torch  # noqa: F401  # says which extra is missing
    from rookery.tune import tuner

    return tuner
