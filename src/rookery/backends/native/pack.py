"""Weights for the core: panels made from the file's tensors, or the file's own bytes where they are panels already.

No value is changed. Tensors in 8-bit and 4-bit blocks become panels of codes; float32 that fits half its width exactly
takes half. A matrix lies [out, in]; a low-rank one [in, out], so its panels are those of the transpose (`turned`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery import _native
from rookery.formats import panels
from rookery.formats.blocks import BLOCKS
from rookery.formats.tensor import Deferred, Tensor

Bytes = npt.NDArray[np.uint8]

CODED = ("q8", "q4", "x8")
BOUNDARY = 64  # bytes; the core reads whole cache lines
HUGE = 2**21  # bytes of a huge page
_CHUNK = 2**20


@dataclass(eq=False)
class Weight:
    """One matrix, or a stack of them that is indexed (v6's time_maa_w2). `exact`: activations are not rounded."""

    name: str
    tensor: Tensor
    turned: bool = False
    exact: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def rows(self) -> int:
        return self.shape[-1 if self.turned else -2]

    @property
    def columns(self) -> int:
        return self.shape[-2 if self.turned else -1]

    def __getitem__(self, i: int) -> Weight:
        return self.parts[i]

    @cached_property
    def parts(self) -> list[Weight]:
        """The matrices of a stack; of a matrix, itself."""
        if len(self.shape) == 2:
            return [self]
        each = self.tensor.data.reshape(prod(self.shape[:-2]), -1)
        cut = (Tensor(self.tensor.dtype, self.shape[-2:], data) for data in each)
        return [Weight(f"{self.name}[{i}]", tensor, self.turned, self.exact) for i, tensor in enumerate(cut)]

    @cached_property
    def ready(self) -> bool:
        """Whether the file holds the panels that we want."""
        if not self.tensor.dtype.startswith("panel_"):
            return False
        kind, turned = panels.parts(self.tensor.dtype)
        return turned == self.turned and not (self.exact and kind in CODED)

    @cached_property
    def kind(self) -> str:
        """Of the panels: the narrowest that keeps every value."""
        dtype = self.tensor.dtype
        if self.ready:
            return panels.parts(dtype)[0]
        if dtype in ("f16", "bf16") or (dtype in BLOCKS and not self.turned and not self.exact):
            return panels.kind_of(dtype)
        return _narrowest(self.tensor.array()) if dtype == "f32" else "f32"

    @cached_property
    def reads(self) -> str:
        """How its input is written: float32, or rounded as the weights are, where the file rounded those."""
        if self.kind in CODED:
            return "codes"
        rounded = self.kind == "bf16" and self.tensor.dtype != "f32" and not self.exact
        return "bf16" if rounded else "f32"

    @property
    def nbytes(self) -> int:
        """Of the panels."""
        return -(-self.rows // panels.ROWS) * panels.panel_bytes(self.kind, self.columns)

    @cached_property
    def data(self) -> Bytes:
        """The panels. Slow the first time, unless `fill` has been there."""
        return self.tensor.data if self.mapped else self.fill(aligned(self.nbytes))

    def fill(self, out: Bytes) -> Bytes:
        """Lay the panels into `out` [nbytes], which is `data` from now on. Threads run side by side in it."""
        dtype, data = self.tensor.dtype, self.tensor.data
        if self.ready:
            out[:] = data
        else:
            if dtype not in ("f32", "f16", "bf16") and self.kind == "f32":
                dtype, data = "f32", Tensor.of(self.tensor.float32()).data
            count = -(-self.rows // panels.ROWS)
            _native.core.pack(dtype, data, self.rows, self.columns, self.turned, self.kind, 0, count, out)
        self.data = out
        return out

    @property
    def mapped(self) -> bool:
        return self.ready and self.tensor.data.ctypes.data % BOUNDARY == 0

    @property
    def why(self) -> str:
        """Why it was copied."""
        if self.ready:
            return f"panels off a boundary of {BOUNDARY} bytes"
        return f"{self.tensor.dtype} laid out as {self.kind} panels"


@dataclass(eq=False)
class Choice:
    """A matrix for each group of sequences; None for a group that has none."""

    each: tuple[Weight | None, ...]

    @property
    def there(self) -> list[Weight]:
        return [w for w in self.each if w is not None]

    @property
    def name(self) -> str:
        return f"{self.there[0].name}, {len(self.there)} of {len(self.each)}"

    @property
    def rows(self) -> int:
        return max(w.rows for w in self.there)

    @property
    def columns(self) -> int:
        return max(w.columns for w in self.there)


@dataclass(eq=False)
class Choices:
    """What runs beside a linear, by groups: both of its matrices."""

    a: Choice
    b: Choice


@dataclass(eq=False)
class Table:
    """The embedding: rows as stored, widened one by one as they are used."""

    name: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def readable(self) -> bool:
        """Whether the core widens rows of this type."""
        return self.tensor.dtype in ("f32", "f16", "bf16") or self.tensor.dtype in BLOCKS

    @property
    def mapped(self) -> bool:
        return self.readable and not isinstance(self.tensor, Deferred)

    @property
    def why(self) -> str:
        """Why it was copied."""
        return f"{self.tensor.dtype} laid out as rows"

    @cached_property
    def stored(self) -> Tensor:
        return self.tensor if self.readable else Tensor.of(self.tensor.float32())


@dataclass
class Memory:
    """Bytes of weights: used where the file lies, and copied, by reason."""

    mapped: int = 0
    copied: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, held: Iterable[Weight | Table]) -> Memory:
        memory = cls()
        for x in held:
            size = x.nbytes if isinstance(x, Weight) else x.stored.nbytes
            if x.mapped:
                memory.mapped += size
            else:
                memory.copied[x.why] += size
        return memory


def pack(weights: Iterable[Weight], threads: int) -> None:
    """Make the panels that are not there, on this many threads. Raises MemoryError.

    They lie in one piece, in the order given, which should be that of use: a kernel that asks ahead, beyond the end of
    a matrix, then asks for the next. NumPy wants huge pages for the piece: one core reads them up to 1.4 times as fast.
    """
    new = [w for w in weights if "data" not in vars(w)]
    todo = [w for w in new if not w.mapped]
    with ThreadPoolExecutor(threads) as pool:
        for w in new:
            if w.mapped:
                pool.submit(_native.core.populate, w.data)
        sizes = list(pool.map(lambda w: -(-w.nbytes // BOUNDARY) * BOUNDARY, todo))
        room = aligned(sum(sizes))
        ends = np.cumsum(sizes)
        places = {w: room[end - size : end - size + w.nbytes] for w, size, end in zip(todo, sizes, ends, strict=True)}
        for _ in pool.map(lambda w: w.fill(places[w]), sorted(todo, key=lambda w: -w.tensor.nbytes)):
            pass


def aligned(size: int) -> Bytes:
    """Fresh bytes on a boundary: of a huge page for those that fill some."""
    boundary = BOUNDARY if size < HUGE else HUGE
    room: Bytes = np.empty(size + boundary, np.uint8)
    start = -room.ctypes.data % boundary
    return room[start : start + size]


def _narrowest(values: npt.NDArray[Any]) -> str:
    """bf16 or f16 if float32 numbers fit it, each one exactly; else f32."""
    flat = values.reshape(-1)
    chunks = [flat[at : at + _CHUNK] for at in range(0, flat.size, _CHUNK)]
    if all(not (c.view(np.uint32) & 0xFFFF).any() for c in chunks):
        return "bf16"
    with np.errstate(over="ignore", invalid="ignore"):
        return "f16" if all((c.astype(np.float16) == c).all() for c in chunks) else "f32"
