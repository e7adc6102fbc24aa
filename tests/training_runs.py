"""Training runs of a tiny model, for the tests of the trainer and of its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CTX, BATCH = 16, 4

CONFIG = """
[model]
version = "7"
n_layer = 2
n_embd = 32
head_size = 16

[data]
train = "{folder}/text.txt"
tokenizer = "bytes"
ctx_len = {ctx}

[optimiser]
tokens = {tokens}
batch = {batch}
lr_init = 3e-3
lr_final = 3e-4
warmup_steps = 2

[run]
out = "{folder}/run"
device = "cpu"
matmul = "highest"
dtype = "f32"
threads = 1
save_every = 3
"""


def config_file(folder: Path, steps: int = 8) -> Path:
    """A TOML file in `folder` with the text that it names beside it."""
    text = "\n".join(" ".join(ONES[int(digit)] for digit in str(number)) for number in range(400))
    (folder / "text.txt").write_text(text)
    path = folder / "run.toml"
    path.write_text(CONFIG.format(folder=folder, ctx=CTX, batch=BATCH, tokens=steps * BATCH * CTX))
    return path


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "tokens_per_second")} for line in lines]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in metrics(out) if "loss" in line]


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves but times, names of folders and how it came about: bytes of tensors, and figures."""
    from rookery import formats
    from rookery.train import checkpoint

    newest = checkpoint.found(out)[-1]
    files = {"checkpoint": newest, "model": out / "model.safetensors"}
    tensors = {
        f"{kind} {name}": t.data.tobytes()
        for kind, path in files.items()
        for name, t in formats.read(path).tensors.items()
    }
    return {"metrics": metrics(out), "newest": newest.name, **tensors}
