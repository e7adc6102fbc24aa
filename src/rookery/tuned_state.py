"""A tuned initial state in the form that RWKV-LM, RWKV-PEFT and RWKV-LM-RLHF write: `blocks.i.att.time_state`
[H, value, key] for every layer, in a .pth or safetensors file of nothing else.

It has no place for token shifts, does not say whose state it is, and v4, which has no heads, has none.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from rookery import formats
from rookery.errors import StateError
from rookery.formats.tensor import Tensor
from rookery.state import Known, State

_NAME = re.compile(r"(?:(?:_forward_module|module|model)\.)*blocks\.(\d{1,6})\.att\.time_state")
_FINGERPRINT, _LINEAGE = "rookery.fingerprint", "rookery.lineage"  # ours write them, and then they are checked


def is_one(file: formats.File) -> bool:
    """Whether the file holds a time_state and is no model."""
    return "emb.weight" not in file.tensors and any(_NAME.fullmatch(name) for name in file.tensors)


def of_file(file: formats.File, model: Any = None, allow_lineage: bool = False) -> State:
    """The state of `model` that the file holds: its WKV, and all else as before the first token. Raises StateError."""
    if model is None:
        raise StateError(f"{file.path}: a tuned state, which does not say of which model: State.load(file, model)")
    c, found = model.config, _by_layer(file)
    if not c.n_head:
        raise StateError(f"{file.path}: a tuned state, which {c.name} cannot have: it has no heads")
    if set(found) != set(range(c.n_layer)):
        raise StateError(f"{file.path}: a tuned state of {len(found)} layers; {model.weights.path} has {c.n_layer}")
    state = State.start(c, model.weights)
    for i in range(c.n_layer):
        wkv, tensor = state.layer(i).wkv, found[i]
        heads, keys, values = wkv.shape
        if tensor.shape != (heads, values, keys):
            wanted = f"{model.weights.path} wants {[heads, values, keys]}"
            raise StateError(f"{file.path}: the time_state of layer {i} has shape {list(tensor.shape)}; {wanted}")
        wkv[...] = tensor.float32().swapaxes(1, 2)
    if not np.isfinite(state.flat).all():
        raise StateError(f"{file.path}: a tuned state with numbers that are not finite")
    if {_FINGERPRINT, _LINEAGE} <= set(file.metadata):
        known = Known(str(file.metadata[_FINGERPRINT]), str(file.metadata[_LINEAGE]))
        model.check(State(c, state.flat, known), allow_lineage)
    return state


def tensors(state: State, force: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state in this form, float32, and the metadata that says whose it is.

    Raises StateError for a v4, and, unless `force` drops them, for token shifts that are not zero.
    """
    c = state.config
    if not c.n_head:
        raise StateError(f"a state of {c.name} has no heads, and so no form as a time_state")
    each = [state.layer(i) for i in range(c.n_layer)]
    if not force and shifted(state):
        raise StateError(
            "a time_state has no place for the state's token shifts, which are not zero; --force drops them"
        )
    found = {
        f"blocks.{i}.att.time_state": Tensor.of(layer.wkv.swapaxes(1, 2).astype(np.float32))
        for i, layer in enumerate(each)
    }
    return found, {_FINGERPRINT: state.origin.fingerprint, _LINEAGE: state.origin.lineage}


def shifted(state: State) -> bool:
    """Whether it has token shifts that are not zero, which this form drops."""
    each = [state.layer(i) for i in range(state.config.n_layer)]
    return any(layer.att_shift.any() or layer.ffn_shift.any() for layer in each)


def of_others(file: formats.File) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's time_state under BlinkDL's names, as it is stored, and what it says of its model."""
    found = {f"blocks.{i}.att.time_state": tensor for i, tensor in sorted(_by_layer(file).items())}
    return found, {key: str(file.metadata[key]) for key in (_FINGERPRINT, _LINEAGE) if key in file.metadata}


def _by_layer(file: formats.File) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for name, tensor in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise StateError(
                f"{file.path}: holds {name} beside a tuned state; wanted time_state alone, the rest as an adapter"
            )
        if int(match[1]) in found:
            raise StateError(f"{file.path}: holds the time_state of layer {int(match[1])} twice")
        found[int(match[1])] = tensor
    return found
