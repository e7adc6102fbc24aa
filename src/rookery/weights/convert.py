"""Write a model in another format: the same tensors, bit for bit, with its lineage where the format has room."""

from __future__ import annotations

import os

from rookery import formats
from rookery.errors import CannotWrite
from rookery.formats.tensor import NUMPY, Tensor
from rookery.weights.load import load, locate


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], to: str | None = None, force: bool = False
) -> None:
    """Read `source`, write `target` as `to` ("pth", "safetensors"; default: by its suffix).

    Values never change, except that block types, which these formats cannot hold, become float32.
    Raises CannotWrite when `target` exists and `force` is not set, or is `source` itself.
    """
    source = locate(source)
    if os.path.exists(target):
        if os.path.exists(source) and os.path.samefile(source, target):
            raise CannotWrite(target, "is the source itself; name another file")
        if not force:
            raise CannotWrite(target, "exists already; --force overwrites it")
    weights = load(source)
    metadata = {key: value for key, value in weights.metadata.items() if key.startswith("rookery.")}
    metadata |= {"rookery.lineage": weights.lineage, "rookery.group_norm_eps": repr(weights.config.group_norm_eps)}
    formats.write(target, {name: _plain(t) for name, t in weights.tensors.items()}, metadata, format=to)


def _plain(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in NUMPY or tensor.dtype == "bf16" else Tensor.of(tensor.float32())
