"""The step sweep accepts only a response that is proportional to the push."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rookery import errors
from rookery.lab import metrics
from tolerances import SLOPE


def test_a_line_is_flat_everywhere() -> None:
    slope = np.array([3.0, -4.0])
    s = metrics.step_sweep(lambda h: 7 + slope * h)
    assert s.value == pytest.approx(5, rel=1e-6)
    assert s.flat.all()
    assert s.steps[-1] / s.steps[0] == pytest.approx(1e4)


def test_noise_below_and_curvature_above_are_left_out() -> None:
    rng = np.random.default_rng(0)
    s = metrics.step_sweep(lambda h: 2 * h + 800 * h**3 + 2e-5 * rng.standard_normal())
    assert s.value == pytest.approx(2, rel=SLOPE)
    assert not s.flat[0]  # rounding
    assert not s.flat[-1]  # curvature: 800 h^2 is 8 there
    assert s.flat.sum() >= 3
    assert np.flatnonzero(s.flat).tolist() == list(range(np.flatnonzero(s.flat)[0], np.flatnonzero(s.flat)[-1] + 1))
    assert np.median(s.ratios[~s.flat]) != pytest.approx(2, rel=SLOPE)


def test_where_nothing_is_flat_there_is_no_number() -> None:
    with pytest.warns(UserWarning, match="no range of steps"):
        s = metrics.step_sweep(lambda h: math.copysign(abs(h) ** 0.5, h))
    assert math.isnan(s.value)
    assert not s.flat.any()
    with pytest.warns(UserWarning, match="no range of steps"):
        s = metrics.step_sweep(lambda h: math.nan)
    assert s.nonfinite == len(s.steps)


def test_what_overflows_is_counted_and_the_rest_still_read() -> None:
    s = metrics.step_sweep(lambda h: math.inf if abs(h) > 0.05 else 3 * h)
    assert s.value == pytest.approx(3, rel=1e-6)
    assert s.nonfinite == 1
    assert not s.flat[-1]


def test_no_response_is_a_sensitivity_of_0() -> None:
    assert metrics.step_sweep(lambda h: 1.5).value == 0


def test_a_kl_divergence_is_of_second_order() -> None:
    rng = np.random.default_rng(1)
    logits, direction = rng.standard_normal((2, 30))
    p = np.exp(metrics.log_softmax(logits))
    curvature = (p @ direction**2 - (p @ direction) ** 2) / 2  # half the Fisher information along the direction
    steps = np.logspace(-4, 0, 9)
    s = metrics.step_sweep(lambda h: metrics.kl(logits, logits + h * direction), steps, order=2)
    assert s.value == pytest.approx(curvature, rel=SLOPE)
    with pytest.warns(UserWarning, match="no range of steps"):  # it answers alike on both sides
        metrics.step_sweep(lambda h: metrics.kl(logits, logits + h * direction), steps)


def test_steps_that_say_too_little() -> None:
    for steps in ([1e-3, 1e-2, 1e-1], [-1.0, 1e-4, 1.0], [1e-5, 1e-1]):
        with pytest.raises(errors.InputError, match="four decades"):
            metrics.step_sweep(float, steps)
    with pytest.raises(errors.InputError, match="order 3"):
        metrics.step_sweep(float, order=3)
