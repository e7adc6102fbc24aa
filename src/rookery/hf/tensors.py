"""Parameters between torch and Rookery's tensors: the bytes are the same, bf16 among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rookery.architecture import Config, version
from rookery.errors import InputError
from rookery.formats.tensor import Tensor, plain
from rookery.weights import Weights
from rookery.weights.names import hf

DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
NAMES = {made: name for name, made in DTYPES.items()}


class Later:
    """A parameter that is read from its file when transformers asks for it, with `[...]` as of a safetensors slice."""

    def __init__(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self.tensor, self.shape = tensor, shape

    def __getitem__(self, _: Any) -> torch.Tensor:
        return to_torch(self.tensor).reshape(self.shape)


def to_torch(tensor: Tensor) -> torch.Tensor:
    """A copy of the values, in the type they are stored in; blocks and panels as plain numbers."""
    stored = np.array(plain(tensor).stored())
    made = torch.from_numpy(stored.view(np.int16) if stored.dtype == np.uint16 else stored)
    return made.view(torch.bfloat16) if stored.dtype == np.uint16 else made


def of_torch(name: str, tensor: torch.Tensor) -> Tensor:
    """The values, where they are if that is in ordinary memory. Raises InputError for a type that no model has."""
    if tensor.dtype not in NAMES:
        raise InputError(f"parameter {name} is {tensor.dtype}; models are written in {', '.join(DTYPES)}")
    plainly = tensor.detach().cpu().contiguous()
    wide = plainly.view(torch.int16) if tensor.dtype == torch.bfloat16 else plainly
    return Tensor(NAMES[tensor.dtype], tuple(tensor.shape), wide.numpy().reshape(-1).view(np.uint8))


def of_weights(weights: Weights) -> dict[str, Later]:
    """A state dict of a file's tensors that a model needs, unread."""
    return {p.name: Later(weights.tensors[p.name], p.shape) for p in weights.params if not p.optional}


def named_by_loaders(config: Config, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under the names and shapes of the version's usual loader, which `weights.load` reads too."""
    table = [p for p in version(config).params(config) if p.name in state]
    tensors = {p.name: of_torch(p.name, state[p.name]).reshape(*p.file_shape) for p in table}
    return {name: to_torch(t) for name, t in hf.from_blinkdl(tensors, config.version[0]).items()}


def named_by_blinkdl(config: Config, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reverse of `named_by_loaders`, of names and shapes as any file has them; what is unknown stays as it is."""
    table = version(config).params(config)
    shapes, unused = {p.name: p.shape for p in table}, {p.name for p in table if p.optional}
    known = {name: t for name, t in state.items() if t.dtype in NAMES}
    found = hf.to_blinkdl("a state dict", {name: of_torch(name, t) for name, t in known.items()})
    ours = {name: to_torch(t) for name, t in found.items() if name not in unused}
    fitting = {name: t.reshape(shapes[name]) if _fits(t, shapes.get(name)) else t for name, t in ours.items()}
    return fitting | {name: t for name, t in state.items() if name not in known}


def _fits(tensor: torch.Tensor, shape: tuple[int, ...] | None) -> bool:
    return shape is not None and [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]
