"""What a sweep over context is made of, checked before a model is built, and the points it consists of."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rookery.errors import InputError

STREAMS = 3  # times the machine's bandwidth is measured, at moments spread over the sweep
LEAST = {
    "parameters": 1, "layers": 1, "vocab": 2, "threads": 1, "tokens": 1, "repeats": 2, "seed": 0, "seconds": 1,
    "cool_down": 0,
}  # fmt: skip
LENGTHS = ("lengths", "constant_lengths", "prefill_lengths", "train_lengths")
DTYPES = ("float32", "bfloat16")
QUICK: dict[str, Any] = {
    "parameters": 3_000_000,
    "layers": 4,
    "vocab": 2048,
    "lengths": (512, 4096, 32_768),
    "prefill_lengths": (512,),
    "seconds": 10.0,
    "cool_down": 0.1,
}  # a look in two minutes; models so small lie in a cache, so roofs are passed
TRAIN_LENGTHS = (512, 2048, 8192)


class Point(NamedTuple):
    """One process's work: `length` is the depth of decode, the prompt of prefill, the sequence of train."""

    phase: str  # stream, decode, prefill or train
    kind: str
    length: int


@dataclass(frozen=True)
class Settings:
    """Raises InputError. Lengths are in tokens; all kinds have one vocabulary, so tokens compare without a text."""

    kinds: tuple[str, ...]
    parameters: int = 25_000_000  # of each kind's blocks, without embedding and head
    layers: int = 8
    vocab: int = 8192
    dtype: str = "float32"
    threads: int = 1
    lengths: tuple[int, ...] = (512, 2048, 8192, 32_768, 131_072, 524_288)  # depths of decode, for every kind
    constant_lengths: tuple[int, ...] = (1_000_000,)  # more of them where the state does not grow
    prefill_lengths: tuple[int, ...] = (512, 2048, 8192)
    train_lengths: tuple[int, ...] = ()
    tokens: int = 64  # decoded in each repeat, or in all of them where that would take more than `patience`
    repeats: int = 5
    seconds: float = 180.0  # that the repeats of one point may take
    cool_down: float = 0.5  # seconds of rest before each point
    memory_limit: int | None = None  # bytes that a point may need; None: what the machine has free
    seed: int = 0  # of weights, tokens, injected states and the order of points

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: {least} or more is wanted")
        for name in LENGTHS:
            values = getattr(self, name)
            if any(type(n) is not int or n < 1 for n in values) or len(set(values)) < len(values):
                raise InputError(f"{name} {list(values)}: different whole numbers of 1 or more are wanted")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"models {list(self.kinds)}: at least one is wanted, each once")
        if not self.lengths:
            raise InputError("no lengths: at least one is wanted")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r}: {' or '.join(DTYPES)} is wanted")

    @classmethod
    def of(cls, found: dict[str, Any]) -> Settings:
        """Settings from the JSON of `vars`."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        return cls(**values)

    @property
    def patience(self) -> float:
        """Seconds for repeats that could do with fewer tokens."""
        return self.seconds / 6

    @property
    def shared_tokens(self) -> int:
        """Of a repeat, so that all together have `tokens`."""
        return -(-self.tokens // self.repeats)

    def depths(self, grows: bool) -> tuple[int, ...]:
        """Of decode, the shortest first."""
        return tuple(sorted({*self.lengths, *(() if grows else self.constant_lengths)}))

    def points(self, grows: Callable[[str], bool]) -> list[Point]:
        """All points, in an order drawn from the seed, so that no kind or length has a quiet hour to itself."""
        found = [Point("stream", "stream", i) for i in range(STREAMS)]
        for kind in self.kinds:
            found += [Point("decode", kind, depth) for depth in self.depths(grows(kind))]
            found += [Point("prefill", kind, length) for length in self.prefill_lengths]
            if not kind.endswith("-native"):  # which does not train
                found += [Point("train", kind, length) for length in self.train_lengths]
        random.Random(self.seed).shuffle(found)
        return found
