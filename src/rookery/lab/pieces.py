"""A state's pieces by name, as the lab reads and writes them: "layers.3.wkv", or a glob of such names.

v4 keeps its memory as two sums and an exponent, which mean nothing one by one: the lab's view of its `wkv` is the
value they stand for, numerator over denominator [C], 0 where nothing was read. Writing keeps the weight of the past
(denominator and exponent) and sets what it says. All other pieces are seen as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, StateError
from rookery.state import State, layers, shapes

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def match(known: Iterable[str], patterns: str | Iterable[str]) -> list[str]:
    """The names that fit any of the globs, in their own order. Raises InputError for a glob that fits none."""
    known = list(known)
    if isinstance(patterns, str) and patterns in known:
        return [patterns]
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            near = get_close_matches(glob, known, 3, 0.0)
            raise InputError(f"no piece is named {glob!r}; the nearest are {', '.join(near)}")
    return [name for name in known if any(fnmatchcase(name, glob) for glob in globs)]


def names(state: State, patterns: str | Iterable[str] = "*") -> list[str]:
    """The pieces of `state` that fit, layer by layer."""
    return match((name for name, _ in shapes(state.config)), patterns)


def views(state: State) -> dict[str, Array]:
    """All pieces as they are kept, views that may be written to."""
    each = layers(state.config, state.flat)
    return {f"layers.{i}.{piece}": view for i, layer in enumerate(each) for piece, view in layer.items()}


def raw(state: State, name: str) -> Array:
    """One piece as it is kept, a view that may be written to. Raises InputError for a name that there is not."""
    each = views(state)
    return each[match(each, name)[0]]


def read(state: State, name: str) -> Float64:
    """One piece as the lab sees it, a copy in float64."""
    return _seen(state, name, raw(state, name))


def read_all(state: State, patterns: str | Iterable[str] = "*") -> dict[str, Float64]:
    """The pieces that fit, by name."""
    each = views(state)
    return {name: _seen(state, name, each[name]) for name in match(each, patterns)}


def write(state: State, values: Mapping[str, Array]) -> State:
    """A new state in which these pieces have these values, rounded to the state's own type.

    Raises InputError for an unknown name or another shape, StateError where v4 has read nothing: there is no weight
    that a value could have.
    """
    out = state.copy()
    each = views(out)
    for name, new in values.items():
        target, new = each[match(each, name)[0]], np.asarray(new)
        wanted = target.shape[1:] if _is_sums(out, name) else target.shape
        if new.shape != wanted:
            raise InputError(f"{name} has shape {list(wanted)}, the values given have {list(new.shape)}")
        if not _is_sums(out, name):
            target[...] = new
        elif np.any((target[1] == 0) & (new != 0)):
            raise StateError(f"{name}: an RWKV-4 that has read nothing has nothing to weigh a value with; feed a token")
        else:
            target[0] = new * target[1]
    return out


def _seen(state: State, name: str, kept: Array) -> Float64:
    values: Float64 = kept.astype(np.float64)
    if not _is_sums(state, name):
        return values
    top, below, _ = values
    mean: Float64 = np.divide(top, below, out=np.zeros_like(top), where=below != 0)
    return mean


def _is_sums(state: State, name: str) -> bool:
    return state.config.version == "4" and name.endswith(".wkv")
