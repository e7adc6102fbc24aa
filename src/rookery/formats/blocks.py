"""Block-quantised types: how many bytes they take, the numbers they stand for, and the blocks nearest to given numbers.

A block holds 32 or 256 neighbours of a row: scales, sometimes minimums, and small codes, laid out as in ggml. The work
is done by the native core; `blocks_numpy` stands in for it with the same bytes and numbers.
"""

from __future__ import annotations

from math import prod

import numpy as np

from rookery import _native
from rookery.errors import BackendError
from rookery.formats.tensor import NUMPY, Array

_D, _M, _H, _Q = ("d", "<f2"), ("m", "<f2"), ("h", "<u4"), ("q", "u1", 16)

LAYOUT: dict[str, np.dtype[np.void]] = {
    "q4_0": np.dtype([_D, _Q]),
    "q4_1": np.dtype([_D, _M, _Q]),
    "q5_0": np.dtype([_D, _H, _Q]),
    "q5_1": np.dtype([_D, _M, _H, _Q]),
    "q8_0": np.dtype([_D, ("q", "i1", 32)]),
    "q4_k": np.dtype([_D, _M, ("s", "u1", 12), ("q", "u1", (4, 32))]),
    "q5_k": np.dtype([_D, _M, ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", (4, 32))]),
    "q6_k": np.dtype([("q", "u1", (2, 2, 32)), ("h", "u1", (2, 32)), ("s", "i1", 16), _D]),
}

BLOCKS: dict[str, tuple[int, int]] = {
    name: (layout.itemsize, 256 if name.endswith("_k") else 32) for name, layout in LAYOUT.items()
}
"""Type -> (bytes of a block, elements of a block)."""


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of any type. Raises ValueError for a row that is not whole blocks, KeyError for no type."""
    if dtype.startswith("panel_"):
        from rookery.formats import panels

        return panels.nbytes(dtype, shape)
    if dtype not in BLOCKS:
        return prod(shape) * (2 if dtype == "bf16" else np.dtype(NUMPY[dtype]).itemsize)
    size, elements = BLOCKS[dtype]
    if not shape or shape[-1] % elements:
        raise ValueError(f"{dtype} needs rows of a multiple of {elements} elements, not {shape}")
    return prod(shape) // elements * size


def decode(dtype: str, data: Array, shape: tuple[int, ...]) -> Array:
    """uint8 [nbytes] -> float32 `shape`. Raises ValueError if the bytes do not fit the shape."""
    if data.nbytes != nbytes(dtype, shape):
        raise ValueError(f"{dtype} {shape} takes {nbytes(dtype, shape)} bytes, not {data.nbytes}")
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if _native.available():
        values = np.empty(prod(shape), np.float32)
        _native.core.decode_blocks(dtype, data, values)
        return values.reshape(shape)
    _native.check()
    from rookery.formats import blocks_numpy

    return blocks_numpy.decode(dtype, data).reshape(shape)


def encode(dtype: str, values: Array) -> Array:
    """float32 [..., cols] -> uint8 [nbytes]: of the blocks tried, those of the least squared error.

    Threads run side by side in it. Raises ValueError for rows that are not whole blocks and for infinity or NaN,
    BackendError for a K type without the native core.
    """
    data = np.empty(nbytes(dtype, values.shape), np.uint8)
    values = np.ascontiguousarray(values, np.float32).reshape(-1)
    if not np.isfinite(values).all():
        raise ValueError("infinity or NaN cannot be quantised")
    if _native.available():
        _native.core.encode_blocks(dtype, values, data)
        return data
    _native.check()
    if dtype.endswith("_k"):
        raise BackendError(f"encoding {dtype} needs the native core, which is missing; {_native.REMEDY}")
    _native.announce_missing()
    from rookery.formats import blocks_numpy

    return blocks_numpy.encode(dtype, values)
