"""Write a model with its matrices in blocks: which tensor gets which type, and the work spread over all cores.

The target is a GGUF. A tensor is encoded when the writer asks for its bytes, so one at a time lies in memory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np

from rookery import _native, formats
from rookery.architecture import Param, version
from rookery.errors import BackendError, InputError, ModelError
from rookery.formats import blocks
from rookery.formats.tensor import Array, Deferred, Tensor
from rookery.weights.convert import check_target, provenance
from rookery.weights.load import Weights, load, locate
from rookery.weights.names import gguf

TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "f16", "bf16", "f32")
# For rows that are no whole blocks of 256; those that are none of 32 become f16.
FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
CHUNK = 2**18  # elements that a thread takes at a time

Progress = Callable[[int, int], None]  # elements written so far, elements in all


@dataclass(frozen=True)
class Plan:
    """Types by tensor class; the head and the embedding have that of the other matrices unless given."""

    type: str
    head: str | None = None
    embedding: str | None = None
    lora: bool = False  # low-rank pairs too, which else keep the type they have

    def __post_init__(self) -> None:
        for name in (self.type, self.head, self.embedding):
            if name is not None and name not in TYPES:
                raise InputError(f"no type {name!r} to quantise to; choose from {', '.join(TYPES)}")
            if name is not None and name.endswith("_k") and not _native.available():
                raise BackendError(f"encoding {name} needs the native core, which is missing; {_native.REMEDY}")

    def of(self, param: Param, columns: int) -> str | None:
        """The type for rows of this many elements; None for a tensor that stays as it is."""
        if not param.quantise and not (self.lora and param.kind == "lora"):
            return None
        wanted = {"head": self.head, "embedding": self.embedding}.get(param.kind) or self.type
        if columns % 256:
            wanted = FALLBACK.get(wanted, wanted)
        return "f16" if wanted in blocks.BLOCKS and columns % 32 else wanted


def quantise(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    plan: Plan,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Read the model `source`, write the GGUF `target`. Returns how many tensors have which type there.

    `threads`: all cores unless given. Raises CannotWrite when `target` exists and `force` is not set, or is
    `source`; InputError for a name that belongs to another format; ModelError for a number that the type cannot hold.
    """
    source = locate(source)
    if formats.suffix_format(target) not in (None, "gguf"):
        raise InputError(f"{os.fspath(target)}: quantised models are written as GGUF; name the file .gguf")
    check_target(source, target, force)
    weights = load(source)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(threads or cores) as pool:
        tensors, metadata = _Work(weights, plan, pool, progress).gguf()
        formats.write(target, tensors, metadata, format="gguf")
    return dict(Counter(tensor.dtype for tensor in tensors.values()))


class _Work:
    def __init__(self, weights: Weights, plan: Plan, pool: ThreadPoolExecutor, progress: Progress | None) -> None:
        self.weights, self.plan, self.pool, self.progress = weights, plan, pool, progress
        self.done = self.total = 0

    def gguf(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """What the target holds, each changed tensor to be made when its bytes are asked for."""
        config = self.weights.config
        table = {p.name: p for p in version(config).params(config)}
        said = self.weights.metadata | provenance(self.weights)
        tensors, metadata = gguf.from_blinkdl(self.weights.tensors, config, said)
        for name, tensor in tensors.items():
            param = table.get(gguf.blinkdl_name(name, config.version[0]))
            dtype = param and self.plan.of(param, tensor.shape[-1])
            if dtype and dtype != tensor.dtype:
                tensors[name] = self.deferred(name, tensor, dtype)
        return tensors, metadata | gguf.file_type(tensors)

    def deferred(self, name: str, tensor: Tensor, dtype: str) -> Tensor:
        self.total += tensor.size
        return Deferred(dtype, tensor.shape, lambda: self.encoded(name, tensor, dtype))

    def encoded(self, name: str, tensor: Tensor, dtype: str) -> Tensor:
        try:
            data = encode(tensor, dtype, self.pool)
        except ValueError as error:
            raise ModelError(f"{self.weights.path}: {name} does not fit {dtype}: {error}") from None
        self.done += tensor.size
        if self.progress:
            self.progress(self.done, self.total)
        return Tensor(dtype, tensor.shape, data)


def encode(tensor: Tensor, dtype: str, pool: ThreadPoolExecutor) -> Array:
    """The tensor's values as uint8 [nbytes] of any type, rows shared out among the threads of `pool`.

    Raises ValueError for infinity or NaN, and for a number beyond the range of f16.
    """
    *outer, columns = tensor.shape
    rows, data = prod(outer), tensor.data  # asked for once: it may have to be made
    wide, narrow = (blocks.nbytes(t, (columns,)) for t in (tensor.dtype, dtype))
    out = np.empty((rows, narrow), np.uint8)

    def work(begin: int, end: int) -> None:
        part = Tensor(tensor.dtype, (end - begin, columns), data[begin * wide : end * wide])
        out[begin:end] = _encoded(part.float32(), dtype).reshape(end - begin, narrow)

    step = max(1, CHUNK // max(1, columns))
    parts = [pool.submit(work, at, min(at + step, rows)) for at in range(0, rows, step)]
    try:
        for part in parts:
            part.result()
    finally:
        for part in parts:  # what has not begun, after an error or Ctrl-C
            part.cancel()
    return out.reshape(-1)


def _encoded(values: Array, dtype: str) -> Array:
    if dtype in blocks.BLOCKS:
        return blocks.encode(dtype, values)
    if dtype == "f16" and not (np.abs(values) < 65520).all():  # what rounds to infinity, is it or is NaN
        raise ValueError("a number beyond its range; bf16 holds it" if np.isfinite(values).all() else "infinity or NaN")
    return Tensor.of(values, dtype).data
