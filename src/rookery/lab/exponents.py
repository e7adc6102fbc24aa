"""Teacher-forced Lyapunov exponents of a WKV state: how fast a disturbance of it dies, in nats a token.

Under a fixed stream of tokens a head's S goes to A_t S + k v^T with A_t = diag(w_t) (v4 to v6), or
diag(w_t) - (kk*a) kk^T (v7), and the state's whole Jacobian is block triangular with these and zeros (of the shifts)
on its diagonal. So the exponents are those of the products of A_t: mean ln w for v4 to v6, never positive; v7's are
measured. A positive one that stays as the text gets longer is a finding; T tokens may show one of up to ln(growth)/T
by growth that ends. H heads, N head size; v4 has no heads: its C channels are H = C, N = 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError
from rookery.lab import metrics
from rookery.lab.taps import read_with_taps
from rookery.model import Model
from rookery.state import State

Float64 = npt.NDArray[np.float64]


class Exponents(NamedTuple):
    """Of one layer, all in nats a token except `growth`, a factor."""

    qr: Float64  # [H, N] each head's, the largest first
    mean_log_decay: Float64  # [H, N], likewise: the same in v4 to v6
    growth: metrics.Growth  # [H]: max over t of ||A_t ... A_1||
    drift: Float64  # [H, N]: the first half of the tokens against the second, without sign; it falls as T grows


def exponents(
    model: Model,
    tokens: Sequence[int],
    state: State | None = None,
    layers: Sequence[int] | None = None,
    skip: int = 0,
) -> dict[str, Exponents]:
    """Of each layer (default: all), by "layers.{i}", while the model reads `tokens` from `state`.

    The first `skip` tokens turn the frame and are not counted. A layer costs some 20 T H N^3 operations, and the memory
    of T H matrices N x N.
    """
    return {
        f"layers.{i}": _of(log_decay, _columns(model, i, heard, log_decay), skip)
        for i, heard, log_decay in _heard(model, tokens, state, layers)
    }


def bounds(
    model: Model, tokens: Sequence[int], state: State | None = None, layers: Sequence[int] | None = None
) -> dict[str, metrics.Bounds]:
    """Whether v7's one-step matrices are within theory's bounds, on these weights and tokens; by "layers.{i}"."""
    return {
        f"layers.{i}": metrics.check_bounds(*metrics.v7_factors(model, i, heard)[:3])
        for i, heard, _ in _heard(model, tokens, state, layers)
    }


def _of(log_decay: Float64, columns: Float64, skip: int) -> Exponents:
    qr = metrics.lyapunov(columns, skip=skip)
    mean = -np.sort(-log_decay[skip:].mean(0), axis=-1)
    halves = [metrics.lyapunov(part) for part in np.array_split(columns[skip:], 2) if len(part)]
    return Exponents(qr, mean, metrics.transient_growth(columns), np.abs(halves[0] - halves[-1]))


def _heard(
    model: Model, tokens: Sequence[int], state: State | None, layers: Sequence[int] | None
) -> Iterator[tuple[int, dict[str, Any], Float64]]:
    """Each layer with its taps and ln w [T, H, N]."""
    c, tokens = model.config, list(tokens)
    chosen = range(c.n_layer) if layers is None else layers
    if not all(0 <= i < c.n_layer for i in chosen):
        raise InputError(f"layers {list(chosen)}: {c.name} of this size has 0 to {c.n_layer - 1}")
    letters = "wka" if c.version == "7" else "w"
    heard, _, _ = read_with_taps(model, tokens, [f"layers.{i}.att.{x}" for i in chosen for x in letters], state)
    shape = (len(tokens), c.n_head, c.head_size) if c.n_head else (len(tokens), c.n_embd, 1)
    for i in chosen:
        w = heard[f"layers.{i}.att.w"].astype(np.float64)
        each = w.reshape(shape) if c.version in "67" else np.broadcast_to(w.reshape(shape[1], -1), shape)
        yield i, heard, each


def _columns(model: Model, layer: int, heard: dict[str, Any], log_decay: Float64) -> Float64:
    """A_t [T, H, N, N], which act on columns of a state [key, value]."""
    if model.config.version == "7":
        out: Float64 = metrics.transitions(*metrics.v7_factors(model, layer, heard)[:3]).swapaxes(-1, -2)
        return out
    return np.exp(log_decay)[..., None] * np.eye(log_decay.shape[-1])
