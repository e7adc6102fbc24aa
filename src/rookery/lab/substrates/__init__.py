"""Systems with a state that is driven tick by tick and can be looked at: language models, physics, and nulls.

`make(name, ...)` builds one by name, so that swapping what an experiment studies is one word in its settings. The nulls
are what a metric is calibrated against: a number that `frozen`, `iid` or `ar1` reaches as well says nothing of a model.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from rookery.errors import InputError
from rookery.lab.substrates.common import Array, Snapshot, displacement, stream

__all__ = ["NAMES", "Array", "Snapshot", "Substrate", "displacement", "make", "stream"]

_HOME = {
    "rwkv": "rwkv:RWKV",
    "transformer": "transformer:Transformer",
    "physics": "physics:Physics",
    "frozen": "nulls:frozen",
    "iid": "nulls:iid",
    "ar1": "nulls:ar1",
    "nulls": "nulls:Nulls",
}
NAMES = tuple(_HOME)


@runtime_checkable
class Substrate(Protocol):
    """A system with a state that is driven step by step and can be looked at.

    name: what `make` calls it. tick: steps since `reset`.
    """

    name: str
    tick: int

    def reset(self, seed: int = 0) -> None:
        """Begin anew; equal seeds give equal runs, to the bit."""

    def step(self, token: int | None = None) -> None:
        """One tick. token None: the system runs by itself; one that reads no tokens ignores it."""

    def snapshot(self) -> Any:
        """All that `restore` needs to go on from here to the bit, random state included; unaffected by later steps."""

    def restore(self, snapshot: Any) -> None:
        """Go on from a `snapshot()` of a substrate with the same settings."""

    def components(self) -> dict[str, Array]:
        """The state by name, e.g. "layers.0.wkv" or "position": copies, float64 or float32."""

    def perturb(self, component: str, direction: Array, size: float) -> None:
        """Add `size` times the component's L2 norm along direction/||direction||; size is relative, direction has the
        component's shape.
        """

    def logits(self) -> Array | None:
        """[V] of the next token; None where there is no such thing."""


def make(name: str, **settings: Any) -> Substrate:
    """The substrate of that name (`NAMES`) with its settings, reset with seed 0.

    Raises InputError for an unknown name or setting.
    """
    if name not in _HOME:
        near = get_close_matches(str(name), NAMES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"substrate {name!r}: wanted one of {', '.join(NAMES)}{hint}")
    module, _, builder = _HOME[name].partition(":")
    build = getattr(import_module(f"{__name__}.{module}"), builder)
    try:
        inspect.signature(build).bind(**settings)
    except TypeError as error:
        known = ", ".join(inspect.signature(build).parameters)
        raise InputError(f"substrate {name!r}: {error}; its settings are {known}") from None
    made: Substrate = build(**settings)
    return made
