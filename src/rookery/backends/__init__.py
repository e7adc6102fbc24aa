"""How a model runs. Each back end gives the vocabulary a meaning and offers a Runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rookery import _native
from rookery.errors import BackendError, InputError

if TYPE_CHECKING:
    from rookery.weights import Weights

NAMES = ("native", "reference", "torch")


class Runner(Protocol):
    """One model on one back end."""

    name: str
    dtype: np.dtype[Any]  # of states and logits
    arithmetic: str  # how it computes, in words: where it differs, results do

    def step(
        self, rows: Sequence[npt.NDArray[np.int64]], states: Sequence[npt.NDArray[Any]], every: bool = False
    ) -> list[npt.NDArray[Any]]:
        """Feed sequence b the tokens rows[b] [T_b >= 1]; states[b] [n], flat and layer-major, is updated in place.

        Returns each sequence's logits: [V] after its last token, or [T_b,V] when `every`.
        """
        ...


def runner(
    weights: Weights,
    backend: str = "auto",
    *,
    threads: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Runner:
    """The Runner named `backend`. "auto": native, or the reference where the core is missing (said once, aloud) or
    float64 is wanted."""
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads {threads!r}: a whole number, 1 or more, is wanted")
    if backend == "auto":
        backend = _fastest(dtype)
    if backend == "native":
        from rookery.backends import native

        return native.Runner(weights, dtype=dtype, device=device, threads=threads)
    if backend == "reference":
        from rookery.backends import reference

        return reference.Runner(weights, dtype=dtype, device=device, threads=threads)
    if backend == "torch":
        from rookery.backends import torch

        return torch.Runner(weights, dtype=dtype, device=device, threads=threads)
    raise BackendError(f"no back end {backend!r}: choose auto, {', '.join(NAMES[:-1])} or {NAMES[-1]}")


def _fastest(dtype: str | None) -> str:
    if dtype == "float64":
        return "reference"
    if _native.available():
        return "native"
    _native.check()
    _native.announce_missing()
    return "reference"
