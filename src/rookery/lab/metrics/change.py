"""How much a state changed, and how steadily.

`state_delta` and `coherence` are kept exactly as the study that began this project defined them, and warn where they
mislead: the first has units and mixes components, the second scores white noise near 1. `rel_delta` and `coherence_cv`
are what to use instead; both are relative, without units. Non-finite numbers pass through to the result as NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, Parts, float64, nonfinite, norm, pair, parts
from rookery.state import State

EPS = 1e-12  # of rel_delta's denominator: two states of zeros differ by 0

_told = False  # of white noise, once a process


class Change(NamedTuple):
    """One component, later against earlier. `delta`, `rms` and `max_abs` have the component's own units."""

    n: int  # numbers
    delta: float  # L2 distance over sqrt(n)
    rel_delta: float
    cosine: float
    rms: float  # of the later one, as is what follows
    max_abs: float
    nonfinite: int


class Steadiness(NamedTuple):
    """`coherence_cv` 1 is a constant rate of change, whatever that is: `mean` is the mean rel_delta."""

    coherence_cv: float
    mean: float


@np.errstate(invalid="ignore", over="ignore")
def state_delta(a: Any, b: Any) -> float:
    """L2 distance over sqrt(n) between two states or arrays of equal size, in their units; `State.delta`.

    Comparable only within one component of one model. A v4 state's raw sums and exponents are not comparable at all:
    `compare(a, b)` and `rel_delta(a, b)` take averages instead; a UserWarning says so.
    """
    if isinstance(a, State) and isinstance(b, State):
        if a.config.version == "4":
            warnings.warn(
                "the delta of two v4 states mixes sums with the exponents that scale them; "
                "lab.metrics.compare(a, b) divides the sums first",
                UserWarning,
                stacklevel=2,
            )
        return a.delta(b)
    x, y = pair(a, b)
    d = x - y
    return float(np.sqrt((d * d).mean()))


@np.errstate(invalid="ignore", over="ignore")
def rel_delta(a: Any, b: Any) -> float:
    """||b - a|| over the mean of ||a|| and ||b||: 0 for no change, 2 for a reversal; relative, no unit."""
    x, y = pair(a, b)
    return norm(y - x) / ((norm(x) + norm(y)) / 2 + EPS)


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def cosine(a: Any, b: Any) -> float:
    """Of the angle between two arrays, -1 to 1; NaN where one of them is all zeros."""
    x, y = pair(a, b)
    return float((x * y).sum() / np.float64(norm(x) * norm(y)))


@np.errstate(invalid="ignore", over="ignore")
def rms(x: Any) -> float:
    """Root of the mean square, in the units of `x`."""
    return float(np.sqrt(np.square(float64(x)).mean()))


def max_abs(x: Any) -> float:
    """The largest absolute value, in the units of `x`."""
    return float(np.abs(float64(x)).max())


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def standardised_delta(a: Any, b: Any, sd: Any) -> float:
    """`state_delta` with every channel divided by its standard deviation over a reference corpus; in such deviations.

    A channel that never varied (sd 0) counts where it changed, as infinity.
    """
    x, y = pair(a, b)
    scale = np.broadcast_to(float64(sd), np.shape(a)).reshape(-1)
    d = x - y
    return float(np.sqrt(np.square(np.where(d == 0, 0.0, d / scale)).mean()))


def compare(a: State | Parts, b: State | Parts) -> dict[str, Change]:
    """A row for every component, `b` after `a`: states or dicts of arrays with the same names."""
    before, after = parts(a), parts(b)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise InputError(f"components that only one side has: {', '.join(odd[:5])}{' ...' if odd[5:] else ''}")
    return {
        name: Change(
            y.size,
            state_delta(before[name], y),
            rel_delta(before[name], y),
            cosine(before[name], y),
            rms(y),
            max_abs(y),
            nonfinite(y),
        )
        for name, y in after.items()
    }


def coherence(
    deltas: Sequence[float] | Array, window: int | None = None, n: int | Sequence[int] | None = None
) -> float:
    """1 / (1 + population variance of the last `window` deltas), all of them by default. As defined, not as advised.

    Deltas have units, so this has none that mean anything: the same states times 100 score otherwise. A state that
    moves at a constant rate scores 1, and so, nearly, does white noise (`white_noise_coherence`); a UserWarning says so
    once a process. `n`, the numbers each delta compared (one for all, or one each), lets it warn where they differ.
    """
    values = _last(deltas, window)
    sizes = set(np.atleast_1d(n).tolist()) if n is not None else set()
    if len(sizes) > 1:
        warnings.warn(
            f"deltas over {min(sizes)} to {max(sizes)} numbers in one run: captures of unlike things were compared",
            UserWarning,
            stacklevel=2,
        )
    _tell_of_white_noise(max(sizes, default=512))
    return _first_definition(values)


def coherences(
    runs: Mapping[str, Sequence[float] | Array], n: Mapping[str, int], window: int | None = None
) -> dict[str, float]:
    """`coherence` of several runs to be set side by side; `n`: numbers in each run's state.

    A UserWarning where those differ: white noise alone then scores otherwise from run to run.
    """
    sizes = {name: n[name] for name in runs}
    if len(set(sizes.values())) > 1:
        noise = ", ".join(f"{name} n={size}: {white_noise_coherence(size):.6f}" for name, size in sizes.items())
        warnings.warn(
            f"coherence of states of several sizes is not comparable; white noise of unit variance scores {noise}",
            UserWarning,
            stacklevel=2,
        )
    _tell_of_white_noise(max(sizes.values(), default=512))
    return {name: _first_definition(_last(deltas, window)) for name, deltas in runs.items()}


def white_noise_coherence(n: int, sd: float = 1.0) -> float:
    """What `coherence` tends to over many independent Gaussian states of n numbers of standard deviation `sd`.

    A delta is sd sqrt(2/n) chi_n, and the variance of chi_n is 1/2 - 1/(8n) up to terms in 1/n^2.
    """
    return 1 / (1 + sd * sd * (1 - 1 / (4 * n)) / n)


@np.errstate(invalid="ignore", divide="ignore")
def coherence_cv(rel_deltas: Sequence[float] | Array, window: int | None = None) -> Steadiness:
    """1 / (1 + (sd / mean)^2) of the last `window` rel_deltas, and their mean beside it; free of scale.

    No change at all is a constant rate too and scores 1, with mean 0.
    """
    values = _last(rel_deltas, window)
    mean, sd = values.mean(), values.std()
    return Steadiness(1.0 if sd == 0 else float(1 / (1 + (sd / mean) ** 2)), float(mean))


def _first_definition(values: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(1 / (1 + values.var()))


def _last(values: Sequence[float] | Array, window: int | None) -> Array:
    array = float64(values).reshape(-1)
    if window is not None and window < 1:
        raise InputError(f"window {window}: 1 or more deltas are wanted")
    if not array.size:
        raise InputError("no deltas: two captures make the first")
    return array if window is None else array[-window:]


def _tell_of_white_noise(n: int) -> None:
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"coherence by its first definition scores white noise near 1 ({white_noise_coherence(n):.4f} for n={n} "
            "of unit variance); coherence_cv of rel_delta, with its mean, has no units",
            UserWarning,
            stacklevel=3,
        )
