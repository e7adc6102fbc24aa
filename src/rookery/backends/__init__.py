"""How a model runs. Each back end gives the vocabulary a meaning and offers a Runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rookery.errors import BackendError, InputError

if TYPE_CHECKING:
    from rookery.weights import Weights

NAMES = ("reference", "torch")


class Runner(Protocol):
    """One model on one back end."""

    name: str
    dtype: np.dtype[Any]  # of states and logits

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
    """The Runner named `backend`; "auto" takes the reference until the native engine lands."""
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads {threads!r}: a whole number, 1 or more, is wanted")
    if backend in ("auto", "reference"):
        from rookery.backends import reference

        return reference.Runner(weights, dtype=dtype, device=device, threads=threads)
    if backend == "torch":
        from rookery.backends import torch

        return torch.Runner(weights, dtype=dtype, device=device, threads=threads)
    raise BackendError(f"no back end {backend!r}: choose auto, {' or '.join(NAMES)}")
