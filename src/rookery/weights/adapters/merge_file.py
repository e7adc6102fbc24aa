"""`rookery merge`: base and adapters become one model file, tensor by tensor.

What no adapter touches is written bit for bit as it lies in the base.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rookery import formats
from rookery.errors import ModelError
from rookery.formats import folder
from rookery.formats.tensor import Deferred, Tensor, plain, row_major
from rookery.weights.adapters.adapter import Adapter
from rookery.weights.adapters.apply import merged
from rookery.weights.convert import check_target, write
from rookery.weights.load import Weights
from rookery.weights.quantise import encode

Progress = Callable[[int, int], None]  # elements made so far, elements in all
MERGED = "rookery.merged"  # metadata: of what the model was made, as JSON


@dataclass(frozen=True)
class How:
    """`scale`: how far to go from the base (0) to what was trained (1), on the straight line between.

    `dtype`: what changed tensors are stored in, f32, bf16 or f16; "same": what the base has for them.
    """

    scale: float = 1.0
    dtype: str = "f32"


def merge(
    weights: Weights,
    adapters: Sequence[Adapter],
    target: str | os.PathLike[str],
    to: str | None = None,
    how: How = How(),
    begin: Mapping[str, Tensor] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Write `weights` with the adapters in it; `target`, `to` and `force` as in `weights.convert`.

    `begin`: tensors att.time_state, one a layer, for the model to begin its reading from. Returns the changed tensors
    as they are written. The new model has a lineage of its own, which is that of `beside` with the same adapters.
    Raises AdapterError for those of another base, ModelError for a number that the type cannot hold, CannotWrite.
    """
    if to == "hf":
        folder.check_target(os.fspath(target))
    else:
        for path in (weights.path, *(a.path for a in adapters)):
            check_target(path, target, force)
    in_blocks = (to or formats.suffix_format(target)) == "gguf"
    with ThreadPoolExecutor() as pool:
        changed = _Work(weights, merged(weights, *adapters), how, in_blocks, pool, progress).changed()
        config = replace(weights.config, tuned_state=True) if begin else weights.config
        tensors = weights.tensors | changed | dict(begin or {})
        made = replace(weights, config=config, tensors=tensors, metadata=_story(weights, adapters, how, begin))
        write(made, target, to)
    return changed


class _Work:
    """The changed tensors, each to be made when the writer asks for its bytes."""

    def __init__(
        self, base: Weights, tuned: Weights, how: How, in_blocks: bool, pool: ThreadPoolExecutor, said: Progress | None
    ) -> None:
        self.base, self.tuned, self.how, self.in_blocks, self.pool, self.said = base, tuned, how, in_blocks, pool, said
        self.done = self.total = 0

    def changed(self) -> dict[str, Tensor]:
        found = {name: t for name, t in self.tuned.tensors.items() if t is not self.base.tensors[name]}
        self.total = sum(t.size for t in found.values())
        return {name: self._deferred(name, t) for name, t in found.items()}

    def _deferred(self, name: str, tensor: Tensor) -> Tensor:
        dtype = self.how.dtype
        if dtype == "same":
            dtype = (row_major if self.in_blocks else plain)(self.base.tensors[name]).dtype
        return Deferred(dtype, tensor.shape, lambda: self._made(name, tensor, dtype))

    def _made(self, name: str, tensor: Tensor, dtype: str) -> Tensor:
        if self.how.scale != 1:
            base = self.base.tensors[name].float32()
            tensor = Tensor.of(base + np.float32(self.how.scale) * (tensor.float32() - base))
        try:
            data = tensor.data if dtype == "f32" else encode(tensor, dtype, self.pool)
        except ValueError as error:
            raise ModelError(f"{self.base.path}: {name}, merged, does not fit {dtype}: {error}") from None
        self.done += tensor.size
        if self.said:
            self.said(self.done, self.total)
        return Tensor(dtype, tensor.shape, data)


def _story(
    weights: Weights, adapters: Sequence[Adapter], how: How, begin: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """The base's metadata, a lineage, and of what the model was made."""
    lineage = replace(weights, adapted=tuple(adapters), base=weights).lineage if adapters else weights.lineage
    if how.scale != 1:
        lineage = hashlib.sha256(f"{lineage}\0{how.scale!r}".encode()).hexdigest()
    parts = [{"file": _file(a.path), "method": a.method, "fingerprint": a.fingerprint} for a in adapters]
    story: dict[str, Any] = {"base": {"file": _file(weights.path), "lineage": weights.lineage}, "adapters": parts}
    story |= {"scale": how.scale} if how.scale != 1 else {}
    story |= {"state": True} if begin else {}
    return weights.metadata | {"rookery.lineage": lineage, MERGED: json.dumps(story)}


def _file(path: str) -> str:
    return os.path.basename(os.path.normpath(path))
