"""Means, shares and what is known of their error."""

import math

import numpy as np
import pytest

from rookery.evaluate import statistics


def test_statistics():
    assert statistics.mean([1.0, 3.0]) == (2.0, 1.0)
    assert statistics.mean([5.0])[0] == 5.0
    assert math.isnan(statistics.mean([5.0])[1])
    value, error = statistics.perplexity([-1.0, -3.0])
    assert value == pytest.approx(math.exp(2))
    assert error == pytest.approx(math.exp(2))
    low, high = statistics.wilson(5, 10)
    assert (low, high) == pytest.approx((0.23659, 0.76341), abs=1e-5)  # Newcombe 1998
    assert statistics.wilson(0, 10)[0] == 0.0


def test_values_that_were_drawn_together_count_for_less():
    rng = np.random.default_rng(0)
    values, of = (rng.random(40) < 0.3).astype(float).tolist(), list(range(40))
    alone = statistics.grouped(values, of)
    assert alone[:2] == pytest.approx(statistics.mean(values))
    assert alone[2] == 40
    assert statistics.grouped(values * 3, of * 3) == pytest.approx((*alone[:2], 40))
    middle, error, draws = statistics.grouped([1.0, 0.0] * 20, [i // 2 for i in range(40)])  # groups that agree
    assert (middle, error, draws) == (0.5, 0.0, 20)
    assert statistics.grouped([1.0] * 6, [0, 0, 1, 1, 2, 2]) == (1.0, 0.0, 3)
    assert math.isnan(statistics.grouped([1.0, 0.0], [0, 0])[1])


def test_grouped_errors_are_those_of_many_draws():
    """Groups of 1 to 6 that share a chance: the error told is how far the means of other draws lie apart."""
    rng = np.random.default_rng(1)

    def drawn():
        sizes = rng.integers(1, 7, 60)
        of = np.repeat(np.arange(60), sizes)
        return statistics.grouped((rng.random(len(of)) < rng.random(60)[of]).astype(float).tolist(), of.tolist())

    means, errors, _ = np.array([drawn() for _ in range(300)]).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(means.std(), rel=0.15)


@pytest.mark.parametrize("n", [1, 3, 8, 40, 53.7])
def test_none_and_all_reach_the_end_of_their_interval(n):
    assert (statistics.wilson(0, n)[0], statistics.wilson(n, n)[1]) == (0, 1)
    assert 0 < statistics.wilson(0, n)[1] < 1
    assert statistics.wilson(n, n)[0] == pytest.approx(1 - statistics.wilson(0, n)[1])
