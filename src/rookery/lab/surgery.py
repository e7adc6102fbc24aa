"""Operations on a state: each gives a new one, and changes neither the state it is given nor the model.

Pieces are named by globs, "layers.*.wkv"; v4's `wkv` is the mean value that `lab.pieces` reads. What is done to a
state is done once: the model goes on writing from there. `bake` puts a state into a checkpoint, `mix` blends two
states: other tools call both of them merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, StateError
from rookery.lab import pieces
from rookery.lab.bake import bake
from rookery.lab.metrics.arrays import norm
from rookery.lab.pieces import Array, Float64
from rookery.lab.skip import Skipped, skip_write
from rookery.state import State

__all__ = [
    "Skipped",
    "add",
    "bake",
    "knock_out_head",
    "mix",
    "noise",
    "patch",
    "rank_truncate",
    "scale",
    "set",
    "skip_write",
    "zero",
]

Globs = str | Iterable[str]


def set(state: State, pattern: Globs, values: npt.ArrayLike) -> State:
    """These pieces become `values`, of their shape or one that broadcasts to it."""
    old = pieces.read_all(state, pattern)
    return pieces.write(state, {name: _shaped(values, x) for name, x in old.items()})


def add(state: State, pattern: Globs, values: npt.ArrayLike, scale: float = 1.0) -> State:
    """`scale` times `values`, of these pieces' shape or one that broadcasts to it, are added, in the state's units."""
    old = pieces.read_all(state, pattern)
    return pieces.write(state, {name: x + scale * _shaped(values, x) for name, x in old.items()})


def scale(state: State, pattern: Globs, factor: float) -> State:
    """These pieces times `factor`."""
    return pieces.write(state, {name: factor * x for name, x in pieces.read_all(state, pattern).items()})


def zero(state: State, pattern: Globs) -> State:
    """These pieces as they are before the first token: zeros, in v4 nothing read (not: a mean value of 0)."""
    out, start = state.copy(), State.start(state.config, state.origin, state.flat.dtype)
    for name in pieces.names(state, pattern):
        pieces.raw(out, name)[...] = pieces.raw(start, name)
    return out


def mix(state: State, other: State, share: float, pattern: Globs = "*") -> State:
    """(1 - share) of these pieces and `share` of the other state's: `State.mix`, here for some pieces alone."""
    return _taken(state, state.mix(other, share), pattern)


def patch(state: State, source: State, pattern: Globs) -> State:
    """These pieces from another run of the same model, as they are there. Raises StateError for another model's."""
    state.mix(source, 0.0)  # for its refusals: they are the same
    return _taken(state, source, pattern)


def noise(state: State, pattern: Globs, size: float, rng: np.random.Generator | int) -> State:
    """Gaussian noise whose norm is `size` times that of each piece (relative); `rng`: a generator, or its seed."""
    random = np.random.default_rng(rng)

    def noisy(x: Float64) -> Float64:
        step = random.standard_normal(x.shape)
        out: Float64 = x + step * (size * norm(x) / norm(step))
        return out

    return pieces.write(state, {name: noisy(x) for name, x in pieces.read_all(state, pattern).items()})


def rank_truncate(state: State, k: int, pattern: Globs = "layers.*.wkv", head: int | None = None) -> State:
    """The WKV matrices with their k largest singular values alone, of all heads or one: their best matrices of rank k.

    Raises InputError for pieces that are no matrices (shifts, v4's wkv) and for a head that there is not.
    """
    if k < 0:
        raise InputError(f"rank {k}: 0 or more is wanted")

    def cut(matrices: Float64) -> Float64:
        u, s, vt = np.linalg.svd(matrices, full_matrices=False)
        out: Float64 = (u[..., :k] * s[..., None, :k]) @ vt[..., :k, :]
        return out

    return _heads(state, pattern, head, cut)


def knock_out_head(state: State, layer: int, head: int) -> State:
    """One head's WKV matrix as zeros. It fills again from the next token on: call it after each to keep it out."""
    return _heads(state, f"layers.{layer}.wkv", head, np.zeros_like)


def _heads(state: State, pattern: Globs, head: int | None, change: Callable[[Float64], Float64]) -> State:
    out: dict[str, Array] = {}
    for name, x in pieces.read_all(state, pattern).items():
        if x.ndim != 3:
            raise InputError(f"{name} of {state.config.name} has no heads: it is a vector of {x.size} numbers")
        if head is not None and not 0 <= head < len(x):
            raise InputError(f"head {head}: {name} has 0 to {len(x) - 1}")
        if not np.isfinite(x).all():
            raise StateError(f"{name} holds {(~np.isfinite(x)).sum()} numbers that are not finite")
        which = slice(None) if head is None else slice(head, head + 1)
        x[which] = change(x[which])
        out[name] = x
    return pieces.write(state, out)


def _taken(state: State, source: State, pattern: Globs) -> State:
    out = state.copy()
    for name in pieces.names(state, pattern):
        pieces.raw(out, name)[...] = pieces.raw(source, name)
    return out


def _shaped(values: npt.ArrayLike, like: Float64) -> Float64:
    try:
        return np.broadcast_to(np.asarray(values, np.float64), like.shape)
    except ValueError:
        raise InputError(f"values of shape {list(np.shape(values))} for a piece of {list(like.shape)}") from None
