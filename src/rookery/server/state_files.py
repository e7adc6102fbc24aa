"""States as bytes that a stranger may send: a safetensors file as State.save writes it, checked hard, nothing run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rookery.errors import StateError, TooLarge, UnknownFormat
from rookery.formats import Tensor, safetensors
from rookery.model import Model
from rookery.state import State, shapes

FLOATS = ("f16", "bf16", "f32", "f64")
HEADER = 1 << 20  # bytes that a header may take
_WHERE = "the state"  # in messages: it has no path


def largest(model: Model) -> int:
    """Bytes of the largest file that can hold a state of this model."""
    return HEADER + 8 * model.state_size


def encode(state: State) -> bytes:
    """The bytes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        state.save(path)
        return path.read_bytes()


def decode(data: bytes, model: Model, *others: Model) -> tuple[Model, State]:
    """The state in a file, and which of the models it is of, all of one size. Raises FileError for bytes that are no
    such file, StateError for the state of another model, or one that holds a number that is not finite.
    """
    if len(data) > largest(model):
        raise TooLarge(_WHERE, f"has {len(data)} bytes; one of this model has at most {largest(model)}")
    if len(data) < 9 or data[8:9] != b"{":
        raise UnknownFormat(_WHERE, "is no safetensors file; send what an export gave")
    tensors, metadata = safetensors.parse(_WHERE, np.frombuffer(data, np.uint8))
    if metadata.get("rookery.kind") != "state":
        raise StateError("the file holds no state; send what an export gave")
    wanted = dict(shapes(model.config))
    said = metadata.get("rookery.fingerprint")
    found = next((each for each in (model, *others) if each.weights.fingerprint == said), None)
    if found is None or wanted != _shapes(tensors):
        raise StateError("the state was made by another model than the one that is served")
    flat = np.concatenate([tensors[name].float32().reshape(-1) for name in wanted])
    if not np.isfinite(flat).all():
        raise StateError("the state holds numbers that are not finite")
    return found, State(found.config, flat.astype(found.runner.dtype, copy=False), found.weights)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of those that are of numbers with a fraction."""
    return {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype in FLOATS}
