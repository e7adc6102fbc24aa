"""The two types in which a base may lie frozen while an adapter is trained over it: int8 and nf4.

A row is cut into blocks of 64, each with its largest magnitude as a float32 scale, 8.5 and 4.5 bits a number in all. A
scale a row would save half a bit of int8 and costs a third more error, 0.78 % against 0.59 % of RMS for normal numbers
in rows of 768. nf4 has the sixteen levels of QLoRA (arXiv 2305.14314, appendix E), int8 the multiples of 1/127.
The scales are not quantised themselves, as QLoRA's are: that saves 0.37 bits.
"""

from __future__ import annotations

import numpy as np

from rookery.formats.tensor import Array

BLOCK = 64
BYTES = {"int8": 64, "nf4": 32}  # of a block's codes

# Evenly spread quantiles of the normal distribution, eight of each sign about an exact 0, over the largest of them;
# the paper's digits, which are float32 arithmetic's.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def codes(w: Array, kind: str) -> tuple[Array, Array]:
    """float32 [out, in] -> codes uint8 [out, n * BYTES] and scales float32 [out, n], n blocks to a row.

    A last block that is short is filled with zeros. int8: two's complement, scales over 127. nf4: byte j of a block
    holds element 2j in its low four bits and 2j + 1 in its high. Raises ValueError for infinity or NaN.
    """
    if kind not in BYTES:
        raise ValueError(f"no type {kind!r} for a frozen base; choose from {', '.join(BYTES)}")
    if not np.isfinite(w).all():
        raise ValueError("infinity or NaN cannot be quantised")
    rows, columns = w.shape
    blocks = np.zeros((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    blocks[:, :columns] = w
    blocks = blocks.reshape(rows, -1, BLOCK)
    scales = np.abs(blocks).max(-1, initial=0)
    if kind == "int8":
        scales /= np.float32(127)
    blocks /= np.where(scales > 0, scales, np.float32(1))[..., None]
    if kind == "int8":
        return np.rint(blocks).astype(np.int8).view(np.uint8).reshape(rows, -1), scales
    levels = np.array(LEVELS, np.float32)
    nearest = np.zeros(blocks.shape, np.uint8)
    for middle in (levels[1:] + levels[:-1]) / 2:  # eight times as quick as a search
        nearest += blocks > middle
    return (nearest[..., ::2] | nearest[..., 1::2] << 4).reshape(rows, -1), scales


def dequantised(codes: Array, scales: Array, kind: str, columns: int) -> Array:
    """What `codes` gives -> float32 [out, columns]."""
    rows, n = scales.shape
    if kind == "int8":
        values = codes.view(np.int8).astype(np.float32)
    else:
        values = np.array(LEVELS, np.float32)[np.stack([codes & 15, codes >> 4], -1)]
    values = values.reshape(rows, n, BLOCK) * scales[..., None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


def rounded(w: Array, kind: str) -> Array:
    """The numbers that `w` [out, in] stands for once it lies in this type: float32 [out, in]."""
    return dequantised(*codes(w, kind), kind, w.shape[1])
