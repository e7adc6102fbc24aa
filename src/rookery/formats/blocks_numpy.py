"""Blocks without the native core: all types decoded, those of 32 elements encoded.

The numbers and bytes are those of native/blocks.cpp, whose steps these are, for all blocks of a tensor at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rookery.formats.blocks import LAYOUT
from rookery.formats.tensor import Array

ZERO = {"q4_0": 8, "q5_0": 16}  # the code that stands for 0, in types without a minimum


def decode(dtype: str, data: Array) -> Array:
    """uint8 [whole blocks] -> float32 [elements]."""
    block = data.view(LAYOUT[dtype])
    with np.errstate(invalid="ignore"):  # a damaged scale of inf gives NaN, as in C
        return _DECODERS.get(dtype, _simple)(dtype, block).reshape(-1)


def _simple(dtype: str, block: Array) -> Array:
    """d * (q - zero), or d * q + m."""
    values = _codes(dtype, block).astype(np.float32)
    if dtype in ZERO:
        values -= ZERO[dtype]
    values *= block["d"].astype(np.float32)[:, None]
    if "m" in (LAYOUT[dtype].names or ()):
        values += block["m"].astype(np.float32)[:, None]
    return values


def _codes(dtype: str, block: Array) -> Array:
    """[n, 32]. 4-bit codes: byte j has elements j and j + 16; bit j of `h` is j's fifth."""
    codes: Array = block["q"]
    if dtype != "q8_0":
        codes = np.concatenate([codes & 15, codes >> 4], axis=1)
    if dtype in ("q5_0", "q5_1"):
        fifth = (block["h"][:, None] >> np.arange(32, dtype=np.uint32)) & 1
        codes |= (fifth << 4).astype(np.uint8)
    return codes


def signed(dtype: str, block: Array) -> Array:
    """Types without a minimum: codes [n, 32] about zero, int16."""
    return _codes(dtype, block).astype(np.int16) - ZERO.get(dtype, 0)


def affine(dtype: str, data: Array) -> tuple[Array, Array, Array]:
    """Types with a minimum, and q6_k: scale [n, g] and minimum [n, g] as float32, codes [n, elements] as uint8.

    scale * code + minimum is what `decode` gives, to the bit but for the sign of a zero in q6_k: its scales have 18
    significant bits and its codes six, so that 32 of them are taken away exactly.
    """
    block = data.view(LAYOUT[dtype])
    with np.errstate(invalid="ignore"):
        if dtype == "q6_k":
            scale, codes = _q6_k_parts(block)
            minimum = -32 * scale
        elif dtype.endswith("_k"):
            scale, codes, minimum = _k_parts(dtype, block)
            minimum = -minimum
        else:
            codes = _codes(dtype, block)
            scale, minimum = (block[name].astype(np.float32)[:, None] for name in "dm")
    return scale, codes.reshape(len(block), -1), minimum


def _k(dtype: str, block: Array) -> Array:
    """(d * scale) * q - (m * minimum)."""
    scale, codes, minimum = _k_parts(dtype, block)
    values: Array = scale[..., None] * codes - minimum[..., None]
    return values


def _k_parts(dtype: str, block: Array) -> tuple[Array, Array, Array]:
    """Eight parts of 32 with six-bit scales and minimums: [n, 8], [n, 8, 32], [n, 8]."""
    s = block["s"].reshape(-1, 3, 4)
    scale = np.concatenate([s[:, 0] & 63, s[:, 2] & 15 | s[:, 0] >> 6 << 4], axis=1)
    minimum = np.concatenate([s[:, 1] & 63, s[:, 2] >> 4 | s[:, 1] >> 6 << 4], axis=1)
    codes = np.stack([block["q"] & 15, block["q"] >> 4], axis=2).reshape(-1, 8, 32)
    if dtype == "q5_k":
        codes |= (block["h"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    d, m = (block[name].astype(np.float32)[:, None] for name in "dm")
    return d * scale, codes, m * minimum


def _q6_k(dtype: str, block: Array) -> Array:
    """(d * scale) * (q - 32)."""
    scale, codes = _q6_k_parts(block)
    values: Array = scale[..., None] * (codes.astype(np.float32) - 32)
    return values


def _q6_k_parts(block: Array) -> tuple[Array, Array]:
    """Sixteen parts of 16: scales [n, 16], codes [n, 16, 16]; a half block's elements lie in four runs of 32."""
    low = np.concatenate([block["q"] & 15, block["q"] >> 4], axis=2)  # [n, half, run, 32]
    high = block["h"][:, :, None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return block["d"].astype(np.float32)[:, None] * block["s"], (low | high << 4).reshape(-1, 16, 16)


_DECODERS: dict[str, Callable[[str, Array], Array]] = {"q4_k": _k, "q5_k": _k, "q6_k": _q6_k}


def encode(dtype: str, values: Array) -> Array:
    """float32 [elements], finite -> uint8 [bytes]; types of 32 elements only."""
    x = values.reshape(-1, 32)
    block = np.empty(len(x), LAYOUT[dtype])
    with np.errstate(all="ignore"):  # numbers too large for a block are cut, whatever they do on the way
        if dtype == "q8_0":
            block["d"], block["q"] = _search_scale(x, np.abs(_extreme(x)), -127, 127, [127])
            return block.view(np.uint8).reshape(-1)
        if dtype in ZERO:
            zero = ZERO[dtype]
            tries = [0, 0.7, 0.4, -0.3, -0.6, -0.9, -1.4]
            ends = [np.float32(-zero) + np.float32(t) for t in tries]
            ends += [np.float32(zero) - np.float32(t) for t in (1, 0.7, 0.3)]
            block["d"], q = _search_scale(x, _extreme(x), -zero, zero - 1, ends)
            q += zero
        else:
            block["d"], block["m"], q = _search_affine(x, 15 if dtype == "q4_1" else 31)
    codes = q.astype(np.uint8)
    if "h" in (LAYOUT[dtype].names or ()):
        block["h"] = ((codes >> 4).astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32)
    block["q"] = codes[:, :16] & 15 | codes[:, 16:] << 4
    return block.view(np.uint8).reshape(-1)


def _half(values: Array) -> Array:
    """Rounded to float16, as float32; what is too large becomes the largest, NaN becomes 0."""
    held = np.clip(np.where(np.isnan(values), np.float32(0), values), -65504, 65504)
    return held.astype(np.float16).astype(np.float32)


def _sum(terms: Array) -> Array:
    """[n, 32] -> [n], in the order of the native core: eight lanes, then the lanes."""
    lanes = terms[:, :8].copy()
    for i in range(8, 32, 8):
        lanes += terms[:, i : i + 8]
    total = lanes[:, 0].copy()
    for i in range(1, 8):
        total += lanes[:, i]
    return total


def _extreme(x: Array) -> Array:
    """The number of largest magnitude of each block, the first of several."""
    return np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]


def _fit_codes(x: Array, d: Array, m: Array, low: int, high: int) -> tuple[Array, Array]:
    """The best codes of d * q + m, and their squared error."""
    inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
    q = (x - m[:, None]) * inverse[:, None]
    q = np.where(q > low, q, np.float32(low))  # NaN becomes `low`
    q = np.rint(np.where(q < high, q, np.float32(high)))
    rest = x - (d[:, None] * q + m[:, None])
    return q, _sum(rest * rest)


def _search_scale(x: Array, top: Array, low: int, high: int, ends: Sequence[float | np.float32]) -> tuple[Array, Array]:
    best, best_q = np.zeros(len(x), np.float32), np.zeros_like(x)
    best_error, none = np.full(len(x), np.inf, np.float32), np.zeros(len(x), np.float32)
    for end in ends:
        d = _half(top / np.float32(end))
        for _ in range(2):
            q, error = _fit_codes(x, d, none, low, high)
            better = error < best_error
            best_error[better], best[better], best_q[better] = error[better], d[better], q[better]
            qq = _sum(q * q)
            d = _half(np.where(qq > 0, _sum(x * q) / qq, np.float32(0)))
    return best, best_q


def _search_affine(x: Array, top: int) -> tuple[Array, Array, Array]:
    best_d, best_m, best_q = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32), np.zeros_like(x)
    best_error, sx = np.full(len(x), np.inf, np.float32), _sum(x)
    low = x.min(1)
    span = x.max(1) - low
    for spare in (0, 0.5, 1, 1.5, 2, 3):
        d = _half(span / np.float32(top + spare))
        m = _half(low + (span - d * np.float32(top)) * np.float32(0.5))
        for _ in range(2):
            q, error = _fit_codes(x, d, m, 0, top)
            better = error < best_error
            best_error[better], best_q[better] = error[better], q[better]
            best_d[better], best_m[better] = d[better], m[better]
            sq, sqq, sxq = _sum(q), _sum(q * q), _sum(x * q)
            det = np.float32(32) * sqq - sq * sq
            fitted = (np.float32(32) * sxq - sx * sq) / det
            m = _half(np.where(det > 0, (sx - fitted * sq) / np.float32(32), m))
            d = _half(np.where(det > 0, fitted, d))
    return best_d, best_m, best_q
