"""Weights in panels of 16 rows, the layout that the native engine computes on; the bytes are stated in native/panels.h.

A weight [..., rows, columns] is a stack of matrices, each a run of panels; what the last panel has too many is zero.
The type "panel_q8" holds such a weight in the kind q8. "panel_q8_t" holds the transpose: of a low-rank pair, which lies
[in, out] in a file, the panels have `out` rows; its shape stays [in, out]. No kind changes a value of the types it is
made from (the sign of a zero in q6_k alone may go), and the work is done here as in the native core.
"""

from __future__ import annotations

from math import prod

import numpy as np

from rookery import _native
from rookery.formats import blocks
from rookery.formats.tensor import NUMPY, Array, Tensor, widen_bf16

ROWS = 16
BLOCK = 32  # columns that share a scale in q8 and q4
PART = 16  # columns that share a scale in x8
KINDS = ("f32", "f16", "bf16", "q8", "q4", "x8")
TYPES = tuple(f"panel_{kind}{turned}" for kind in KINDS for turned in ("", "_t"))

# The kind that holds a type; all others, f64 and the integers, go through float32.
_KIND = {"f16": "f16", "bf16": "bf16", "q8_0": "q8", "q5_0": "q8", "q4_0": "q4"} | dict.fromkeys(
    ("q4_1", "q5_1", "q4_k", "q5_k", "q6_k"), "x8"
)
BLOCKS_OF = {"panel_q8": "q8_0", "panel_q4": "q4_0"}  # the same scales and codes in rows
_CHUNK = 2**20  # elements that are decoded at a time


def kind_of(dtype: str) -> str:
    """The kind that holds a row-major type's values."""
    return _KIND.get(dtype, "f32")


def parts(dtype: str) -> tuple[str, bool]:
    """ "panel_q8_t" -> ("q8", True): the kind, and whether the panels are those of the transpose."""
    kind = dtype.removeprefix("panel_")
    return kind.removesuffix("_t"), kind.endswith("_t")


def panel_bytes(kind: str, columns: int) -> int:
    """Bytes of one panel, a multiple of 64. Raises ValueError where `columns` must be whole blocks and are not."""
    if kind not in ("f32", "f16", "bf16") and columns % BLOCK:
        raise ValueError(f"panels of {kind} need a multiple of {BLOCK} columns, not {columns}")
    taken = {"f32": 64 * columns, "f16": 32 * columns, "bf16": 32 * (columns + columns % 2),
             "q8": _scale_bytes(columns) + 16 * columns, "q4": _scale_bytes(columns) + 8 * columns,
             "x8": 24 * columns}[kind]  # fmt: skip
    return _filled(taken)


def _scale_bytes(columns: int) -> int:
    return _filled(columns // BLOCK * 2 * ROWS)


def _filled(count: int) -> int:
    return (count + 63) // 64 * 64


def _matrices(shape: tuple[int, ...], turned: bool) -> tuple[int, int, int]:
    """How many matrices, and the rows and columns of their panels."""
    if len(shape) < 2:
        raise ValueError(f"panels hold matrices, not {shape}")
    *outer, rows, columns = shape
    return prod(outer), *((columns, rows) if turned else (rows, columns))


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in panels. Raises ValueError for a shape that the type cannot have."""
    kind, turned = parts(dtype)
    count, rows, columns = _matrices(shape, turned)
    return count * -(-rows // ROWS) * panel_bytes(kind, columns)


def of(tensor: Tensor, turned: bool = False) -> Tensor:
    """A row-major tensor in panels, all of it at once."""
    kind = kind_of(tensor.dtype)
    source = turn(tensor) if turned else tensor
    *outer, rows, columns = source.shape
    data = source.data.reshape(prod(outer), -1)
    out = [pack(source.dtype, matrix, rows, columns, kind) for matrix in data]
    return Tensor(f"panel_{kind}{'_t' if turned else ''}", tensor.shape, np.concatenate(out))


def turn(tensor: Tensor) -> Tensor:
    """The transpose of each matrix, in plain numbers."""
    *outer, row, column = range(len(tensor.shape))
    return tensor.permuted(*outer, column, row)


def pack(dtype: str, data: Array, rows: int, columns: int, kind: str, out: Array | None = None) -> Array:
    """A matrix [rows, columns] of a row-major type, uint8 [nbytes] -> its panels, uint8. Threads run side by side.

    `out`: zeros, which stay where a part is filled up to its boundary. Raises ValueError for a q6_k that holds infinity
    or NaN, which x8 would make another of the two.
    """
    if dtype not in _KIND and dtype != "f32":
        return pack("f32", Tensor.of(Tensor(dtype, (rows, columns), data).float32()).data, rows, columns, kind, out)
    if dtype == "q6_k" and not np.isfinite(np.ascontiguousarray(data).view(blocks.LAYOUT[dtype])["d"]).all():
        raise ValueError("infinity or NaN")
    out = np.zeros(nbytes(f"panel_{kind}", (rows, columns)), np.uint8) if out is None else out
    if hasattr(_native.core, "pack"):
        count = -(-rows // ROWS)
        _native.core.pack(dtype, np.ascontiguousarray(data), rows, columns, False, kind, 0, count, out)
        return out
    if out.size:
        panels = out.reshape(-1, panel_bytes(kind, columns))
        if kind in ("f32", "f16", "bf16"):
            _pack_plain(Tensor(dtype, (rows, columns), data), kind, panels)
        else:
            _pack_codes(dtype, data, rows, columns, kind, panels)
    return out


def _pack_plain(tensor: Tensor, kind: str, out: Array) -> None:
    rows, columns = tensor.shape
    pairs = 2 if kind == "bf16" else 1
    stored = Tensor.of(tensor.float32(), kind).stored() if tensor.dtype != kind else tensor.stored()
    wide = np.zeros((len(out) * ROWS, columns + columns % pairs), stored.dtype)
    wide[:rows, :columns] = stored
    turned = wide.reshape(len(out), ROWS, -1, pairs).transpose(0, 2, 1, 3)
    out[:, : turned[0].nbytes] = np.ascontiguousarray(turned).view(np.uint8).reshape(len(out), -1)


def _pack_codes(dtype: str, data: Array, rows: int, columns: int, kind: str, out: Array) -> None:
    from rookery.formats import blocks_numpy

    def filled(values: Array) -> Array:
        """[panels, 16, ...] of one number or more for each row."""
        whole = np.zeros((len(out) * ROWS, values.size // rows), values.dtype)
        whole[:rows] = values.reshape(rows, -1)
        return whole.reshape(len(out), ROWS, -1)

    def put(at: int, values: Array, together: int) -> int:
        """[panels, 16, n] -> [panels, n / together, 16, together] at byte `at` of each panel; the byte behind it."""
        turned = values.reshape(len(out), ROWS, -1, together).transpose(0, 2, 1, 3)
        end = at + int(values[0].nbytes)
        out[:, at:end] = np.ascontiguousarray(turned).view(np.uint8).reshape(len(out), -1)
        return end

    data = np.ascontiguousarray(data)
    if kind == "x8":
        scale, code, minimum = blocks_numpy.affine(dtype, data)
        spread = columns // PART * rows // scale.size
        at = put(0, filled(np.repeat(scale, spread, axis=1)), 1)
        at = put(at, filled(np.repeat(minimum, spread, axis=1)), 1)
        put(at, filled(code), 4)
        return
    block = data.view(blocks.LAYOUT[dtype])
    put(0, filled(block["d"]), 1)
    # A Q4_0 block's 16 bytes are its four dwords already.
    code = block["q"] if kind == "q4" else (blocks_numpy.signed(dtype, block) + 128).astype(np.uint8)
    put(_scale_bytes(columns), filled(code), 4)


def decode(dtype: str, data: Array, shape: tuple[int, ...]) -> Array:
    """uint8 [nbytes] -> float32 `shape`. Raises ValueError if the bytes do not fit the shape."""
    if data.nbytes != nbytes(dtype, shape):
        raise ValueError(f"{dtype} {shape} takes {nbytes(dtype, shape)} bytes, not {data.nbytes}")
    kind, turned = parts(dtype)
    count, rows, columns = _matrices(shape, turned)
    out = np.empty((count, rows, columns), np.float32)
    step = max(1, _CHUNK // max(1, ROWS * columns))
    with np.errstate(invalid="ignore"):  # a damaged scale of inf gives NaN, as in C
        for values, matrix in zip(out, data.reshape(count, -1) if out.size else (), strict=False):
            panels = matrix.reshape(-1, panel_bytes(kind, columns))
            for first in range(0, len(panels), step):
                part = values[first * ROWS : (first + step) * ROWS]
                part[:] = _values(kind, panels[first : first + step], columns).reshape(-1, columns)[: len(part)]
    # In the order of any other tensor: BLAS sums by another order where memory has one.
    return (np.ascontiguousarray(out.swapaxes(1, 2)) if turned else out).reshape(shape)


def to_blocks(tensor: Tensor) -> Tensor:
    """Panels of BLOCKS_OF as blocks, to the bit."""
    kind, _ = parts(tensor.dtype)
    count, rows, columns = _matrices(tensor.shape, False)
    dtype = BLOCKS_OF[tensor.dtype]
    out = np.empty((count, rows, columns // BLOCK), blocks.LAYOUT[dtype])
    if out.size:
        panels = tensor.data.reshape(-1, panel_bytes(kind, columns))
        at = _scale_bytes(columns)
        code = _take(panels, at, "u1", columns // 2, 4) if kind == "q4" else _take(panels, at, "u1", columns, 4) ^ 128
        for name, values in (("d", _take(panels, 0, "<f2", columns // BLOCK, 1)), ("q", code)):
            cut = values.reshape(count, -1, *out[name].shape[2:])[:, :rows]
            out[name] = cut.view(out[name].dtype)
    return Tensor(dtype, tensor.shape, out.reshape(-1).view(np.uint8))


def _take(panels: Array, at: int, code: str, width: int, together: int) -> Array:
    """[panels, width / together, 16, together] at byte `at` of each -> [panels, 16, width]."""
    size = np.dtype(code).itemsize * ROWS * width
    found = np.ascontiguousarray(panels[:, at : at + size]).view(code)
    return found.reshape(len(panels), -1, ROWS, together).transpose(0, 2, 1, 3).reshape(len(panels), ROWS, width)


def _values(kind: str, panels: Array, columns: int) -> Array:
    """uint8 [panels, panel_bytes] -> float32 [panels, 16, columns]."""
    if kind == "bf16":
        return widen_bf16(_take(panels, 0, "<u2", columns + columns % 2, 2)[..., :columns])
    if kind in ("f32", "f16"):
        return _take(panels, 0, NUMPY[kind], columns, 1).astype(np.float32)
    at = _scale_bytes(columns)
    if kind == "x8":
        scale, minimum = (_take(panels, 4 * columns * i, "<f4", columns // PART, 1)[..., None] for i in range(2))
        grouped = _take(panels, 8 * columns, "u1", columns, 4).reshape(*scale.shape[:3], PART)
        values: Array = scale * grouped + minimum
    else:
        scale = _take(panels, 0, "<f2", columns // BLOCK, 1).astype(np.float32)[..., None]
        if kind == "q4":
            nibbles = _take(panels, at, "u1", columns // 2, 4).reshape(*scale.shape[:3], BLOCK // 2)
            code = np.concatenate([nibbles & 15, nibbles >> 4], axis=3)
        else:
            code = _take(panels, at, "u1", columns, 4).reshape(*scale.shape[:3], BLOCK)
        values = (code.astype(np.float32) - (8 if kind == "q4" else 128)) * scale
    return values.reshape(len(panels), ROWS, columns)
