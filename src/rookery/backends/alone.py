"""A Runner that shares nothing with others: each is a family of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Alone:
    """What `backends.Runner` asks for of runners that step together, where all of them are this one."""

    @property
    def family(self) -> Self:
        return self

    def together(
        self,
        runners: Sequence[Any],
        rows: Sequence[npt.NDArray[np.int64]],
        states: Sequence[Array],
        every: bool = False,
    ) -> list[Array]:
        return self.step(rows, states, every)

    def step(self, rows: Sequence[npt.NDArray[np.int64]], states: Sequence[Array], every: bool = False) -> list[Array]:
        raise NotImplementedError
