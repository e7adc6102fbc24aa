"""What an adapter is: for each tensor of a base that it touches, a Part that says how the tensor changes.

Every Part can be merged, exactly; those that are a low-rank product (and a gain of rows) can also run beside a base
whose own numbers, quantised or not, stay as they are. Sources: LoRA arXiv 2106.09685, rsLoRA 2312.03732, DoRA
2402.09353, PiSSA 2404.02948, MiSS (first called Bone) 2409.15371. All arrays are float32; W [out,in] as in a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

import numpy as np

from rookery.architecture import Param, version
from rookery.errors import AdapterError
from rookery.formats.tensor import Array

if TYPE_CHECKING:
    from rookery.weights.load import Weights

LOW_RANK = ("att", "ffn", "head", "embedding")  # kinds of tensor that are matrices of a linear or a table
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """Beside a linear: y = gain * (W x) + b (a x); a [r,in], b [out,r], gain [out] or None for 1."""

    a: Array
    b: Array
    gain: Array | None = None

    def changed(self, w: Array) -> Array:
        """The one matrix [out,in] that does the same."""
        base = w if self.gain is None else self.gain[:, None] * w
        return np.asarray(base + self.b @ self.a, np.float32)


class Part(Protocol):
    """How one tensor changes."""

    def check(self, shape: Shape) -> str | None:
        """What is wrong with it for a tensor of this shape, else None."""
        ...

    def changed(self, w: Array) -> Array:
        """The tensor as the adapter has it, float32; `w` in the file's shape."""
        ...

    def side(self, w: Array) -> Side | None:
        """What runs beside W; None where it cannot, and has to be merged."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """W + scale B A: LoRA (scale alpha/r) and rsLoRA (alpha/sqrt(r)); a [r,in], b [out,r]."""

    a: Array
    b: Array
    scale: float

    def check(self, shape: Shape) -> str | None:
        return _pair("A", self.a, "B", self.b, shape)

    def changed(self, w: Array) -> Array:
        return np.asarray(w + np.float32(self.scale) * (self.b @ self.a), np.float32)

    def side(self, w: Array) -> Side | None:
        return Side(self.a, np.float32(self.scale) * self.b)


@dataclass(frozen=True, eq=False)
class Dora:
    """magnitude * V / |V|, row by row, of V = W + scale B A; magnitude [out]."""

    a: Array
    b: Array
    scale: float
    magnitude: Array

    def check(self, shape: Shape) -> str | None:
        if self.magnitude.shape != shape[:1]:
            return f"a magnitude of shape {list(self.magnitude.shape)}, {list(shape[:1])} is wanted"
        return _pair("A", self.a, "B", self.b, shape)

    def _direction(self, w: Array) -> tuple[Array, Array]:
        """V, and the gain of its rows."""
        v = w + np.float32(self.scale) * (self.b @ self.a)
        return v, self.magnitude / np.linalg.norm(v, axis=1)

    def changed(self, w: Array) -> Array:
        v, gain = self._direction(w)
        return np.asarray(gain[:, None] * v, np.float32)

    def side(self, w: Array) -> Side | None:
        _, gain = self._direction(w)
        return Side(self.a, gain[:, None] * np.float32(self.scale) * self.b, gain)


@dataclass(frozen=True, eq=False)
class Pissa:
    """W - B0 A0 + B A: the largest singular vectors of W, trained; a0 and b0 are what they began as."""

    a: Array
    b: Array
    a0: Array
    b0: Array

    def check(self, shape: Shape) -> str | None:
        return _pair("A", self.a, "B", self.b, shape) or _pair("the first A", self.a0, "the first B", self.b0, shape)

    def changed(self, w: Array) -> Array:
        return np.asarray(w - self.b0 @ self.a0 + self.b @ self.a, np.float32)

    def side(self, w: Array) -> Side | None:
        return Side(np.concatenate([self.a, self.a0]), np.concatenate([self.b, -self.b0], axis=1))


@dataclass(frozen=True, eq=False)
class Miss:
    """W + D^T in every block of r columns, the last one cut: y = W x + D^T (the blocks of x, summed); d [r,out]."""

    d: Array

    def check(self, shape: Shape) -> str | None:
        if self.d.ndim != 2 or not self.d.size or len(shape) != 2 or self.d.shape[1] != shape[0]:
            return f"a matrix of shape {list(self.d.shape)} for one of {list(shape)}"
        return None

    def changed(self, w: Array) -> Array:
        columns = w.shape[1]
        return np.asarray(w + np.tile(self.d.T, (1, -(-columns // len(self.d))))[:, :columns], np.float32)

    def side(self, w: Array) -> Side | None:
        r, columns = len(self.d), w.shape[1]
        summing = np.tile(np.eye(r, dtype=np.float32), (1, -(-columns // r)))[:, :columns]
        return Side(np.ascontiguousarray(summing), np.ascontiguousarray(self.d.T))


@dataclass(frozen=True, eq=False)
class Bat:
    """W + W_b D_b + D_b in every r by r block of column block b; d [in/r, r, r]. RWKV-PEFT's Bone in its mode "bat"."""

    d: Array

    def check(self, shape: Shape) -> str | None:
        r = self.d.shape[-1]
        fits = len(shape) == 2 and self.d.ndim == 3 and r and not (shape[0] % r or shape[1] % r)
        if not fits or self.d.shape != (shape[1] // r, r, r):
            return f"blocks of shape {list(self.d.shape)} for a matrix of {list(shape)}"
        return None

    def changed(self, w: Array) -> Array:
        r = self.d.shape[-1]
        blocks = w.reshape(w.shape[0] // r, r, w.shape[1] // r, r)
        turned = np.einsum("apbq,bqs->apbs", blocks, self.d, optimize=True) + self.d.swapaxes(0, 1)[None]
        return np.asarray(w + turned.reshape(w.shape), np.float32)

    def side(self, w: Array) -> Side | None:
        return None


@dataclass(frozen=True, eq=False)
class Whole:
    """Another tensor in its place, of the file's shape: what was tuned in full."""

    value: Array

    def check(self, shape: Shape) -> str | None:
        if [n for n in self.value.shape if n != 1] != [n for n in shape if n != 1]:
            return f"a tensor of shape {list(self.value.shape)}, {list(shape)} is wanted"
        return None

    def changed(self, w: Array) -> Array:
        return self.value.reshape(w.shape)

    def side(self, w: Array) -> Side | None:
        return None


KINDS: tuple[type[Part], ...] = (LowRank, Dora, Pissa, Miss, Bat, Whole)


@dataclass
class Adapter:
    """The parts by the names of their tensors, and what is known of their making.

    `base_fingerprint`, `base_lineage`: of the model it was made for; None in files of others, which do not say it.
    `quant`: "int8" or "nf4" where the base was rounded so while the adapter was trained.
    """

    parts: dict[str, Part] = field(repr=False)
    method: str
    path: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    base_fingerprint: str | None = None
    base_lineage: str | None = None
    quant: str = "none"

    QUANTS: ClassVar[tuple[str, ...]] = ("none", "int8", "nf4")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what it does to a base."""
        digest = hashlib.sha256(self.quant.encode())
        for name in sorted(self.parts):
            part = self.parts[name]
            digest.update(f"\0{name}\0{type(part).__name__}".encode())
            for f in fields(part):  # type: ignore[arg-type]
                value = np.asarray(getattr(part, f.name), np.float32)
                digest.update(f"\0{f.name}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def check(self, weights: Weights) -> None:
        """Raises AdapterError unless it was made for this model, or for one of its lineage, and fits it."""
        made_for = (self.base_fingerprint, self.base_lineage)
        if None not in made_for and not {weights.fingerprint, weights.lineage} & set(made_for):
            of = self.metadata.get("rookery.base.name", "another model")
            raise AdapterError(f"{self.path}: made for {of}, and {weights.path} is not it; give it its own base")
        table = {p.name: p for p in version(weights.config).params(weights.config) if p.name in weights.tensors}
        for name, part in self.parts.items():
            p = table.get(name)
            if p is None:
                raise AdapterError(f"{self.path}: changes {name}, which {weights.path} does not have")
            wrong = _unfit(p, part)
            if wrong:
                raise AdapterError(f"{self.path}: does not fit {weights.path}: {name} has {wrong}")


def _unfit(p: Param, part: Part) -> str | None:
    if p.kind == "state":
        return "a tuned state: that is a file of its own, given with --state"
    if not isinstance(part, Whole) and p.kind not in (*LOW_RANK, "lora"):  # peft's "all-linear" finds fla's pairs too
        return f"a {type(part).__name__} part, but is no linear's weight"
    return part.check(p.file_shape)


def _pair(first: str, a: Array, second: str, b: Array, shape: Shape) -> str | None:
    if a.ndim != 2 or b.ndim != 2 or not a.size or len(a) != b.shape[1]:
        return f"{first} of shape {list(a.shape)} and {second} of shape {list(b.shape)}, whose ranks do not meet"
    if (b.shape[0], a.shape[1]) != shape:
        return f"{second} {list(b.shape)} times {first} {list(a.shape)} for a matrix of {list(shape)}"
    return None
