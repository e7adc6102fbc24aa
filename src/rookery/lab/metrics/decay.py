"""How fast a WKV state forgets: half-lives in tokens, from weights, from traced decays, from what becomes of a write.

The decay of a channel is given by its logarithm ln w <= 0, which is what the tap `att.w` holds. T tokens, H heads,
N head size. In [value, key] order, v7's state goes from token to token as S <- S G + v k^T with
G = diag(w) - kk (kk*a)^T; a State keeps [key, value], so there S <- G^T S + k v^T.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64

if TYPE_CHECKING:
    from rookery.model import Model

LOWEST = exp(-exp(-0.5)) - 1  # -0.4548: v7's smallest decay less the whole of a key
LARGEST_NORM = 2 / sqrt(3)  # of one v7 transition matrix: growth that no eigenvalue shows


class Band(NamedTuple):
    """Half-lives of traced decays, in tokens: of the mean of ln w over tokens, and of its 5 % and 95 % quantiles."""

    half_life: Array  # [...], as are the quantiles
    low: Array
    high: Array
    nonfinite: int  # log-decays that are NaN or infinite; their channels are NaN


class Factors(NamedTuple):
    """What v7 does to its state at each token, [T, H, N] each, from the taps of one layer."""

    log_decay: Array
    kk: Array  # unit vectors: the key that is removed
    a: Array  # in-context learning rate, how much of it
    key: Array  # the key that is added


class Bounds(NamedTuple):
    """Extremes of v7's transition matrices over all tokens and heads, and whether theory's bounds hold for them."""

    lowest: float  # eigenvalue
    highest: float
    negative: int  # the most negative eigenvalues of one matrix
    norm: float  # the largest 2-norm
    nonfinite: int
    hold: bool


def half_life(log_decay: Any) -> Array:
    """ln 2 / -ln w, in tokens: infinite where w = 1."""
    with np.errstate(divide="ignore"):
        half: Array = log(2) / -float64(log_decay)
    return np.abs(half)  # of w = 1 the sign is that of a zero


def static_log_decay(model: Model) -> dict[str, Array]:
    """ln w of v4 [C] and v5 [H, N] (5.0, 5.1: [H, 1]) by layer, `layers.{i}.att.w`: the same for every token.

    Raises InputError for v6 and v7, whose decays depend on the token: see `traced_half_life`.
    """
    c = model.config
    if not c.version.startswith(("4", "5")):
        raise InputError(
            f"the decay of {c.name} depends on the token: trace layers.*.att.w, then lab.metrics.traced_half_life"
        )
    out: dict[str, Array] = {}
    for i in range(c.n_layer):
        stored = model.weights.tensors[f"blocks.{i}.att.time_decay"].float32().astype(np.float64)
        out[f"layers.{i}.att.w"] = -np.exp(stored.reshape(-1) if c.version == "4" else stored.reshape(c.n_head, -1))
    return out


def traced_half_life(log_decays: Any) -> Band:
    """Of each channel of traced ln w [T, ...], v6 or v7, in tokens.

    For v7 this is the decay's share of forgetting alone; see `impulse_response` for all of it.
    """
    x = float64(log_decays)
    if x.ndim < 1 or not len(x):
        raise InputError("no tokens: log-decays [tokens, channels] are wanted")
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(x, [0.05, 0.95], axis=0)
        band = [half_life(np.where(np.isfinite(x).all(0), v, np.nan)) for v in (x.mean(0), low, high)]
    return Band(band[0], band[1], band[2], int(np.count_nonzero(~np.isfinite(x))))


def v7_factors(model: Model, layer: int, taps: Mapping[str, Any]) -> Factors:
    """Of the taps `layers.{layer}.att.w`, `.att.k` and `.att.a` [T, C] of a v7 model, in whatever order of names."""
    c = model.config
    if c.version != "7":
        raise InputError(f"transition matrices with a removed key are of RWKV-7, not of {c.name}")

    def tap(name: str) -> Array:
        rows = float64(taps[f"layers.{layer}.att.{name}"])
        return rows.reshape(len(rows), c.n_head, -1)

    def weight(name: str) -> Array:
        return float64(model.weights.tensors[f"blocks.{layer}.att.{name}"].float32()).reshape(c.n_head, -1)

    k, a = tap("k"), tap("a")
    removed = k * weight("k_k")
    kk = removed / np.maximum(np.linalg.norm(removed, axis=-1, keepdims=True), 1e-12)
    return Factors(tap("w"), kk, a, k * (1 + (a - 1) * weight("k_a")))


def transitions(log_decay: Any, kk: Any, a: Any) -> Array:
    """G = diag(w) - kk (kk*a)^T, [..., N] each -> [..., N, N]; the state [value, key] is multiplied from the right."""
    w, kk, a = np.exp(float64(log_decay)), float64(kk), float64(a)
    g: Array = w[..., None] * np.eye(w.shape[-1]) - kk[..., :, None] * (kk * a)[..., None, :]
    return g


def check_bounds(log_decay: Any, kk: Any, a: Any, slack: float = 1e-6) -> Bounds:
    """Whether v7's transition matrices, [..., N] each, are as theory says: eigenvalues real, in (-0.4548, 1], at most
    one negative; 2-norm at most 2/sqrt(3). `slack` is for float32 taps, absolute.

    Scaling by diag(sqrt a) makes G the symmetric diag(w) - s s^T with s = sqrt(a) kk, which has the same eigenvalues.
    Raises InputError for an `a` below 0, of which that is not true.
    """
    w, kk, a = np.exp(float64(log_decay)), float64(kk), float64(a)
    bad = int(sum(np.count_nonzero(~np.isfinite(x)) for x in (w, kk, a)))
    if bad:
        return Bounds(np.nan, np.nan, 0, np.nan, bad, False)
    if (a < 0).any():
        raise InputError(f"an in-context learning rate of {a.min():.3g}: 0 to 1 is wanted")
    s = np.sqrt(a) * kk
    eigenvalues = np.linalg.eigvalsh(w[..., None] * np.eye(w.shape[-1]) - s[..., :, None] * s[..., None, :])
    lowest, highest = float(eigenvalues.min()), float(eigenvalues.max())
    negative = int((eigenvalues < -slack).sum(-1).max())
    norm = float(np.linalg.norm(transitions(log_decay, kk, a), 2, (-2, -1)).max())
    hold = lowest > LOWEST - slack and highest <= 1 + slack and negative <= 1 and norm <= LARGEST_NORM + slack
    return Bounds(lowest, highest, negative, norm, 0, hold)


def impulse_response(transition: Any, key: Any, value: Any = 1.0) -> Array:
    """||v k^T G_1 ... G_t||_F for t = 0 .. T: what is left of one write after t more tokens, in the state's units.

    `transition` [T, ..., N, N], of the tokens after the write; `key` [..., N]; `value` [..., N], or its norm. Decays
    alone (v4 to v6): diagonal matrices, or `transition` [T, ..., N] of w, which is the same and cheaper.
    Returns [T + 1, ...].
    """
    g, row = float64(transition), float64(key)
    diagonal = g.ndim == row.ndim + 1
    v = float64(value)
    size = np.abs(v) if v.ndim == 0 else np.linalg.norm(v, axis=-1)
    left = [np.linalg.norm(row, axis=-1)]
    with np.errstate(invalid="ignore", over="ignore"):
        for step in g:
            row = row * step if diagonal else (row[..., None, :] @ step)[..., 0, :]
            left.append(np.linalg.norm(row, axis=-1))
        return np.stack(left) * size


def response_half_life(response: Any) -> Array:
    """The first lag, in tokens, at which a response [T + 1, ...] is half of its start, between tokens by the logarithm.

    Infinite where it stays above half for all T tokens (censored: longer than was watched), NaN where it is not finite
    before then or starts at 0.
    """
    x = float64(response)
    if len(x) < 2:
        raise InputError("a response over at least one token is wanted")
    with np.errstate(invalid="ignore", divide="ignore"):
        share = x / x[0]
    reached = ~(share > 0.5)  # NaN included
    first = reached.argmax(0)
    before, after = (np.take_along_axis(share, np.maximum(i, 0)[None], 0)[0] for i in (first - 1, first))
    with np.errstate(invalid="ignore", divide="ignore"):
        at = first - 1 + np.log(2 * before) / (np.log(before) - np.log(after))
    at = np.where(np.isfinite(before) & (after == 0), first, at)  # no logarithm: within this token
    return np.where(reached.any(0), at, np.inf)
