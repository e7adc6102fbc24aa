"""Means and shares with what is known of their error."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

Z = 1.959964  # of a normal distribution, 95 % lie within


def mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, sample deviation (n - 1) over sqrt n as in lm-eval; NaN of fewer than two."""
    n = len(values)
    if not n:
        return math.nan, math.nan
    middle = math.fsum(values) / n
    if n < 2:
        return middle, math.nan
    return middle, math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n)


def perplexity(logprobs: Sequence[float]) -> tuple[float, float]:
    """exp of minus the mean of `logprobs` (nats, one an example or document), and its standard error, by the slope of
    exp (lm-eval bootstraps; the two agree to some percent).
    """
    middle, error = mean(logprobs)
    value = math.exp(min(700.0, -middle))
    return value, value * error


def grouped(values: Sequence[float], of: Sequence[Hashable]) -> tuple[float, float, float]:
    """The mean of `values` in 0..1 where those with the same `of` were drawn together (one story at two distances), its
    standard error, NaN of fewer than two groups, and how many single draws would say as much: for `wilson`.

    Where all values are 0 or all 1 they do not tell how much their groups count for: each group is then one draw.
    """
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for value, group in zip(values, of, strict=True):
        sums[group], sizes[group] = sums.get(group, 0.0) + value, sizes.get(group, 0) + 1
    middle, error = ratio(list(sums.values()), list(sizes.values()))
    groups, alone = float(len(sums)), max(0.0, middle * (1 - middle))
    return middle, error, max(groups, min(float(len(values)), alone / error**2)) if error > 0 and alone else groups


def ratio(sums: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Sum of `sums` over sum of `weights` and its standard error, the parts taken for independent draws (the ratio
    estimator: Cochran, Sampling Techniques, 6.3); the error is NaN of fewer than two.
    """
    n, total = len(sums), math.fsum(weights)
    if not total:
        return math.nan, math.nan
    value = math.fsum(sums) / total
    if n < 2:
        return value, math.nan
    squares = math.fsum((part - value * weight) ** 2 for part, weight in zip(sums, weights, strict=True))
    return value, math.sqrt(n / (n - 1) * squares) / total


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `n`; sound near 0 and 1 too. (Wilson 1927)"""
    if not n:
        return 0.0, 1.0
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return middle - half if share > 0 else 0.0, middle + half if share < 1 else 1.0
