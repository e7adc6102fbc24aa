"""Exponents, growth, memory and recovery, each against a case that can be worked out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rookery import errors
from rookery.lab import metrics
from tolerances import EXPONENT_PRODUCT, FITTED, METRIC, TAU


def test_exponents_of_decays_are_their_mean_logarithms() -> None:
    w = np.random.default_rng(0).uniform(0.2, 1, (200, 3, 4))  # 200 tokens, 3 heads: what v6 does
    found = metrics.lyapunov(w[..., None] * np.eye(4))
    np.testing.assert_allclose(found, -np.sort(-np.log(w).mean(0)), rtol=METRIC)


def test_exponents_of_commuting_matrices() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((2, 5, 5)))[0]
    values = rng.uniform(0.9, 1.1, (400, 2, 5)) * [2.0, 1.0, -0.7, 0.4, 0.1]
    matrices = basis * values[..., None, :] @ basis.swapaxes(1, 2)
    expected = np.log(np.abs(values)).mean(0)
    np.testing.assert_allclose(metrics.lyapunov(matrices, skip=200), np.log(np.abs(values[200:])).mean(0), atol=1e-8)
    np.testing.assert_allclose(metrics.lyapunov(matrices), expected, atol=EXPONENT_PRODUCT)  # the frame turns at first


def test_the_sum_of_exponents_is_the_mean_log_determinant() -> None:
    m = np.random.default_rng(2).standard_normal((50, 6, 6))
    expected = np.log(np.abs(np.linalg.det(m))).mean()
    for rows in (False, True):
        assert metrics.lyapunov(m, rows=rows).sum() == pytest.approx(expected, rel=METRIC)


def alternating(ticks: int) -> np.ndarray:
    """Two v7 transitions with w = 1 and rates (1, 0) and (0, 1): each of radius 1, their product of 5/4."""
    c, s = math.sqrt(1 / 6), math.sqrt(5 / 6)
    kk = np.array([[c, s], [s, c]])
    g = metrics.transitions(np.zeros((2, 2)), kk, np.eye(2))
    return np.tile(g, (ticks // 2, 1, 1))


def test_v7_products_may_grow_though_no_factor_does() -> None:
    g = alternating(400)
    assert np.abs(np.linalg.eigvals(g)).max() == pytest.approx(1)
    top = metrics.lyapunov(g, rows=True)[0]
    assert math.exp(top) == pytest.approx(math.sqrt(5 / 4), abs=EXPONENT_PRODUCT)  # 1.118
    assert metrics.transient_growth(g[:2], rows=True).largest > 1


def test_rows_and_columns_are_another_order_of_the_same_factors() -> None:
    g = np.array(
        [[[2.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]
    )  # g0 g1 = [[1, 0], [0, 0]], g1 g0 = [[0, 0], [2, 1]]
    assert metrics.transient_growth(g, rows=True).at == 1
    assert metrics.transient_growth(g).largest == pytest.approx(math.sqrt(5))
    for rows, product in ((True, g[0] @ g[1]), (False, g[1] @ g[0])):
        both = np.stack([g[0], g[1]])
        norms = [1.0, np.linalg.norm(g[0], 2), np.linalg.norm(product, 2)]
        assert metrics.transient_growth(both, rows).largest == pytest.approx(max(norms), rel=METRIC)


def test_the_frame_of_rows_turns_the_other_way() -> None:
    turned = np.array([[[1.0, 5.0], [0.0, 0.5]]])
    for rows, m in ((False, turned), (True, turned.swapaxes(1, 2))):
        assert metrics.lyapunov(m, rows) == pytest.approx([0, math.log(0.5)], rel=METRIC)
    _, r = np.linalg.qr(turned[0].T)
    expected = np.sort(np.log(np.abs(np.diag(r))))[::-1]
    assert metrics.lyapunov(turned, rows=True) == pytest.approx(expected, rel=METRIC)
    assert expected[0] > 1  # nothing of the other order's


def test_growth_by_brute_force_in_a_batch() -> None:
    m = np.random.default_rng(3).standard_normal((30, 2, 3, 3)) * 0.6
    found = metrics.transient_growth(m)
    for h in range(2):
        product, norms = np.eye(3), [1.0]
        for step in m[:, h]:
            product = step @ product
            norms.append(float(np.linalg.svd(product)[1][0]))
        assert found.largest[h] == pytest.approx(max(norms), rel=METRIC)
        assert found.at[h] == int(np.argmax(norms))


def test_long_products_neither_vanish_nor_overflow() -> None:
    small = np.broadcast_to(0.01 * np.eye(2), (400, 2, 2))  # 1e-800 at the end
    assert metrics.transient_growth(small) == (1.0, 0)
    assert metrics.lyapunov(small) == pytest.approx([math.log(0.01)] * 2, rel=METRIC)
    dip = np.concatenate([small[:200], np.broadcast_to(100 * np.eye(2), (201, 2, 2))])
    assert metrics.transient_growth(dip).largest == pytest.approx(100, rel=1e-6)
    assert metrics.transient_growth(dip).at == 401


def test_what_is_wiped_out_and_what_is_not_a_number() -> None:
    wiped = metrics.lyapunov(np.broadcast_to(np.diag([0.5, 0.0]), (3, 2, 2)))
    assert wiped[0] == pytest.approx(math.log(0.5))
    assert wiped[1] == -math.inf
    m = np.broadcast_to(np.eye(2), (3, 2, 2, 2)).copy()
    m[1, 0, 0, 0] = np.nan
    assert np.isnan(metrics.lyapunov(m)).any(-1).tolist() == [True, False]
    assert np.isnan(metrics.transient_growth(m).largest).tolist() == [True, False]
    with pytest.raises(errors.InputError, match="square matrices"):
        metrics.lyapunov(np.zeros((3, 2, 4)))
    with pytest.raises(errors.InputError, match="skip 3 of 3"):
        metrics.lyapunov(m, skip=3)


def ar1(phi: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    x = np.empty(shape)
    x[0] = noise[0] / math.sqrt(1 - phi * phi)
    for t in range(1, shape[0]):
        x[t] = phi * x[t - 1] + noise[t]
    return x


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.3])
def test_autocorrelation_time_of_ar1(phi: float) -> None:
    expected = (1 + phi) / (1 - phi)
    assert metrics.autocorrelation_time(ar1(phi, (5000, 40), 1)).ticks == pytest.approx(expected, rel=TAU)


def test_autocorrelation_time_by_a_loop() -> None:
    x = ar1(0.6, (400,), 2)
    found = metrics.autocorrelation_time(x)
    d = x - x.mean()
    rho = [sum(d[t] * d[t + k] for t in range(400 - k)) / sum(d * d) for k in range(found.window + 1)]
    assert found.ticks == pytest.approx(1 + 2 * sum(rho[1:]), rel=METRIC)
    partial = [1 + 2 * sum(rho[1 : k + 1]) for k in range(found.window + 1)]
    assert [k >= 5 * partial[k] for k in range(found.window + 1)] == [False] * found.window + [True]
    assert metrics.autocorrelation_time(1e6 * x).ticks == pytest.approx(found.ticks, rel=METRIC)


def test_a_series_too_short_for_its_memory_says_so() -> None:
    with pytest.warns(UserWarning, match="likely longer"):
        assert metrics.autocorrelation_time(ar1(0.99, (150,), 0)).ticks < 199
    assert math.isnan(metrics.autocorrelation_time(np.ones((30, 2))).ticks)
    assert math.isnan(metrics.autocorrelation_time([1.0, math.nan, 2.0]).ticks)
    with pytest.raises(errors.InputError, match="at least 2 ticks"):
        metrics.autocorrelation_time([1.0])


@pytest.mark.parametrize(
    ("tau", "floor"), [(0.7, 3e-7), (0.7, 1e-3), (6.0, 0.0), (6.0, 3e-7), (6.0, 1e-3), (30.0, 0.0), (30.0, 3e-3)]
)
def test_recovery_finds_half_life_and_floor(tau: float, floor: float) -> None:
    t = np.arange(120)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(120))
    fit = metrics.recovery((0.05 * np.exp(-t / tau) + floor) * noise)
    if floor:
        assert fit.floor == pytest.approx(floor, rel=FITTED)
    assert fit.half_life == pytest.approx(tau * math.log(2), rel=FITTED)
    if tau > 1:
        assert fit.amplitude == pytest.approx(0.05, rel=FITTED)
    assert fit.residual < 0.02


def test_recovery_to_the_very_bits() -> None:
    t = np.arange(120)
    fit = metrics.recovery(np.where(t < 60, 0.05 * np.exp(-t / 6), 0.0))
    assert fit.half_life == pytest.approx(6 * math.log(2), rel=FITTED)
    assert fit.floor < 1e-5  # the least that was seen is 0.05 e^-10


def test_recovery_that_does_not_come() -> None:
    still = metrics.recovery(np.full(50, 0.2))
    assert still.half_life == math.inf
    assert still.amplitude + still.floor == pytest.approx(0.2, rel=1e-6)
    assert metrics.recovery(0.1 * np.exp(np.arange(50) / 10)).half_life == math.inf
    assert math.isnan(metrics.recovery([1.0, 0.5, math.nan, 0.1]).half_life)
    assert math.isnan(metrics.recovery(np.zeros(10)).half_life)
    with pytest.raises(errors.InputError, match="below 0"):
        metrics.recovery([1.0, -0.1, 0.0, 0.0])
    with pytest.raises(errors.InputError, match="at least 4"):
        metrics.recovery([1.0, 0.5])
