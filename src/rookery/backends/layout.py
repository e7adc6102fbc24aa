"""Which rows of a packed step belong to which sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Index: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Rows packed sequence after sequence; `lengths[b]` >= 1 rows belong to sequence b."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[np.int64]]) -> Layout:
        return cls(tuple(len(r) for r in rows))

    @cached_property
    def starts(self) -> Index:
        """[B]: the first row of each sequence."""
        return self.ends - np.asarray(self.lengths, np.int64) + 1

    @cached_property
    def ends(self) -> Index:
        """[B]: the last row of each sequence."""
        return np.cumsum(self.lengths, dtype=np.int64) - 1

    @cached_property
    def steps(self) -> list[tuple[Index, Index]]:
        """For t = 0, 1, ..: (the sequences longer than t, their rows t)."""
        lengths = np.asarray(self.lengths)
        active = (np.flatnonzero(lengths > t) for t in range(max(self.lengths)))
        return [(b, self.starts[b] + t) for t, b in enumerate(active)]
