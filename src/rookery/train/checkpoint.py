"""Checkpoints of a run: everything that the next step depends on, in one safetensors file, replaced atomically.

`OUT/checkpoints/step-00000200.safetensors` (a sharded run: a folder of torch.distributed.checkpoint of that name) holds the weights under BlinkDL's names (`model.*`), AdamW's moments and
step counts (`adam.*`), torch's random state, and, as text, the step and the run's settings. Nothing in it is run when
it is read. The data need no cursor: the batch of a step depends on its number alone (train/order.py).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rookery import formats
from rookery.errors import FileError, InputError
from rookery.formats.atomic import atomic_write
from rookery.formats.tensor import Tensor as Stored
from rookery.train.parallel import Parallel, fill, read_folder

FOLDER, NAME = "checkpoints", re.compile(r"step-(\d{8})(\.safetensors)?")
RANDOM, RUN = "random.torch", "run.json"
_TYPES = {torch.float32: "f32", torch.float64: "f64", torch.uint8: "u8", torch.int64: "i64"}


@dataclass(frozen=True)
class Checkpoint:
    """What `path` says of itself; `step` counts the steps done."""

    path: Path
    step: int
    settings: Mapping[str, Any]

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Copy the checkpoint's tensors into those of `state`, sharded or not. Raises InputError for another model."""
        if self.path.is_dir():
            return _of_another(self.path, lambda: read_folder(self.path, state))
        held = formats.read(self.path).tensors
        _of_another(self.path, lambda: _compare(held, state))
        for name, target in state.items():
            fill(target, torch.from_numpy(np.array(held[name].array())))
        torch.set_rng_state(torch.from_numpy(np.array(held[RANDOM].array())))


def write(out: Path, step: int, settings: Mapping[str, Any], state: Mapping[str, Tensor], keep: int) -> Path:
    """Write the checkpoint after `step` steps and drop all but the newest `keep`. Raises CannotWrite."""
    path = _folder(out) / f"step-{step:08}.safetensors"
    metadata = {"rookery.step": str(step), "rookery.settings": json.dumps(settings, sort_keys=True)}
    tensors = {name: _stored(t) for name, t in (dict(state) | {RANDOM: torch.get_rng_state()}).items()}
    formats.write(path, tensors, metadata)
    _drop(out, keep)
    return path


def write_folder(
    out: Path, step: int, settings: Mapping[str, Any], state: Mapping[str, Tensor], keep: int, parallel: Parallel
) -> Path:
    """The same of a sharded run: every process calls it."""
    path = _folder(out) / f"step-{step:08}"

    def describe(temporary: Path) -> None:
        with atomic_write(temporary / RUN) as file:
            file.write(json.dumps({"step": step, "settings": settings}).encode())

    parallel.write_folder(path, state, describe)
    if parallel.main:
        _drop(out, keep)
    return path


def found(out: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    folder = out / FOLDER
    return sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name)) if folder.is_dir() else []


def read(path: Path) -> Checkpoint:
    """Raises FileError subclasses for a damaged file, InputError for one that is no checkpoint."""
    try:
        if path.is_dir():
            said = json.loads((path / RUN).read_text())
            return Checkpoint(path, int(said["step"]), said["settings"])
        file = formats.read(path)
        return Checkpoint(path, int(file.metadata["rookery.step"]), json.loads(file.metadata["rookery.settings"]))
    except (KeyError, ValueError, OSError):
        raise InputError(f"{path}: no checkpoint of `rookery train`; name another folder with out=") from None


def newest(out: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read; a damaged one is said aloud and passed over."""
    for path in reversed(found(out)):
        try:
            return read(path)
        except FileError as error:
            say(f"passed over a damaged checkpoint: {error}")
    return None


def differences(one: Checkpoint, settings: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """`topic.key was A and is B` for those of `keys` in which the checkpoint's run was another."""
    out = []
    for key in keys:
        topic, _, name = key.partition(".")
        was, now = one.settings.get(topic, {}).get(name), json.loads(json.dumps(settings[topic][name]))
        if was != now:
            out.append(f"{key} was {was!r} and is {now!r}")
    return out


def _folder(out: Path) -> Path:
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _drop(out: Path, keep: int) -> None:
    for old in found(out)[:-keep]:
        with suppress(OSError):
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _of_another(path: Path, do: Callable[[], None]) -> None:
    try:
        do()
    except (ValueError, KeyError, RuntimeError) as error:
        what = str(error).splitlines()[0][:200]
        raise InputError(f"{path} is of another model: {what}; name another folder with out=") from None


def _compare(held: Mapping[str, Stored], state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name not in held:
            raise ValueError(f"it has no {name}")
        if held[name].shape != tuple(tensor.shape):
            raise ValueError(f"{name} is {list(held[name].shape)} there and {list(tensor.shape)} here")
    for name in held:
        if name not in state and name != RANDOM:
            raise ValueError(f"{name} has no place in this run's model")


def _stored(tensor: Tensor) -> Stored:
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return Stored(_TYPES[tensor.dtype], tuple(tensor.shape), array.reshape(-1).view(np.uint8))
