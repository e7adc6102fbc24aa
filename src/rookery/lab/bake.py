"""A state put into a checkpoint, as the one that its reading begins from."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import numpy as np

from rookery import weights as weights_room
from rookery.errors import StateError
from rookery.formats.tensor import Tensor
from rookery.model import Model
from rookery.state import State, layers, shapes
from rookery.weights import Weights
from rookery.weights.convert import check_target, write


def bake(
    model: Model | Weights | str | os.PathLike[str],
    state: State,
    target: str | os.PathLike[str],
    to: str | None = None,
    force: bool = False,
) -> None:
    """Write the model to `target` with the WKV part of `state` as its `att.time_state`: v5 to v7.

    Reading from the start of the new file is reading from `state`, but for the token shifts, which a checkpoint has no
    place for: they begin at zero, and a UserWarning says so where those of `state` are not. Weights and their lineage
    stay, so that states of the two fit each other. `to`, `force`: as in `weights.convert` (llama.cpp refuses a GGUF
    with a time_state). Raises StateError for v4 and for another model's state, CannotWrite.
    """
    if isinstance(model, Model):
        model = model.weights
    weights = model if isinstance(model, Weights) else weights_room.load(model)
    c = weights.config
    if c.version == "4":
        raise StateError("RWKV-4 has no att.time_state: its checkpoints always begin with nothing read")
    if shapes(state.config) != shapes(c) or state.origin.lineage != weights.lineage:
        raise StateError(f"the state was made by another model than {weights.path}")
    each = layers(c, state.flat)
    if any(views["att_shift"].any() or views["ffn_shift"].any() for views in each):
        said = "the token shifts of the state are lost: a checkpoint begins with none"
        warnings.warn(said, UserWarning, stacklevel=2)
    check_target(weights.path, target, force)
    tensors = dict(weights.tensors)
    for i, views in enumerate(each):
        values = views["wkv"].swapaxes(1, 2).astype(np.float32)  # [H, value, key], as tuning keeps them
        tensors[f"blocks.{i}.att.time_state"] = Tensor.of(np.ascontiguousarray(values))
    metadata = weights.metadata | {"rookery.lineage": weights.lineage}
    baked = Weights(weights.path, weights.format, replace(c, tuned_state=True), tensors, metadata)
    write(baked, target, to)
