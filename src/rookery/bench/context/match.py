"""Equal parameters: what a peer is made of before it is made, and the sizes that bring it to the number wanted.

C width, F width of the feed-forward part, L layers, V vocabulary. A "layer" is one mixing over tokens and one over
channels. Embedding and head are counted apart: at one vocabulary they say nothing of the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any

from rookery.architecture.spec import Param
from rookery.errors import InputError

BYTES = {"float32": 4, "bfloat16": 2}  # of a number; what a recurrence accumulates in is float32 in both
OUTER = ("embedding", "head")  # the kinds of Param that are counted apart
PER_LAYER = 12  # parameters of a layer over C^2, about the same in all kinds at their usual proportions
UNITS = (64, 32, 16, 8, 4, 2, 1)  # widths are multiples of the first that meets the number
MEETS, TOLERATED = 0.01, 0.03


@dataclass(frozen=True)
class Spec:
    """What all peers of a comparison share. `parameters`: those of the blocks. Raises InputError."""

    parameters: int
    layers: int
    vocab: int
    head_size: int = 64
    dtype: str = "float32"  # of the weights: float32 or bfloat16
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("parameters", "layers", "vocab", "head_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: a whole number of 1 or more is wanted")
        if self.head_size % 2:
            raise InputError(f"head_size {self.head_size}: an even number is wanted, rotary embeddings turn pairs")
        if self.dtype not in BYTES:
            raise InputError(f"dtype {self.dtype!r}: {' or '.join(BYTES)} is wanted")

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """A peer on paper. `params`: every tensor. `state`: bytes that stay the same, and bytes for each token read."""

    spec: Spec
    config: dict[str, Any]
    params: tuple[Param, ...]
    state: tuple[int, int]
    runtime: str
    note: str = ""

    @cached_property
    def parameters(self) -> int:
        """Those of the blocks, the last norm among them."""
        return sum(prod(p.shape) for p in self.params if p.kind not in OUTER)

    @cached_property
    def embedding_parameters(self) -> int:
        """Those of embedding and head, which are not tied."""
        return sum(prod(p.shape) for p in self.params if p.kind in OUTER)

    @property
    def weight_bytes(self) -> int:
        return (self.parameters + self.embedding_parameters) * self.spec.bytes

    def state_bytes(self, depth: int) -> int:
        fixed, each = self.state
        return fixed + depth * each

    def bytes_per_token(self, depth: int) -> int:
        """What a decode step must read at least: the weights, of the embedding one row, and the state or KV."""
        table = next(p for p in self.params if p.kind == "embedding")
        unread = (prod(table.shape) - table.shape[-1]) * self.spec.bytes
        return self.weight_bytes - unread + self.state_bytes(depth)


def widths(spec: Spec) -> Iterator[int]:
    """Widths to try, in whole heads: the one that suits PER_LAYER, so that kinds share it, then narrower ones."""
    heads = max(1, round(sqrt(spec.parameters / (PER_LAYER * spec.layers)) / spec.head_size))
    return (n * spec.head_size for n in range(heads, 0, -1))


def fill(spec: Spec, count: Callable[[int, int], int]) -> tuple[int, int]:
    """(C, F) so that count(C, F) parameters are `spec.parameters`, F being at least C where that can be.

    Raises InputError where even the narrowest model is larger.
    """
    options = list(widths(spec))
    wide = [c for c in options if count(c, c) <= spec.parameters]
    width = wide[0] if wide else options[-1]
    return width, nearest(spec, lambda f: count(width, f))


def nearest(spec: Spec, count: Callable[[int], int]) -> int:
    """The size, 1 or more, whose `count` (which grows with it) is `spec.parameters`. Raises InputError."""
    above = 1
    while count(above) < spec.parameters:
        above *= 2
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if count(middle) < spec.parameters else (below, middle)
    for unit in UNITS:
        found = min(
            (size for size in (above // unit * unit, (above // unit + 1) * unit) if size),
            key=lambda size: abs(count(size) - spec.parameters),
        )
        if (off := abs(count(found) / spec.parameters - 1)) <= MEETS:
            return found
    if off > TOLERATED:
        raise too_many(spec)
    return found


def too_many(spec: Spec) -> InputError:
    return InputError(
        f"{spec.parameters:,} parameters in {spec.layers} layers: too few for its parts of fixed size; "
        "fewer layers or more parameters are wanted"
    )
