"""What a benchmark is made of, checked before a model is read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from rookery.errors import InputError

LEAST = {"prefill": 0, "decode": 0, "repeats": 1, "seed": 0}


@dataclass(frozen=True)
class Settings:
    """Token counts. Decode is measured for every depth with every number of rows. Raises InputError."""

    prefill: int = 512  # tokens of a prompt; 0 leaves prefill out
    decode: int = 128  # steps; 0 leaves decode out
    depths: tuple[int, ...] = (0,)  # tokens read before decode begins
    rows: tuple[int, ...] = (1, 8)  # sequences that decode together
    repeats: int = 5
    seed: int = 0  # of the tokens: they are random, which speed does not feel

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: {least} or more is wanted")
        for name, least in {"depths": 0, "rows": 1}.items():
            values = getattr(self, name)
            if not values or min(values) < least or len(set(values)) < len(values):
                raise InputError(f"{name} {list(values)}: different whole numbers of {least} or more are wanted")
        if not self.prefill and not self.decode:
            raise InputError("nothing to measure: both prefill and decode are 0 tokens long")

    @property
    def decodes(self) -> list[tuple[int, int]]:
        """(depth, rows) of each decode test; a state is grown from the depth before."""
        return list(product(sorted(self.depths), self.rows)) if self.decode else []

    @property
    def total(self) -> int:
        """Tokens that one thread count feeds, warm-up aside."""
        once = self.prefill + self.decode * sum(rows for _, rows in self.decodes)
        return self.repeats * once + (max(self.depths) if self.decode else 0)
