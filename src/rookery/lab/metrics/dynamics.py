"""Where a driven state goes: exponents and growth of products of matrices, memory of a series, return after a push.

T ticks (tokens for a language model), N dimensions. Rates are per tick, times in ticks.
"""

from __future__ import annotations

import warnings
from math import log
from typing import Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64

STEEPEST, GENTLEST = 0.05, 20.0  # recovery times tried: of one tick, and of the whole curve


class Growth(NamedTuple):
    """The largest 2-norm of a product's prefixes, and after how many ticks; 1 at 0 where none exceeds the start."""

    largest: Array  # [...]
    at: Array  # [...]


class Memory(NamedTuple):
    """Integrated autocorrelation time in ticks: so many of them count as one independent sample; 1 for white noise."""

    ticks: float
    window: int  # lags that were summed


class Recovery(NamedTuple):
    """amplitude * 2^(-t / half_life) + floor, in the units of the curve and in ticks."""

    half_life: float  # infinite where the curve does not fall, NaN where it holds a NaN
    amplitude: float
    floor: float  # what stays: the numeric noise, where the push is forgotten
    residual: float  # RMS of (curve - fit) / curve, relative


def _columns(matrices: Any, rows: bool) -> Array:
    m = float64(matrices)
    if m.ndim < 3 or m.shape[-1] != m.shape[-2] or not len(m):
        raise InputError(f"square matrices [ticks, ..., N, N] are wanted, not shape {list(m.shape)}")
    return m.swapaxes(-1, -2) if rows else m


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def lyapunov(matrices: Any, rows: bool = False, skip: int = 0) -> Array:
    """Exponents of the product of [T, ..., N, N] by QR, per tick: [..., N], the largest first; any batch of heads.

    The matrices act on column vectors, x <- A_t x; `rows=True` for x <- x A_t, as v7's G acts on a state [value, key].
    The first `skip` ticks turn the frame and are not counted. A direction that is wiped out has -infinity.
    """
    a = _columns(matrices, rows)
    if not 0 <= skip < len(a):
        raise InputError(f"skip {skip} of {len(a)} ticks leaves nothing to average")
    frame = np.broadcast_to(np.eye(a.shape[-1]), a.shape[1:])
    total = np.zeros(a.shape[1:-1])
    for t, step in enumerate(a):
        frame, r = np.linalg.qr(step @ frame)
        if t >= skip:
            total = total + np.log(np.abs(np.diagonal(r, axis1=-2, axis2=-1)))
    return np.flip(np.sort(total / (len(a) - skip), axis=-1), -1)


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def transient_growth(matrices: Any, rows: bool = False) -> Growth:
    """The most that any vector grows on the way: max over t of ||A_t ... A_1||, [T, ..., N, N] -> [...]; a factor."""
    a = _columns(matrices, rows)
    product = np.broadcast_to(np.eye(a.shape[-1]), a.shape[1:])
    scale = np.zeros(a.shape[1:-2])  # logarithm of what was divided out: a product of thousands underflows
    norms = [np.zeros(a.shape[1:-2])]
    for step in a:
        product = step @ product
        size = np.linalg.norm(product, 2, (-2, -1)) if np.isfinite(product).all() else _norms(product)
        norms.append(scale + np.log(size))
        safe = np.where((size > 0) & np.isfinite(size), size, 1.0)
        product, scale = product / safe[..., None, None], scale + np.log(safe)
    logs = np.stack(norms)
    return Growth(np.exp(logs.max(0)), logs.argmax(0))


def _norms(product: Array) -> Array:
    """2-norms where some matrices are not finite, which LAPACK refuses; NaN for those."""
    good = np.asarray(np.isfinite(product).all((-2, -1)))
    return np.where(good, np.linalg.norm(np.where(good[..., None, None], product, 0.0), 2, (-2, -1)), np.nan)


def autocorrelation_time(series: Any, c: float = 5.0) -> Memory:
    """1 + 2 (rho_1 + rho_2 + ...) of a series [T], or [T, D] with the autocovariance summed over channels.

    The sum ends at the first lag >= c times itself (Sokal), since later lags are noise. A UserWarning where the series
    is shorter than 20 such times, of which the estimate comes out too small; NaN for a series that never moves.
    """
    x = float64(series)
    x = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
    if len(x) < 2:
        raise InputError("a series of at least 2 ticks is wanted")
    with np.errstate(invalid="ignore"):
        x = x - x.mean(0)
    if not np.isfinite(x).all() or not x.any():
        return Memory(float("nan"), 0)
    spectrum = np.fft.rfft(x, 2 * len(x), axis=0)
    covariance = np.fft.irfft(np.square(np.abs(spectrum)).sum(1), 2 * len(x))[: len(x)]
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    ended = np.arange(len(x)) >= c * times
    window = int(ended.argmax()) if ended.any() else len(x) - 1
    ticks = float(times[window])
    if len(x) < 20 * ticks:
        warnings.warn(
            f"an autocorrelation time of {ticks:.1f} ticks from {len(x)}: too few to trust, it is likely longer; "
            "take at least 20 times as many ticks",
            UserWarning,
            stacklevel=2,
        )
    return Memory(ticks, window)


def recovery(curve: Any) -> Recovery:
    """Fit amplitude * exp(-t / tau) + floor to a distance after a push at t = 0, [T]; both parts are 0 or more.

    Errors count relative to the curve, so that a floor far below the start is found as well as the start. Raises
    InputError for fewer than 4 ticks or a negative distance.
    """
    y = float64(curve).reshape(-1)
    if len(y) < 4:
        raise InputError(f"{len(y)} ticks do not tell a decay from its floor: at least 4 are wanted")
    if not np.isfinite(y).all():
        return Recovery(float("nan"), float("nan"), float("nan"), float("nan"))
    if (y < 0).any():
        raise InputError("a distance below 0: recovery is fitted to ||x' - x||, or that over ||x||")
    if not y.any():
        return Recovery(float("nan"), 0.0, 0.0, 0.0)
    weight = 1 / np.maximum(y, y[y > 0].min())  # an exact 0 says no more than the least that was seen
    lowest, highest = log(STEEPEST), log(GENTLEST * len(y))
    for _ in range(6):  # each grid is laid between the best one's neighbours
        grid = np.linspace(lowest, highest, 41)
        fits = [_parts(float(tau), y, weight) for tau in np.exp(grid)]
        best = int(np.argmin([error for *_, error in fits]))
        lowest, highest = grid[max(best - 1, 0)], grid[min(best + 1, 40)]
    amplitude, floor, error = fits[best]
    tau = float(np.exp(grid[best]))
    falls = amplitude > 1e-9 * float(y.max()) and tau < 0.99 * GENTLEST * len(y)
    return Recovery(tau * log(2) if falls else float("inf"), amplitude, floor, error)


def _parts(tau: float, y: Array, weight: Array) -> tuple[float, float, float]:
    """Amplitude and floor, neither below 0, by weighted least squares for one tau; and the RMS of what is left."""
    basis = np.stack([np.exp(-np.arange(len(y)) / tau), np.ones(len(y))], 1) * weight[:, None]
    target = y * weight
    both = np.linalg.lstsq(basis, target, rcond=None)[0]
    if (both < 0).any():
        alone = [np.maximum(b @ target / (b @ b), 0.0) for b in basis.T]
        tries = [np.array([alone[0], 0.0]), np.array([0.0, alone[1]])]
        both = min(tries, key=lambda p: float(np.square(basis @ p - target).sum()))
    return float(both[0]), float(both[1]), float(np.sqrt(np.square(basis @ both - target).mean()))
