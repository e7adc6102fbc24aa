"""How many dimensions: of one WKV matrix (its singular values), and of the path that a state takes (its covariance).

H heads, N head size, T ticks, D numbers. Ranks are counts, without unit. What holds a NaN or an infinity gives NaN.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64


class Principal(NamedTuple):
    """A trajectory by its principal components, the largest first."""

    scores: Array  # [T, k], in the trajectory's units
    directions: Array  # [k, D], orthonormal; each one's largest entry is positive
    explained: Array  # [k], shares of the total variance
    mean: Array  # [D]


def singular_values(wkv: Any) -> Array:
    """[..., N, M] -> [..., min(N, M)], descending, in the units of `wkv`: [H, N, N] gives a spectrum for each head."""
    matrices = float64(wkv)
    if matrices.ndim < 2:
        raise InputError(f"matrices are wanted, not shape {list(matrices.shape)}")
    good: Array = np.asarray(np.isfinite(matrices).all((-2, -1), keepdims=True))
    values: Array = np.linalg.svd(np.where(good, matrices, 0.0), full_matrices=False, compute_uv=False)
    return np.where(good[..., 0], values, np.nan)


def effective_rank(singular: Any) -> Array:
    """exp of the entropy of p = s / sum(s), [..., N] -> [...]: 1 to N, and 0 for a matrix of zeros.

    p is of the singular values themselves; some authors take their squares, which gives less.
    """
    s = float64(singular)
    total = s.sum(-1, keepdims=True)
    p = np.divide(s, total, out=np.zeros_like(s), where=total != 0)
    entropy = -(p * np.log(np.where(p == 0, 1.0, p))).sum(-1)
    return np.where(total[..., 0] == 0, 0.0, np.exp(entropy))


def stable_rank(singular: Any) -> Array:
    """||S||_F^2 / s_1^2, [..., N] -> [...]: at most the rank, and 0 for a matrix of zeros."""
    s = float64(singular)
    top = s[..., :1]
    ranks: Array = np.square(np.divide(s, top, out=np.zeros_like(s), where=top != 0)).sum(-1)
    return ranks


def participation_ratio(trajectory: Any) -> float:
    """(tr C)^2 / tr(C^2) of the covariance C of a trajectory [T, D]: the dimensions that were really visited.

    T ticks span T - 1 at most: a UserWarning where that bound, rather than the state, gives the number. NaN for a
    state that never moves.
    """
    x = _centred(trajectory)[0]
    ticks, width = x.shape
    with np.errstate(invalid="ignore", over="ignore"):
        gram = x @ x.T if ticks < width else x.T @ x  # both have the covariance's eigenvalues
        trace, square = np.trace(gram), np.square(gram).sum()
        ratio = float(trace * trace / square)
    if ticks - 1 < width and ratio > (ticks - 1) / 2:
        warnings.warn(
            f"participation ratio {ratio:.1f} of {ticks} ticks in {width} dimensions: at most {ticks - 1} were "
            "possible, so it says more of the number of ticks than of the state; take a longer trajectory",
            UserWarning,
            stacklevel=2,
        )
    return ratio


def pca(trajectory: Any, k: int = 3) -> Principal:
    """The first k principal components of a trajectory [T, D]; fewer where T or D are."""
    x, mean = _centred(trajectory)
    k = min(k, *x.shape)
    if not np.isfinite(x).all():
        scores, directions, explained = (np.full(shape, np.nan) for shape in ((len(x), k), (k, x.shape[1]), (k,)))
        return Principal(scores, directions, explained, mean)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rows = np.arange(k)
    sign = np.where(vt[rows, np.abs(vt[:k]).argmax(1)] < 0, -1.0, 1.0)  # the SVD leaves it open
    power = np.square(s)
    with np.errstate(invalid="ignore"):  # a state that never moves explains 0/0
        explained = power[:k] / power.sum()
    return Principal(u[:, :k] * s[:k] * sign, vt[:k] * sign[:, None], explained, mean)


def _centred(trajectory: Any) -> tuple[Array, Array]:
    x = float64(trajectory)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise InputError(f"a trajectory [ticks, numbers] of at least 2 ticks is wanted, not shape {list(x.shape)}")
    with np.errstate(invalid="ignore", over="ignore"):
        mean = x.mean(0)
        return x - mean, mean
