"""Write a model with its matrices in blocks: which tensor gets which type, and the work spread over all cores.

The target is a GGUF, or packed: a safetensors file whose matrices lie in panels (formats/panels.py), which the native
engine maps and uses as they are. A tensor is encoded when the writer asks for its bytes: one at a time is in memory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rookery import _native, formats
from rookery.architecture import Param, version
from rookery.errors import BackendError, InputError, ModelError
from rookery.formats import blocks, panels
from rookery.formats.tensor import Array, Deferred, Tensor, plain, row_major
from rookery.weights.convert import check_target, texts, to_gguf
from rookery.weights.load import Weights, load, locate
from rookery.weights.names import gguf

TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "f16", "bf16", "f32")
# For rows that are no whole blocks of 256; those that are none of 32 become f16.
FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
CHUNK = 2**18  # elements that a thread takes at a time

Progress = Callable[[int, int], None]  # elements written so far, elements in all


@dataclass(frozen=True)
class Plan:
    """Types by tensor class; the head and the embedding have that of the other matrices unless given.

    Without a type, tensors keep the one they have: a packed file can be made so.
    """

    type: str | None
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
        if wanted and columns % 256:
            wanted = FALLBACK.get(wanted, wanted)
        return "f16" if wanted in blocks.BLOCKS and columns % 32 else wanted


def quantise(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    plan: Plan,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    packed: bool = False,
) -> dict[str, int]:
    """Read the model `source`, write `target`: a GGUF, or `packed`. Returns how many tensors have which type there.

    `threads`: all cores unless given. Both targets hold the same values. Packing changes none by itself, but that f64
    is rounded to float32, as the engine does. Raises CannotWrite when `target` exists and `force` is not set, or is
    `source`; InputError for a name that belongs to another format or a plan without type for a GGUF; ModelError for a
    number that the type cannot hold.
    """
    source = locate(source)
    format = "safetensors" if packed else "gguf"
    if formats.suffix_format(target) not in (None, format):
        how = "packed models are written as safetensors" if packed else "quantised models are written as GGUF"
        raise InputError(f"{os.fspath(target)}: {how}; name the file .{format}")
    if plan.type is None and not packed:
        raise InputError(f"no type to quantise to; choose from {', '.join(TYPES)}")
    check_target(source, target, force)
    weights = load(source)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(threads or cores) as pool:
        work = _Work(weights, plan, pool, progress)
        tensors, metadata = work.packed() if packed else work.gguf()
        formats.write(target, tensors, metadata, format)
    return dict(Counter(tensor.dtype for tensor in tensors.values()))


class _Work:
    """What the target holds, each changed tensor to be made when its bytes are asked for."""

    def __init__(self, weights: Weights, plan: Plan, pool: ThreadPoolExecutor, progress: Progress | None) -> None:
        self.weights, self.plan, self.pool, self.progress = weights, plan, pool, progress
        self.table = {p.name: p for p in version(weights.config).params(weights.config)}
        self.done = self.total = 0

    def gguf(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, metadata = to_gguf(self.weights)
        for name, tensor in tensors.items():
            param = self.table.get(gguf.blinkdl_name(name, self.weights.config.version[0]))
            dtype = param and self.plan.of(param, tensor.shape[-1])
            if dtype and dtype != tensor.dtype:
                tensors[name] = self.deferred(name, tensor, dtype)
        return tensors, metadata | gguf.file_type(tensors)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: self.laid_out(self.table[name], t) for name, t in self.weights.tensors.items()}
        return tensors, texts(self.weights)

    def laid_out(self, param: Param, tensor: Tensor) -> Tensor:
        """Matrices in panels; the embedding, of which rows are read, and vectors as they lie in any file."""
        name = param.name
        if param.kind in ("vector", "state") or param.optional:
            return plain(tensor)
        turned = param.kind == "lora"
        dtype = self.plan.of(param, tensor.shape[-2 if turned else -1])
        if param.kind == "embedding":
            tensor = row_major(tensor)
            return self.deferred(name, tensor, dtype) if dtype not in (None, tensor.dtype) else tensor
        if tensor.in_panels and dtype is None and panels.parts(tensor.dtype)[1] == turned:
            return tensor
        source = plain(tensor) if turned else row_major(tensor)
        dtype = dtype or source.dtype
        return self.deferred(name, source, dtype, f"panel_{panels.kind_of(dtype)}{'_t' if turned else ''}")

    def deferred(self, name: str, tensor: Tensor, dtype: str, stored: str | None = None) -> Tensor:
        """`tensor` rounded to `dtype`; `stored`: the panels that hold that."""
        self.total += tensor.size
        return Deferred(stored or dtype, tensor.shape, lambda: self.made(name, tensor, dtype, stored))

    def made(self, name: str, tensor: Tensor, dtype: str, stored: str | None) -> Tensor:
        try:
            data = pack(tensor, dtype, stored, self.pool) if stored else encode(tensor, dtype, self.pool)
        except ValueError as error:
            raise ModelError(f"{self.weights.path}: {name} does not fit {dtype}: {error}") from None
        self.done += tensor.size
        if self.progress:
            self.progress(self.done, self.total)
        return Tensor(stored or dtype, tensor.shape, data)


def encode(tensor: Tensor, dtype: str, pool: ThreadPoolExecutor) -> Array:
    """The tensor's values as uint8 [nbytes] of any row-major type, rows shared out among the threads of `pool`.

    Raises ValueError for infinity or NaN, and for a number beyond the range of f16.
    """
    *outer, columns = tensor.shape
    narrow = blocks.nbytes(dtype, (columns,))
    out = np.empty((prod(outer), narrow), np.uint8)

    def put(begin: int, part: Tensor) -> None:
        out[begin : begin + part.shape[0]] = part.data.reshape(-1, narrow)

    _by_rows(tensor, dtype, pool, put)
    return out.reshape(-1)


def pack(tensor: Tensor, dtype: str, stored: str, pool: ThreadPoolExecutor) -> Array:
    """The values that `encode` would give, as uint8 [nbytes] of the panels `stored`; raises the same."""
    kind, turned = panels.parts(stored)
    if turned:
        tensor = panels.turn(tensor)
    *outer, rows, columns = tensor.shape
    out = np.zeros((prod(outer), -(-rows // panels.ROWS), panels.panel_bytes(kind, columns)), np.uint8)
    data = tensor.data.reshape(prod(outer), -1)
    for matrix, made in zip(data, out, strict=True):

        def put(begin: int, part: Tensor, made: Array = made) -> None:
            rows = part.shape[0]
            place = made[begin // panels.ROWS : -(-(begin + rows) // panels.ROWS)]
            panels.pack(dtype, part.data, rows, columns, kind, place.reshape(-1))

        _by_rows(Tensor(tensor.dtype, (rows, columns), matrix), dtype, pool, put)
    return out.reshape(-1)


def _by_rows(tensor: Tensor, dtype: str, pool: ThreadPoolExecutor, put: Callable[[int, Tensor], None]) -> None:
    """Call `put(first row, rows as dtype)` for all rows of a row-major tensor, in whole panels, on the threads."""
    *outer, columns = tensor.shape
    rows, data = prod(outer), tensor.data  # asked for once: it may have to be made
    wide = blocks.nbytes(tensor.dtype, (columns,))

    def work(begin: int, end: int) -> None:
        part = Tensor(tensor.dtype, (end - begin, columns), data[begin * wide : end * wide])
        put(begin, part if dtype == part.dtype else Tensor(dtype, part.shape, _encoded(part.float32(), dtype)))

    step = max(1, CHUNK // max(1, columns * panels.ROWS)) * panels.ROWS
    parts = [pool.submit(work, at, min(at + step, rows)) for at in range(0, rows, step)]
    try:
        for part in parts:
            part.result()
    finally:
        for part in parts:  # what has not begun, after an error or Ctrl-C
            part.cancel()


def _encoded(values: Array, dtype: str) -> Array:
    if dtype in blocks.BLOCKS:
        return blocks.encode(dtype, values)
    if dtype == "f16" and not (np.abs(values) < 65520).all():  # what rounds to infinity, is it or is NaN
        raise ValueError("a number beyond its range; bf16 holds it" if np.isfinite(values).all() else "infinity or NaN")
    return Tensor.of(values, dtype).data
