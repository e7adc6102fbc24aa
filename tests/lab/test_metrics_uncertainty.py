"""Intervals that cover as often as they say, tests that find as much as they should, and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rookery import errors
from rookery.lab import metrics
from tolerances import COVERAGE, STANDARD_ERROR


def coverage(truth: float, intervals: list[metrics.Interval]) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def test_an_interval_over_prompts_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    found = [metrics.bootstrap(rng.gamma(4, 0.5, 40), draws=200, seed=i) for i in range(200)]
    assert coverage(2.0, found) == pytest.approx(0.95, abs=COVERAGE)
    half = [metrics.bootstrap(rng.normal(size=40), draws=100, level=0.5, seed=i) for i in range(200)]
    assert coverage(0.0, half) == pytest.approx(0.5, abs=2 * COVERAGE)


def test_the_prompt_is_the_unit() -> None:
    """20 ticks that share their prompt's level say no more of other prompts than one does."""
    rng = np.random.default_rng(1)
    by_prompt, by_tick = [], []
    for i in range(100):
        ticks = rng.normal(size=(20, 1)) + 0.3 * rng.normal(size=(20, 20))
        by_prompt.append(metrics.bootstrap(ticks, draws=150, seed=i))
        by_tick.append(metrics.bootstrap(ticks.reshape(-1), draws=150, seed=i))
    assert coverage(0.0, by_prompt) > 0.95 - COVERAGE
    assert coverage(0.0, by_tick) < 0.6


def test_blocks_keep_the_noise_within_a_prompt() -> None:
    rng, phi, ticks = np.random.default_rng(2), 0.8, 600
    blocks, single, truth = [], [], (1 / (1 - phi)) / math.sqrt(ticks)  # the standard error of the mean of AR(1)
    for i in range(40):
        x, noise = np.zeros(ticks), rng.normal(size=ticks)
        for t in range(1, ticks):
            x[t] = phi * x[t - 1] + noise[t]
        for out, block in ((blocks, 40), (single, 1)):
            interval = metrics.bootstrap([x], block=block, draws=300, seed=i)
            out.append((interval.high - interval.low) / (2 * 1.96))
    assert np.mean(blocks) == pytest.approx(truth, rel=STANDARD_ERROR)
    assert np.mean(single) == pytest.approx(truth / 3, rel=STANDARD_ERROR)  # sqrt((1 - phi) / (1 + phi)) of it


def test_blocks_are_neighbours() -> None:
    indices = metrics.moving_blocks(23, 5, seed=3)
    assert indices.shape == (23,)
    assert set(indices) <= set(range(23))
    for start in range(0, 23, 5):
        assert (np.diff(indices[start : start + 5]) == 1).all()
    assert metrics.moving_blocks(4, 9).tolist() == [0, 1, 2, 3]
    starts = {int(metrics.moving_blocks(6, 3, seed=s)[0]) for s in range(60)}
    assert starts == {0, 1, 2, 3}  # every one, the last included


def test_seeds_and_generators() -> None:
    x = np.random.default_rng(0).normal(size=30)
    assert metrics.bootstrap(x, seed=5) == metrics.bootstrap(x, seed=np.random.default_rng(5))
    assert metrics.bootstrap(x, seed=5) != metrics.bootstrap(x, seed=6)
    median = metrics.bootstrap(x, lambda v: float(np.median(v)))
    assert median.low <= median.estimate == np.median(x) <= median.high
    assert median.prompts == 30


def test_pairs_cancel_what_prompts_share() -> None:
    rng = np.random.default_rng(4)
    shared = 10 * rng.normal(size=30)
    a, b = shared + 0.1 * rng.normal(size=30), shared + 0.2 + 0.1 * rng.normal(size=30)
    difference = metrics.paired(a, b)
    assert difference.estimate == pytest.approx(float((b - a).mean()))
    assert difference.low > 0
    assert metrics.sign_flip(a, b) < 0.01
    alone = [metrics.bootstrap(v) for v in (a, b)]
    assert alone[0].high > alone[1].low  # unpaired, they overlap


def test_sign_flips_counted_by_hand() -> None:
    assert metrics.sign_flip(np.zeros(5), [0.3, 0.1, 0.2, 0.4, 0.7]) == 2 / 32
    assert metrics.sign_flip([0.0, 0.0, 0.0], [3.0, 2.0, -1.0]) == 4 / 8  # |mean| >= 4/3: +++, ++-, and their mirrors
    assert metrics.sign_flip([0.0, 0.0], [0.0, 0.0]) == 1
    assert math.isnan(metrics.sign_flip([0.0, 0.0], [math.nan, 1.0]))


def test_drawn_sign_flips_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(6)
    p = [metrics.sign_flip(np.zeros(15), rng.normal(size=15), draws=200, seed=i) for i in range(200)]
    assert np.mean(np.array(p) <= 0.2) == pytest.approx(0.2, abs=2 * COVERAGE)
    assert min(p) > 0


def test_benjamini_hochberg_by_hand() -> None:
    assert metrics.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert metrics.benjamini_hochberg([0.04, 0.9, 0.04]) == pytest.approx([0.06, 0.9, 0.06])
    found = metrics.benjamini_hochberg([0.02, math.nan, 0.5])
    assert found[[0, 2]] == pytest.approx([0.04, 0.5])  # of two tests, not three
    assert math.isnan(found[1])
    assert metrics.benjamini_hochberg([]).size == 0
    with pytest.raises(errors.InputError, match="between 0 and 1"):
        metrics.benjamini_hochberg([1.2])


def test_benjamini_hochberg_by_its_own_step_up_rule() -> None:
    rng = np.random.default_rng(7)
    for q in (0.05, 0.2):
        p = np.concatenate([rng.uniform(size=30), rng.beta(0.2, 8, size=10)])
        ordered = np.sort(p)
        largest = max((k for k in range(1, 41) if ordered[k - 1] <= q * k / 40), default=0)
        assert (metrics.benjamini_hochberg(p) <= q).sum() == largest > 0


def test_what_is_not_finite_is_counted() -> None:
    x = np.append(np.ones(20), np.nan)
    found = metrics.bootstrap(x)
    assert found.nonfinite == 1
    assert all(map(math.isnan, (found.estimate, found.low, found.high)))


def test_too_little_to_say() -> None:
    with pytest.warns(UserWarning, match="from 4 prompts is too narrow"):
        metrics.bootstrap([1.0, 2.0, 3.0, 4.0])
    with pytest.warns(UserWarning, match="from 2 prompts"):
        metrics.bootstrap([[1.0, 2.0, 3.0], [2.0, 4.0]], block=2)
    with pytest.warns(UserWarning, match="from 2 prompts"):
        metrics.paired([1.0, 2.0], [2.0, 4.0])
    for groups, block, said in (([1.0], None, "one prompt"), ([], None, "nothing"), ([[1.0], []], None, "nothing")):
        with pytest.raises(errors.InputError, match=said):
            metrics.bootstrap(groups, block=block)
    with pytest.raises(errors.InputError, match="block 0"):
        metrics.bootstrap([[1.0, 2.0]], block=0)
    with pytest.raises(errors.InputError, match="level 95"):
        metrics.bootstrap([1.0, 2.0], level=95)
    with pytest.raises(errors.InputError, match="pairs are wanted"):
        metrics.paired([1.0], [1.0, 2.0])
