"""How sure a number is. The unit is the prompt: ticks within one are not independent, so prompts are resampled.

P prompts. Everything random takes a seed or a numpy Generator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64, nonfinite

Seed: TypeAlias = int | np.random.Generator

FEW = 10  # prompts below which a bootstrap interval is too narrow to mean what it says
EXACT = 12  # differences up to which all sign flips are tried


class Interval(NamedTuple):
    """An estimate and its percentile interval, in the values' own units; NaN where a value is not finite."""

    estimate: float
    low: float
    high: float
    level: float
    prompts: int
    nonfinite: int


def _mean(values: Array) -> float:
    return float(values.mean())


def bootstrap(
    groups: Sequence[Any] | Array,
    statistic: Callable[[Array], float] = _mean,
    block: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: Seed = 0,
) -> Interval:
    """A percentile interval of `statistic` over all values, by drawing prompts with replacement.

    `groups`: for every prompt a number or an array whose first axis runs over its values (ticks, seeds).
    `block`: also draw each prompt's values anew, in moving blocks of so many neighbours, for the noise within prompts;
    one prompt alone needs it, and it should be at least the autocorrelation time. The statistic must not depend on the
    order of values; a prompt with more of them weighs more. A UserWarning below 10 prompts, where such intervals are
    too narrow.
    """
    values = [np.atleast_1d(float64(group)) for group in groups]
    if not values or not all(map(len, values)):
        raise InputError("nothing to resample: every prompt needs at least one value")
    if len(values) == 1 and block is None:
        raise InputError("one prompt says nothing of others: give more, or block= for the noise within it")
    _checked(draws, level)
    if block is not None and block < 1:
        raise InputError(f"block {block}: 1 or more values are wanted")
    if 1 < len(values) < FEW:
        _warn_of_few(len(values))
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for i in range(draws):
        drawn = [values[p] for p in rng.integers(len(values), size=len(values))]
        if block is not None:
            drawn = [v[moving_blocks(len(v), block, rng)] for v in drawn]
        found[i] = statistic(np.concatenate(drawn))
    low, high = _percentiles(found, level)
    whole = np.concatenate(values)
    return Interval(float(statistic(whole)), low, high, level, len(values), nonfinite(whole))


def moving_blocks(length: int, block: int, seed: Seed = 0) -> Array:
    """Indices [length] of a series drawn anew in blocks of `block` neighbours, which may overlap."""
    block = min(block, length)
    rng = np.random.default_rng(seed)
    starts = rng.integers(length - block + 1, size=-(-length // block))
    indices: Array = (starts[:, None] + np.arange(block)).reshape(-1)[:length]
    return indices


def paired(
    a: Sequence[float] | Array, b: Sequence[float] | Array, draws: int = 2000, level: float = 0.95, seed: Seed = 0
) -> Interval:
    """The mean of b - a, prompt by prompt, with its interval: what prompts have in common cancels."""
    return bootstrap(_differences(a, b), draws=draws, level=level, seed=seed)


def sign_flip(a: Sequence[float] | Array, b: Sequence[float] | Array, draws: int = 10_000, seed: Seed = 0) -> float:
    """Two-sided p-value that b - a is symmetric about 0, prompt by prompt: all sign flips up to 12 prompts, else drawn.

    NaN where a difference is not finite.
    """
    d = _differences(a, b)
    if not np.isfinite(d).all():
        return float("nan")
    seen = abs(d.mean()) * (1 - 1e-12)  # a flip that only sums in another order counts as equal
    if len(d) <= EXACT:
        flips = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
        return float((np.abs((flips * d).mean(1)) >= seen).mean())
    rng = np.random.default_rng(seed)
    extreme = sum(abs((rng.choice((-1.0, 1.0), len(d)) * d).mean()) >= seen for _ in range(draws))
    return float((1 + extreme) / (1 + draws))


def benjamini_hochberg(p_values: Sequence[float] | Array) -> Array:
    """Adjusted p-values, in the order given: those at most q are found at a false discovery rate of q.

    A NaN is a test that was not made: it stays NaN and does not count. Raises InputError for a p outside [0, 1].
    """
    p = float64(p_values)
    made = np.flatnonzero(~np.isnan(p))
    if ((p[made] < 0) | (p[made] > 1)).any():
        raise InputError("p-values lie between 0 and 1")
    order = made[np.argsort(p[made], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    out = np.full(p.shape, np.nan)
    out[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return out


def _differences(a: Any, b: Any) -> Array:
    x, y = float64(a), float64(b)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise InputError(f"pairs are wanted, one number a prompt: shapes {list(x.shape)} and {list(y.shape)}")
    with np.errstate(invalid="ignore"):
        return y - x


def _percentiles(found: Array, level: float) -> tuple[float, float]:
    if not np.isfinite(found).all():
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(draws: int, level: float) -> None:
    if draws < 1:
        raise InputError(f"draws {draws}: 1 or more are wanted")
    if not 0 < level < 1:
        raise InputError(f"level {level}: between 0 and 1, such as 0.95")


def _warn_of_few(prompts: int) -> None:
    warnings.warn(
        f"an interval from {prompts} prompts is too narrow; at least {FEW} are wanted, 30 are good",
        UserWarning,
        stacklevel=3,
    )
