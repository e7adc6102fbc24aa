"""Checkpoints of a run: everything that the next step depends on, written so that a stop at any moment costs nothing.

`OUT/checkpoints/step-00000200.safetensors` holds the weights under BlinkDL's names (`model.*`), AdamW's moments and
step counts (`adam.*`), torch's random state, and, as text, the step, the run's settings and a checksum. Nothing in it
is run when it is read. A sharded run writes a folder of torch.distributed.checkpoint of that name instead, whose index
is a pickle: such folders are for those who made them. The data need no cursor: the batch of a step depends on its
number alone (train/order.py).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from rookery import formats
from rookery.errors import BadHeader, CannotWrite, DamagedFile, FileError, InputError, MissingShard, TruncatedFile
from rookery.formats.atomic import atomic_write
from rookery.formats.tensor import Tensor as Stored
from rookery.train.parallel import Parallel, fill, shapes

FOLDER, NAME = "checkpoints", re.compile(r"step-(\d{8,})(\.safetensors)?")
RANDOM, RUN = "random.torch", "run.json"
STEP, SETTINGS, CHECKSUM = "rookery.step", "rookery.settings", "rookery.crc32"
_TYPES = {torch.float32: "f32", torch.float64: "f64", torch.uint8: "u8", torch.int64: "i64"}


@dataclass(frozen=True)
class Checkpoint:
    """What `path` says of itself; `step` counts the steps done."""

    path: Path
    step: int
    settings: Mapping[str, Any]

    def fill(self, state: Mapping[str, Tensor], parallel: Parallel) -> None:
        """Copy the checkpoint's tensors into those of `state`, sharded or not, and set torch's random state.

        Raises InputError for one of another model.
        """
        random = torch.get_rng_state()
        into = {**state, RANDOM: random}
        try:
            if self.path.is_dir():
                _compare(shapes(self.path), into)
                parallel.read_folder(self.path, into)
            else:
                held = formats.read(self.path).tensors
                _compare({name: t.shape for name, t in held.items()}, into)
                for name, target in into.items():
                    fill(target, torch.from_numpy(np.array(held[name].array())))
        except ValueError as error:
            raise InputError(f"{self.path} is of another model: {error}; name another folder with out=") from None
        torch.set_rng_state(random)


def write(out: Path, step: int, settings: Mapping[str, Any], state: Mapping[str, Tensor], keep: int) -> Path:
    """Write the checkpoint after `step` steps and drop all but the newest `keep`. Raises CannotWrite."""
    path = _folder(out) / f"step-{step:08}.safetensors"
    tensors = {name: _stored(t) for name, t in {**state, RANDOM: torch.get_rng_state()}.items()}
    formats.write(path, tensors, {STEP: str(step), SETTINGS: json.dumps(settings), CHECKSUM: _checksum(tensors)})
    _drop(out, keep, step)
    return path


def write_folder(
    out: Path, step: int, settings: Mapping[str, Any], state: Mapping[str, Tensor], keep: int, parallel: Parallel
) -> Path:
    """The same of a sharded run: every process calls it."""
    path = _folder(out) / f"step-{step:08}"

    def describe(folder: Path) -> None:
        sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
        with atomic_write(folder / RUN) as file:
            file.write(json.dumps({"step": step, "settings": settings, "sizes": sizes}).encode())

    parallel.write_folder(path, {**state, RANDOM: torch.get_rng_state()}, describe)
    if parallel.main:
        _drop(out, keep, step)
    return path


def found(out: Path) -> list[Path]:
    """The run's checkpoints, oldest first, unread."""
    folder = out / FOLDER
    named = [p for p in (folder.iterdir() if folder.is_dir() else ()) if NAME.fullmatch(p.name)]
    return sorted(named, key=lambda p: (step_of(p), p.name))


def step_of(path: Path) -> int:
    """By its name."""
    return int(path.name.removeprefix("step-").removesuffix(".safetensors"))


def read(path: Path) -> Checkpoint:
    """Raises subclasses of FileError for one that is damaged or is no checkpoint."""
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadHeader(path, f"is no whole checkpoint of `rookery train` ({error!r})") from None


def newest(out: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is said aloud and passed over.

    Raises InputError where all are damaged: beginning anew is not what anyone meant.
    """
    paths = found(out)
    for path in reversed(paths):
        try:
            return read(path)
        except FileError as error:
            say(f"passed over a damaged checkpoint: {error}")
    if paths:
        raise InputError(f"{out / FOLDER}: all checkpoints are damaged; remove the folder to begin anew")
    return None


def differences(one: Checkpoint, settings: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """`topic.key was A and is B` for those of `keys` in which the checkpoint's run was another."""
    out = []
    for key in keys:
        topic, _, name = key.partition(".")
        now = json.loads(json.dumps(settings[topic][name]))
        was = one.settings.get(topic, {}).get(name, now)
        if was != now:
            out.append(f"{key} was {was!r} and is {now!r}")
    return out


@contextmanager
def folder_of_one(out: Path) -> Iterator[None]:
    """Keep other runs out of `out` meanwhile, and clear away what a killed one left half written.

    Raises InputError where another run is at work there.
    """
    with _locked(out):
        for place in (out, out / FOLDER, out / "data"):
            for left in place.glob(".*.tmp"):
                _remove(left)
        yield


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # a system without it: then runs are not kept apart
        yield
        return
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another `rookery train` works there; name another folder with out=") from None
        except OSError:  # a file system that has no locks
            pass
        yield


def make_folder(out: Path) -> None:
    """Raises CannotWrite, with the remedy, for a name that cannot be a run's folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "is a file" if out.is_file() else f"cannot be made ({error.strerror})"
        raise CannotWrite(out, f"{why}; name a folder for the run with out=") from None


def _read_file(path: Path) -> Checkpoint:
    file = formats.read(path)
    step, settings = int(file.metadata[STEP]), json.loads(file.metadata[SETTINGS])
    wanted = file.metadata.get(CHECKSUM)
    if wanted is not None and wanted != _checksum(file.tensors):
        raise DamagedFile(path, "its tensors are not those that were written: the checksum differs")
    return Checkpoint(path, step, settings)


def _read_folder(path: Path) -> Checkpoint:
    try:
        said = json.loads((path / RUN).read_text("utf-8"))
    except OSError:
        raise MissingShard(path, f"has no {RUN}") from None
    for name, size in said["sizes"].items():
        one = path / name
        if not one.is_file():
            raise MissingShard(path, f"has no {name}")
        if one.stat().st_size != size:
            raise TruncatedFile(one, f"has {one.stat().st_size} bytes; {size} were written")
    return Checkpoint(path, int(said["step"]), said["settings"])


def _folder(out: Path) -> Path:
    folder = out / FOLDER
    make_folder(folder)
    return folder


def _drop(out: Path, keep: int, step: int) -> None:
    """Of those up to `step`: later ones are damaged, or the run would not be there, and come again."""
    for old in [p for p in found(out) if step_of(p) <= step][:-keep]:
        _remove(old)


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _compare(held: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name not in held:
            raise ValueError(f"it has no {name}")
        if held[name] != tuple(tensor.shape):
            raise ValueError(f"{name} is {list(held[name])} there and {list(tensor.shape)} here")
    for name in held:
        if name not in state:
            raise ValueError(f"{name} has no place in this run's model")


def _checksum(tensors: Mapping[str, Stored]) -> str:
    """Of all bytes, in the order of the names."""
    check = 0
    for name in sorted(tensors):
        check = crc32(tensors[name].data.data, check)
    return f"{check:08x}"


def _stored(tensor: Tensor) -> Stored:
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return Stored(_TYPES[tensor.dtype], tuple(tensor.shape), array.reshape(-1).view(np.uint8))
