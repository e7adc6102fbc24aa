"""The tables: what a model's tensors are called, how they begin, how they train, and what its state is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod, sqrt
from typing import Literal, TypeAlias

from rookery.errors import WrongShape

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]  # tensor name -> shape, as in a file
Kind: TypeAlias = Literal["embedding", "head", "att", "ffn", "lora", "vector", "state"]

BIRDS = {"4": "Dove", "5": "Eagle", "6": "Finch", "7": "Goose"}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of one model, all read from its tensors. `n_head` is 0 for v4, which has no heads."""

    version: str  # "4" "5.0" "5.1" "5.2" "6" "7"
    n_layer: int
    n_embd: int
    n_vocab: int
    n_ffn: int
    n_head: int = 0
    # LoRA ranks by letter: v7 w a v g, v6 "maa" "decay"
    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)
    group_norm_eps: float = 64e-5  # of ln_x; not in the files, see docs/decisions.md
    tuned_state: bool = False  # att.time_state tensors are present

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head if self.n_head else 0

    @property
    def name(self) -> str:
        """For people: "RWKV-7 Goose"."""
        return f"RWKV-{self.version} {BIRDS[self.version[0]]}"

    def with_eps(self, eps: float | None) -> Config:
        return self if eps is None else replace(self, group_norm_eps=eps)


# How a tensor begins. `Curve` maps the flat element index to its value.


@dataclass(frozen=True, slots=True)
class Fill:
    value: float


@dataclass(frozen=True, slots=True)
class Uniform:
    bound: float  # U(-bound, bound)


@dataclass(frozen=True, slots=True)
class Orthogonal:
    gain: float


@dataclass(frozen=True, slots=True)
class Curve:
    value: Callable[[int], float]


Init: TypeAlias = Fill | Uniform | Orthogonal | Curve
ZERO = Fill(0.0)


@dataclass(frozen=True, slots=True)
class Param:
    """One tensor of a model, under BlinkDL's name and shape."""

    name: str
    file_shape: Shape
    init: Init
    kind: Kind = "vector"
    lr: float = 1.0  # learning-rate scale
    decay: bool = False  # takes weight decay
    optional: bool = False  # a file may lack it, or hold it without effect
    held: Shape | None = None  # the shape inside, where the rule of `shape` does not give it

    @property
    def shape(self) -> Shape:
        """The shape inside: [1,1,C] is held as [C]."""
        if self.held:
            return self.held
        if self.kind == "vector" and self.file_shape[:2] == (1, 1):
            return self.file_shape[2:]
        return self.file_shape

    @property
    def quantise(self) -> bool:
        """May be stored in blocks (LoRA pairs only if told so; vectors never)."""
        return self.kind in ("embedding", "head", "att", "ffn")


@dataclass(frozen=True, slots=True)
class StatePiece:
    """One piece of a layer's state; `start` is its value before the first token, one number per row of axis 0."""

    name: str  # att_shift, ffn_shift, wkv
    shape: Shape
    start: tuple[float, ...] = (0.0,)

    @property
    def size(self) -> int:
        return prod(self.shape)


def sizes(shapes: Shapes, version: str) -> Config:
    """The sizes that every version reads the same way."""
    layers = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    if layers != set(range(len(layers))):
        raise WrongShape(f"layers {sorted(layers)[:8]}... have gaps: a shard or a part of a model?")
    vocab, width = shapes["emb.weight"]
    tuned = "blocks.0.att.time_state" in shapes
    return Config(version, len(layers), width, vocab, shapes["blocks.0.ffn.key.weight"][0], tuned_state=tuned)


def outer(c: Config, embedding: float = 1e-4) -> list[Param]:
    """Embedding (uniform within +-`embedding`), head and the norms outside the blocks."""
    gain = 0.5 * sqrt(c.n_vocab / c.n_embd) if c.n_vocab > c.n_embd else 0.5
    return [
        Param("emb.weight", (c.n_vocab, c.n_embd), Uniform(embedding), "embedding", decay=True),
        *norm("blocks.0.ln0", c.n_embd),
        *norm("ln_out", c.n_embd),
        Param("head.weight", (c.n_vocab, c.n_embd), Orthogonal(gain), "head", decay=True),
    ]


def norm(name: str, width: int, weight: float = 1.0) -> list[Param]:
    return [Param(f"{name}.weight", (width,), Fill(weight)), Param(f"{name}.bias", (width,), ZERO)]


def matrix(name: str, rows: int, columns: int, gain: float, kind: Kind) -> Param:
    """A linear's weight [out, in], orthogonal; gain 0 means it begins at zero."""
    return Param(f"{name}.weight", (rows, columns), Orthogonal(gain) if gain else ZERO, kind, decay=True)


def vector(name: str, width: int, value: Callable[[int], float], lr: float = 1.0, optional: bool = False) -> Param:
    """A vector [1,1,C] whose element i begins at value(i)."""
    return Param(name, (1, 1, width), Curve(value), lr=lr, optional=optional)


def shift_pieces(c: Config, wkv: StatePiece) -> list[StatePiece]:
    return [StatePiece("att_shift", (c.n_embd,)), StatePiece("ffn_shift", (c.n_embd,)), wkv]


def tuned_state(c: Config, layer: int) -> list[Param]:
    """The tuned initial state [H, value, key], where a file has one."""
    shape = (c.n_head, c.head_size, c.head_size)
    return [Param(f"blocks.{layer}.att.time_state", shape, ZERO, "state")] if c.tuned_state else []


def depth(c: Config, layer: int) -> tuple[float, float]:
    """(0 at the first layer to 1 at the last, 1 at the first layer to 1/L at the last)."""
    return layer / max(1, c.n_layer - 1), 1 - layer / c.n_layer
