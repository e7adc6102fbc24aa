"""Ranks of matrices with known spectra; dimensions of trajectories whose covariance is known."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from rookery import errors
from rookery.lab import metrics
from tolerances import METRIC, PARTICIPATION


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def matrix(singular: list[float], seed: int) -> np.ndarray:
    n = len(singular)
    return orthogonal(n, seed) * singular @ orthogonal(n, seed + 1)


def test_spectra_are_per_head() -> None:
    known = [[5.0, 3.0, 1.0, 0.5], [2.0, 2.0, 0.0, 0.0], [0.0] * 4]
    wkv = np.stack([matrix(s, i) for i, s in enumerate(known)])
    found = metrics.singular_values(wkv)
    np.testing.assert_allclose(found, known, atol=1e-12)
    values = np.array(known)
    p = values[0] / values[0].sum()
    entropy = -sum(x * math.log(x) for x in p)
    assert metrics.effective_rank(values) == pytest.approx([math.exp(entropy), 2, 0], rel=METRIC)
    assert metrics.stable_rank(values) == pytest.approx([(25 + 9 + 1 + 0.25) / 25, 2, 0], rel=METRIC)
    squares = values[0] ** 2 / np.square(values[0]).sum()
    assert metrics.effective_rank(values)[0] > math.exp(-sum(x * math.log(x) for x in squares))  # p is of s, not s^2


def test_ranks_do_not_depend_on_scale() -> None:
    s = np.array([5.0, 3.0, 1.0])
    for scale in (1e-200, 1e200):
        assert metrics.effective_rank(s * scale) == pytest.approx(metrics.effective_rank(s), rel=METRIC)
        assert metrics.stable_rank(s * scale) == pytest.approx(metrics.stable_rank(s), rel=METRIC)


def test_a_head_with_a_nan_is_nan_and_the_others_are_not() -> None:
    wkv = np.stack([np.eye(3), np.eye(3), np.eye(3)])
    wkv[1, 0, 0], wkv[2, 1, 1] = np.nan, np.inf
    s = metrics.singular_values(wkv)
    assert np.isnan(s).all(-1).tolist() == [False, True, True]
    assert np.isnan(metrics.effective_rank(s)).tolist() == [False, True, True]
    assert np.isnan(metrics.stable_rank(s)).tolist() == [False, True, True]
    assert metrics.nonfinite(wkv) == 2


def path(variances: list[float], ticks: int, seed: int) -> np.ndarray:
    """[ticks, D] whose sample covariance has exactly these eigenvalues."""
    d = len(variances)
    x = np.random.default_rng(seed).standard_normal((ticks, d))
    x -= x.mean(0)
    white = np.linalg.qr(x)[0] * math.sqrt(ticks)
    return white * np.sqrt(variances) @ orthogonal(d, seed) + 7


@pytest.mark.parametrize(("variances", "ticks"), [([4.0, 2.0, 1.0, 1.0], 200), ([3.0, 3.0, 3.0, 0.0, 0.0], 200)])
def test_participation_ratio_of_a_known_covariance(variances: list[float], ticks: int) -> None:
    expected = sum(variances) ** 2 / sum(v * v for v in variances)
    x = path(variances, ticks, 3)
    assert metrics.participation_ratio(x) == pytest.approx(expected, rel=1e-9)
    wide = np.concatenate([x, np.zeros((ticks, ticks))], axis=1)  # more numbers than ticks: the other product
    assert metrics.participation_ratio(wide) == pytest.approx(expected, rel=1e-9)


def test_few_ticks_bound_the_participation_ratio_and_it_says_so() -> None:
    x = np.random.default_rng(0).standard_normal((50, 400))
    with pytest.warns(UserWarning, match="50 ticks in 400 dimensions: at most 49"):
        ratio = metrics.participation_ratio(x)
    assert ratio == pytest.approx(1 / (1 / 49 + 1 / 400), rel=PARTICIPATION)  # of white noise; the truth is 400
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.participation_ratio(path([1.0, 1.0, 1.0], 50, 0))


def test_principal_components_are_those_of_the_covariance() -> None:
    x = path([9.0, 4.0, 1.0, 0.25], 100, 5)
    p = metrics.pca(x, 3)
    assert p.explained == pytest.approx(np.array([9, 4, 1]) / 14.25, rel=METRIC)
    vectors = np.linalg.eigh(np.cov(x.T))[1][:, ::-1].T[:3]
    assert np.abs((p.directions * vectors).sum(1)) == pytest.approx(1, rel=METRIC)
    np.testing.assert_allclose(p.scores, (x - p.mean) @ p.directions.T, atol=1e-9)
    assert (p.directions[range(3), np.abs(p.directions).argmax(1)] > 0).all()
    mirrored = metrics.pca(-x, 3)
    np.testing.assert_allclose(mirrored.directions, p.directions, atol=1e-9)
    assert metrics.pca(x[:2], 3).scores.shape == (2, 2)


def test_a_trajectory_with_a_nan_gives_nan_and_a_still_one_too() -> None:
    x = path([1.0, 1.0], 10, 0)
    x[3, 1] = np.nan
    assert math.isnan(metrics.participation_ratio(x))
    assert np.isnan(metrics.pca(x, 1).explained).all()
    assert math.isnan(metrics.participation_ratio(np.ones((5, 3))))
    assert np.isnan(metrics.pca(np.ones((5, 3)), 1).explained).all()
    with pytest.raises(errors.InputError, match="at least 2 ticks"):
        metrics.pca(np.ones((1, 3)))
    with pytest.raises(errors.InputError, match="matrices are wanted"):
        metrics.singular_values(np.ones(3))
