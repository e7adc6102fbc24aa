"""The points of interest of a model, read from its version file: `layers.{i}.att.k` and their kin, with their shapes.

A miniature of the same version runs two rows on the reference's operations; what it taps is what every back end taps.
R rows, C width, F channel mixing's width, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from rookery.architecture import Config, forward, version
from rookery.backends.layout import Layout
from rookery.backends.reference.ops import Ops
from rookery.errors import InputError
from rookery.state import gather, size
from rookery.weights import tree

# The miniature's sizes: no two alike, so that each tells which of the real ones a dimension is.
ROWS, HEADS, HEAD_SIZE, FFN = 2, 3, 5, 7


@dataclass(frozen=True, slots=True)
class Point:
    """`shape` of one row's value; of all there is where the point is made of parameters alone (`constant`)."""

    shape: tuple[int, ...]
    constant: bool


@dataclass(frozen=True, slots=True)
class Hearing:
    """Someone who listens, and the full names of the points."""

    listener: Callable[[str, Any], object]
    names: frozenset[str]


def points(config: Config) -> dict[str, Point]:
    """Every point by its full name, layer by layer."""
    small = replace(
        config,
        n_layer=1,
        n_embd=HEADS * HEAD_SIZE,
        n_head=HEADS if config.n_head else 0,
        n_ffn=FFN,
        n_vocab=1,
        ranks=dict.fromkeys(config.ranks, 1),
        tuned_state=False,
    )
    real = {HEADS * HEAD_SIZE: config.n_embd, FFN: config.n_ffn, HEADS: config.n_head, HEAD_SIZE: config.head_size}
    found = {}
    for name, shape in _tapped(small).items():
        constant = shape[0] != ROWS
        found[name] = Point(tuple(real.get(n, n) for n in (shape if constant else shape[1:])), constant)
    layers = range(config.n_layer)
    return {name.replace("layers.0.", f"layers.{i}.", 1): point for i in layers for name, point in found.items()}


def hearing(config: Config, listener: Callable[[str, Any], object] | None, names: Iterable[str] = ()) -> Hearing | None:
    """What `Runner.listen` asks for; `names` as there. None where nobody listens. Raises InputError."""
    wanted = set([names] if isinstance(names, str) else names) if listener else set()
    if listener is None or not wanted:
        return None
    known = points(config)
    if unknown := sorted(wanted - {*known, *map(_within, known)}):
        raise InputError(f"no point {unknown[0]!r} in {config.name}; points are named as layers.0.att.k")
    return Hearing(listener, frozenset(name for name in known if name in wanted or _within(name) in wanted))


def ear(listener: Callable[[str, Any], Any] | None, hearing: Hearing | None, heard: dict[str, Any]) -> Any:
    """What the operations call at each point, None for nothing: `listener`, whose answer takes the value's place, and
    then the keeping in `heard` of what is wanted there."""
    if hearing is None:
        return listener

    def hear(name: str, x: Any) -> Any:
        x = x if listener is None else listener(name, x)
        if name in hearing.names:
            heard[name] = x
        return x

    return hear


def _within(name: str) -> str:
    """A point's name within its layer."""
    return name.split(".", 2)[2]


def _tapped(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all that a model of zeros taps."""
    shapes: dict[str, tuple[int, ...]] = {}

    def listen(name: str, x: Any) -> Any:
        shapes[name] = x.shape
        return x

    params = [p for p in version(config).params(config) if not p.optional]
    table = SimpleNamespace(config=config, params=params, tensors={p.name: None for p in params})
    model = tree(table, lambda p, _: np.zeros(p.shape))  # type: ignore[arg-type]
    o = Ops(Layout((ROWS,)), config.n_head, listen)
    states = [SimpleNamespace(**pieces) for pieces in gather(config, [np.zeros(size(config))])]
    with np.errstate(all="ignore"):
        forward.blocks(o, version(config), model, np.zeros((ROWS, config.n_embd)), states)
    return shapes
