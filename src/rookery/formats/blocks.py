"""Block-quantised types: how many bytes they take, and the numbers they stand for.

A block holds 32 neighbours of a row: a float16 scale `d` (and minimum `m`), then the codes `q`. 4-bit codes lie as in
ggml: byte j holds element j in its low half and element j + 16 in its high half; bit j of `h` is the fifth bit of
element j. Values are d * (q - zero) or d * q + m in float32, where the product is exact.
"""

from __future__ import annotations

from math import prod

import numpy as np

from rookery.formats.tensor import NUMPY, Array

_D, _M, _H, _Q = ("d", "<f2"), ("m", "<f2"), ("h", "<u4"), ("q", "u1", 16)

LAYOUT: dict[str, np.dtype[np.void]] = {
    "q4_0": np.dtype([_D, _Q]),
    "q4_1": np.dtype([_D, _M, _Q]),
    "q5_0": np.dtype([_D, _H, _Q]),
    "q5_1": np.dtype([_D, _M, _H, _Q]),
    "q8_0": np.dtype([_D, ("q", "i1", 32)]),
}
ZERO = {"q4_0": 8, "q5_0": 16}  # the code that stands for 0, in types without a minimum

BLOCKS: dict[str, tuple[int, int]] = {name: (layout.itemsize, 32) for name, layout in LAYOUT.items()} | {
    "q4_k": (144, 256), "q5_k": (176, 256), "q6_k": (210, 256),
}  # fmt: skip
"""Type -> (bytes of a block, elements of a block)."""


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of any type. Raises ValueError for a row that is not whole blocks, KeyError for no type."""
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
    block = np.ascontiguousarray(data).view(LAYOUT[dtype])
    codes = block["q"]
    if dtype != "q8_0":
        codes = np.concatenate([codes & 15, codes >> 4], axis=1)
    if dtype in ("q5_0", "q5_1"):
        fifth = (block["h"][:, None] >> np.arange(32, dtype=np.uint32)) & 1
        codes |= (fifth << 4).astype(np.uint8)
    values = codes.astype(np.float32)
    if dtype in ZERO:
        values -= ZERO[dtype]
    with np.errstate(invalid="ignore"):  # a damaged scale of inf gives NaN, as in C
        values *= block["d"].astype(np.float32)[:, None]
        if "m" in (LAYOUT[dtype].names or ()):
            values += block["m"].astype(np.float32)[:, None]
    return values.reshape(shape)
