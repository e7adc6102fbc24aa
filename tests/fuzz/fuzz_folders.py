"""Fuzz Hugging Face folders: mutated JSON, bytes, links and shards. Only a RookeryError may come out.

    python tests/fuzz/fuzz_folders.py --runs 20000 [--seed 1]

Each run takes a good folder (v4 or v7, whole or in two shards), does one to three harms to it and opens it as a model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rookery import errors, formats, weights
from rookery.tokenizer import of_model

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
INDEX = "model.safetensors.index.json"
NASTY: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, "", ".", "..", "/etc/passwd", "../x", "a\0b", "\ud800", "x" * 5000,
    [], {}, [[[[]]]], {"": {"": {}}}, "model.safetensors", INDEX, "rwkv", "rwkv7", "sqrelu", 1e-5, "world", "bytes",
]  # fmt: skip


def folders(root: Path) -> list[Path]:
    """The good ones."""
    made = []
    for name in ("v4", "v7"):
        whole, parts = root / name, root / f"{name}-parts"
        weights.convert(FIXTURES / f"{name}.safetensors", whole, to="hf")
        (whole / "tokenizer_config.json").write_text('{"rookery_tokenizer": "bytes"}')
        shutil.copytree(whole, parts)
        tensors = formats.read(parts / "model.safetensors").tensors
        names, where = list(tensors), {}
        for number, some in enumerate((names[::2], names[1::2]), 1):
            shard = f"model-{number}.safetensors"
            formats.write(parts / shard, {n: tensors[n] for n in some})
            where |= dict.fromkeys(some, shard)
        (parts / "model.safetensors").unlink()
        (parts / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        made += [whole, parts]
    return made


def harm_json(path: Path, rng: random.Random) -> None:
    """One value somewhere in a JSON file becomes another, or a key goes, or comes."""
    files = [f for f in path.iterdir() if f.suffix == ".json" and f.is_file() and not f.is_symlink()]
    if not files:
        return
    file = rng.choice(files)
    try:
        value = json.loads(file.read_text())
    except (ValueError, OSError):
        return
    inner = value.get("weight_map", value) if isinstance(value, dict) and rng.random() < 0.8 else value
    if isinstance(inner, dict) and inner:
        key = rng.choice(list(inner))
        match rng.randrange(4):
            case 0:
                del inner[key]
            case 1:
                inner[str(rng.choice(NASTY))] = inner[key]
            case 2:
                inner[key] = rng.choice(list(inner.values()))
            case _:
                inner[key] = rng.choice(NASTY)
    else:
        value = rng.choice(NASTY)
    file.write_text(json.dumps(value))


def harm_bytes(path: Path, rng: random.Random) -> None:
    """A few bytes near the start of a file change, or it is cut."""
    files = [f for f in path.iterdir() if f.is_file() and not f.is_symlink()]
    if not files:
        return
    file = rng.choice(files)
    raw = bytearray(file.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        if raw:
            raw[rng.randrange(min(len(raw), rng.choice((16, 4096))))] = rng.randrange(256)
    file.write_bytes(raw if rng.random() < 0.8 else raw[: rng.randrange(len(raw) + 1)])


def harm_files(path: Path, rng: random.Random) -> None:
    """A file goes, takes the place of another, or becomes a link or a folder."""
    files = [f for f in path.iterdir() if f.is_file() or f.is_symlink()]
    if len(files) < 2:
        return
    one, other = rng.sample(files, 2)
    one.unlink()
    match rng.randrange(5):
        case 0:
            one.symlink_to(rng.choice([other.name, one.name, "..", "/etc/passwd", "nowhere", f"../../{one.name}"]))
        case 1 if other.is_file():
            shutil.copyfile(other, one)
        case 2:
            one.mkdir()
        case 3:
            os.mkfifo(one)
        case _:
            pass


HARMS: list[Callable[[Path, random.Random], None]] = [harm_json, harm_json, harm_bytes, harm_files]


def one_run(path: Path, rng: random.Random) -> str:
    for _ in range(rng.randrange(1, 4)):
        rng.choice(HARMS)(path, rng)
    try:
        model = weights.load(path)
        json.dumps(model.metadata, indent=2)
        of_model(model.path, model.format, model.metadata)
        shutil.rmtree(path.with_suffix(".out"), ignore_errors=True)
        weights.convert(path, path.with_suffix(".out"), to="hf")
    except errors.RookeryError as error:
        if "\n" in str(error):
            raise AssertionError("a message of several lines") from error
        return type(error).__name__
    return "opened"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("error")
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        good = folders(Path(root))
        for run in range(args.runs):
            rng = random.Random(args.seed * 10**9 + run)
            path = Path(root) / "fuzzed"
            shutil.copytree(rng.choice(good), path)
            try:
                outcomes[one_run(path, rng)] += 1
            except BaseException:
                print(f"run {run} of seed {args.seed}")
                raise
            shutil.rmtree(path)
    for name, times in outcomes.most_common():
        print(f"{times:>8} {name}")
    print(f"{args.runs:>8} runs, nothing but RookeryError")


if __name__ == "__main__":
    main()
