"""How a model runs. Each back end gives the vocabulary a meaning and offers a Runner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

    def listen(self, listener: Callable[[str, npt.NDArray[Any]], object] | None, names: Iterable[str] = ()) -> None:
        """From now on call `listener(name, rows)` after each step for each point named: "layers.3.att.k", or "att.k"
        for every layer's; see `backends.reference.points`. None: call nobody.

        `rows` are those of all sequences, packed [R, ...]; a point made of parameters alone has none and is given
        whole. The listener hears and changes nothing. Raises InputError for a name that no point of this model has.
        """
        ...

    @property
    def family(self) -> object:
        """Runners of one family can step `together`."""
        ...

    def together(
        self,
        runners: Sequence[Any],
        rows: Sequence[npt.NDArray[np.int64]],
        states: Sequence[npt.NDArray[Any]],
        every: bool = False,
    ) -> list[npt.NDArray[Any]]:
        """`step`, sequence b by runners[b], which are of this one's family, to the bits of each one's own step."""
        ...

    def adapted(self, weights: Weights) -> Runner:
        """Another Runner, alike but of `weights`: this one's with adapters beside them. What is the same in both is in
        memory once where the back end can share it; threads may use the two side by side.
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
