"""What the metrics read: states, arrays and their named parts, as float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError
from rookery.lab import pieces
from rookery.state import State

Array: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = Mapping[str, Any]


def float64(x: Any) -> Array:
    """`x` as float64, its shape kept. Raises InputError for what is no array of real numbers."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise InputError(f"an array of real numbers is wanted, not of {array.dtype}")
    return array.astype(np.float64, copy=False)


def nonfinite(x: Any) -> int:
    """How many numbers of `x` are NaN or infinite."""
    return int(np.count_nonzero(~np.isfinite(float64(x))))


def parts(x: State | Parts) -> dict[str, Array]:
    """Named float64 arrays: of a state its pieces as the lab reads them (v4: sums divided), of a dict its own."""
    return dict(pieces.read_all(x)) if isinstance(x, State) else {name: float64(part) for name, part in x.items()}


def vector(x: Any) -> Array:
    """All numbers of a state, a dict of arrays or an array, as one float64 vector [n]."""
    if isinstance(x, State | Mapping):
        named = parts(x)
        return np.concatenate([part.reshape(-1) for part in named.values()]) if named else np.zeros(0)
    return float64(x).reshape(-1)


def norm(x: Any) -> float:
    """L2 of all numbers; a sum of squares, because a BLAS wakes its threads for a dot product, which costs more."""
    return float(np.sqrt(np.square(float64(x)).sum()))


def pair(a: Any, b: Any) -> tuple[Array, Array]:
    """Two vectors of one length. Raises InputError where their sizes differ or are 0."""
    x, y = vector(a), vector(b)
    if x.size != y.size:
        raise InputError(f"{x.size} numbers against {y.size}: only two captures of one component can be compared")
    if not x.size:
        raise InputError("nothing to compare: the arrays are empty")
    return x, y
