"""Means and shares with what is known of their error."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `n`; sound near 0 and 1 too. (Wilson 1927)"""
    if not n:
        return 0.0, 1.0
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
