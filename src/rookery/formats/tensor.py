"""One tensor as it lies in a file: a type name, a shape and its bytes.

Bytes stay where they are (often a read-only view of a memory-mapped file) until someone asks for numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# Storage types NumPy has itself; "bf16" and the block types (formats/blocks.py) are widened by us.
NUMPY: dict[str, str] = {
    "f64": "<f8", "f32": "<f4", "f16": "<f2",
    "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "<i1", "u8": "<u1", "bool": "<?",
}  # fmt: skip


def widen_bf16(raw: Array) -> Array:
    """bf16 as uint16 -> the same values as float32 (exact)."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def round_bf16(values: Array) -> Array:
    """float32 -> bf16 as uint16, round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dtype`: a key of NUMPY, "bf16", a block type ("q8_0") or panels ("panel_q8"); `shape`: the logical one,
    row-major; `data`: uint8 [nbytes].
    """

    dtype: str
    shape: tuple[int, ...]
    data: Array = field(repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def array(self) -> Array:
        """The values: in the storage type where NumPy has it, else as float32. May be a read-only view."""
        if self.dtype in NUMPY:
            return self.stored()
        if self.dtype == "bf16":
            return widen_bf16(self.stored())
        from rookery.formats import blocks, panels

        decode = panels.decode if self.in_panels else blocks.decode
        return decode(self.dtype, self.data, self.shape)

    @property
    def in_panels(self) -> bool:
        """Whether the bytes are those of formats/panels.py, which are not row-major."""
        return self.dtype.startswith("panel_")

    def stored(self) -> Array:
        """The values as they are stored, bf16 as uint16: what may be moved about without being rounded."""
        return self.data.view("<u2" if self.dtype == "bf16" else NUMPY[self.dtype]).reshape(self.shape)

    def permuted(self, *axes: int) -> Tensor:
        """The same values with the axes in this order; blocks and panels as plain numbers."""
        tensor = plain(self)
        moved = np.ascontiguousarray(tensor.stored().transpose(axes))
        return Tensor(tensor.dtype, moved.shape, moved.reshape(-1).view(np.uint8))

    def float32(self) -> Array:
        """The values as float32 (f64 is rounded, to infinity where it must; all else exact)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.array().astype(np.float32, copy=False)

    def reshape(self, *shape: int) -> Tensor:
        """The same bytes under another shape of the same size; plain numbers where that would break blocks."""
        if prod(shape) != self.size:
            raise ValueError(f"cannot see {self.shape} as {shape}")
        whole = 2 if self.in_panels else 0 if self.dtype in NUMPY or self.dtype == "bf16" else 1
        if whole and shape[-whole:] != self.shape[-whole:]:
            return plain(self).reshape(*shape)
        return Tensor(self.dtype, shape, self.data)

    @classmethod
    def of(cls, values: Any, dtype: str | None = None) -> Tensor:
        """A tensor of `values`, stored as `dtype` (default: the NumPy type's own name)."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))
        if dtype is None:
            dtype = next(name for name, code in NUMPY.items() if np.dtype(code) == array.dtype)
        stored = round_bf16(array.astype(np.float32)) if dtype == "bf16" else array.astype(NUMPY[dtype], copy=False)
        return cls(dtype, tuple(array.shape), np.ascontiguousarray(stored).reshape(-1).view(np.uint8))


class Deferred(Tensor):
    """A tensor that is made when its bytes are asked for, each time anew: a whole model never lies in memory."""

    __slots__ = ("_make",)
    _make: Callable[[], Tensor]

    def __init__(self, dtype: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        """`make()` gives a tensor of this type and shape."""
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "_make", make)

    @property
    def data(self) -> Array:
        return self._make().data

    @property
    def nbytes(self) -> int:
        from rookery.formats import blocks

        return blocks.nbytes(self.dtype, self.shape)


def plain(tensor: Tensor) -> Tensor:
    """Blocks and panels as plain numbers of the narrowest type that surely holds them, made when asked for; all others
    as they are.
    """
    if tensor.dtype in NUMPY or tensor.dtype == "bf16":
        return tensor
    dtype = {"panel_f16": "f16", "panel_bf16": "bf16"}.get(tensor.dtype.removesuffix("_t"), "f32")
    return Deferred(dtype, tensor.shape, lambda: Tensor.of(tensor.float32(), dtype))


def row_major(tensor: Tensor) -> Tensor:
    """Panels as the blocks that hold the same values, else as plain numbers; all others as they are."""
    if not tensor.in_panels:
        return tensor
    from rookery.formats import panels

    dtype = panels.BLOCKS_OF.get(tensor.dtype)
    if dtype is None:
        return plain(tensor)
    return Deferred(dtype, tensor.shape, lambda: panels.to_blocks(tensor))
