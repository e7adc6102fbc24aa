"""KL in nats, survival with censoring and edit distance, against sums, a worked example and a slow table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rookery import errors
from rookery.lab import metrics
from tolerances import METRIC


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 4, 7)) * 3
    for row in range(4):
        p, q = ([math.exp(v) / sum(map(math.exp, z[row])) for v in z[row]] for z in (x, y))
        slow = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert metrics.kl(x, y)[row] == pytest.approx(slow, rel=METRIC)
    assert metrics.kl([0.0, 0.0], [math.log(3), 0.0]) == pytest.approx(0.5 * math.log(4 / 3), rel=METRIC)
    assert metrics.kl(x, x + 1e4) == pytest.approx(0, abs=1e-10)  # logits are known up to a constant
    assert metrics.kl(x, y) != pytest.approx(metrics.kl(y, x), rel=0.01)


def test_kl_where_tokens_are_excluded() -> None:
    none = -math.inf
    assert metrics.kl([0.0, none], [0.0, 0.0]) == pytest.approx(math.log(2), rel=METRIC)
    assert metrics.kl([0.0, 0.0], [0.0, none]) == math.inf
    assert metrics.kl([0.0, none], [5.0, none]) == 0
    assert math.isnan(metrics.kl([0.0, math.nan], [0.0, 0.0]))
    assert math.isnan(metrics.kl([0.0, none], [math.nan, 0.0]))
    assert metrics.kl(np.float32([1e4, -1e4]), np.float32([-1e4, 1e4])) == 2e4  # in float64, without overflow


def test_first_difference() -> None:
    assert metrics.first_difference([1, 2, 3], [1, 2, 4]) == (2, True)
    assert metrics.first_difference([5], [6]) == (0, True)
    assert metrics.first_difference([1, 2], [1, 2]) == (2, False)
    assert metrics.first_difference([1, 2], [1, 2, 3]) == (2, True)  # one ended there
    assert metrics.first_difference([], []) == (0, False)


def test_survival_against_a_worked_example() -> None:
    # The runs of Freireich's 6-MP arm up to week 10: relapse at 6, 6, 6, 7, 10, censored at 6, 9, 10, 11 (of 9 runs).
    events = [(6, True), (6, True), (6, True), (6, False), (7, True), (9, False), (10, True), (10, False), (11, False)]
    s = metrics.survival(events)
    assert s.times.tolist() == [6, 7, 10]
    assert s.at_risk.tolist() == [9, 5, 3]
    assert s.share == pytest.approx([6 / 9, 6 / 9 * 4 / 5, 6 / 9 * 4 / 5 * 2 / 3])
    assert (s.runs, s.censored, s.median) == (9, 4, 10)


def test_survival_without_censoring_is_the_share_left() -> None:
    times = np.random.default_rng(1).integers(1, 20, 50)
    s = metrics.survival([(int(t), True) for t in times])
    assert s.share == pytest.approx([(times > t).mean() for t in s.times], abs=1e-12)
    never = metrics.survival([metrics.first_difference([1, 2], [1, 2])] * 3)
    assert (never.times.size, never.median, never.censored) == (0, math.inf, 3)
    with pytest.raises(errors.InputError, match="no runs"):
        metrics.survival([])


def slow_distance(a: list[int], b: list[int]) -> int:
    table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


def test_edit_distance() -> None:
    assert metrics.edit_distance(list(b"kitten"), list(b"sitting")) == 3
    assert metrics.edit_distance([], [1, 2]) == metrics.edit_distance([1, 2], []) == 2
    rng = np.random.default_rng(2)
    for _ in range(60):
        a, b = (rng.integers(4, size=rng.integers(0, 14)).tolist() for _ in range(2))
        assert metrics.edit_distance(a, b) == slow_distance(a, b) == metrics.edit_distance(b, a)
