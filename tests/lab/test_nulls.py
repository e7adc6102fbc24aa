"""The nulls: what they claim of mean, variance and memory, and what a metric must make of them."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from rookery.errors import InputError
from rookery.lab.substrates import Substrate, make
from tolerances import SIGMAS


def trajectory(substrate: Substrate, ticks: int, component: str = "state") -> np.ndarray[Any, Any]:
    rows = []
    for _ in range(ticks):
        substrate.step()
        rows.append(substrate.components()[component])
    return np.array(rows)


def sluggish(ticks: int, rho: Any, mean: Any, sd: Any) -> np.ndarray[Any, Any]:
    """AR(1) channels, written out."""
    rng, rows = np.random.default_rng(0), []
    x = rng.standard_normal(np.shape(mean))
    for _ in range(ticks):
        x = rho * x + np.sqrt(1.0 - np.square(rho)) * rng.standard_normal(np.shape(mean))
        rows.append(mean + sd * x)
    return np.array(rows)


def lag1(run: np.ndarray[Any, Any], mean: Any = 0.0) -> Any:
    away = run - mean
    return (away[1:] * away[:-1]).mean(0) / (away**2).mean(0)


def test_frozen_is() -> None:
    null = make("frozen", n=30)
    begin = null.components()["state"]
    assert np.ptp(begin) > 1.0
    assert all(np.array_equal(row, begin) for row in trajectory(null, 200))


def test_iid_has_no_memory() -> None:
    run = trajectory(make("iid", n=200), 300)
    count = run.size
    assert abs(run.mean()) < SIGMAS / math.sqrt(count)
    assert abs((run**2).mean() - 1.0) < SIGMAS * math.sqrt(2.0 / count)
    for lag in (1, 2, 5):
        assert abs((run[lag:] * run[:-lag]).mean()) < SIGMAS / math.sqrt(count)


@pytest.mark.parametrize("rho", [0.9, 0.3, -0.5, 0.0])
def test_ar1_forgets_at_its_rate(rho: float) -> None:
    """Autocorrelation rho^lag; variance 1 from the first tick on."""
    null = make("ar1", n=400, rho=rho)
    run = trajectory(null, 400)
    effective = run.size * (1.0 - rho**2) / (1.0 + rho**2)
    assert abs((run**2).mean() - 1.0) < SIGMAS * math.sqrt(2.0 / effective)
    assert abs((run[0] ** 2).mean() - 1.0) < SIGMAS * math.sqrt(2.0 / 400)
    for lag in (1, 2, 4):
        assert abs((run[lag:] * run[:-lag]).mean() - rho**lag) < SIGMAS * math.sqrt(2.0 / effective)


@pytest.mark.parametrize("name", ["frozen", "iid", "ar1"])
def test_matches_each_channel(name: str) -> None:
    """Mean and variance of each channel; ar1 its memory too, which the estimate puts (1 + 4 rho)/N too low."""
    rho, mean, sd = np.array([0.0, 0.5, 0.95, 0.8]), np.array([-3.0, 0.0, 100.0, 1.0]), np.array([0.1, 1.0, 20.0, 5.0])
    reference = sluggish(20_000, rho, mean, sd)
    null = make(name, reference=reference)
    draws = []
    for seed in range(400):
        null.reset(seed)
        null.step()
        draws.append(null.components()["state"])
    # What is matched is the sample, so the null is held to the sample's own moments.
    away = (np.array(draws) - reference.mean(0)) / reference.std(0)
    assert np.all(np.abs(away.mean(0)) < SIGMAS / math.sqrt(400))
    assert np.all(np.abs((away**2).mean(0) - 1.0) < SIGMAS * math.sqrt(2.0 / 400))
    if name == "ar1":
        run = trajectory(null, 20_000)
        found = lag1(run, reference.mean(0))
        assert np.all(np.abs(found - rho) < SIGMAS * np.sqrt(2.0 * (1.0 - rho**2) / 20_000) + 1e-3)


def test_bias_of_a_short_reference() -> None:
    """(1 + 4 rho)/N, as `ar1` says."""
    rho, ticks = 0.6, 50
    short = sluggish(ticks, rho, np.zeros(20_000), 1.0)
    null: Any = make("ar1", reference=short)
    low = rho - float(null._rho["state"].mean())
    assert low == pytest.approx((1.0 + 4.0 * rho) / ticks, rel=0.1)


def test_several_components_and_shapes() -> None:
    rng = np.random.default_rng(1)
    null = make("iid", reference={"wkv": rng.standard_normal((9, 2, 3, 3)), "shift": np.ones((9, 4))})
    found = null.components()
    assert {key: value.shape for key, value in found.items()} == {"wkv": (2, 3, 3), "shift": (4,)}
    null.step()
    assert np.array_equal(null.components()["shift"], np.ones(4)), "a channel that never moved does not move"
    assert not np.array_equal(null.components()["wkv"], found["wkv"])


def test_perturbation_is_forgotten_at_the_rate() -> None:
    """Two runs of equal noise, one of them pushed: the difference is 1, rho, rho^2, ... of the push."""
    for name, rho in (("frozen", 1.0), ("iid", 0.0), ("ar1", 0.9)):
        null = make(name, n=20)
        kept = null.snapshot()
        plain = trajectory(null, 5)
        null.restore(kept)
        norm = np.linalg.norm(null.components()["state"])
        null.perturb("state", np.arange(20.0), 0.1)
        apart = np.linalg.norm(trajectory(null, 5) - plain, axis=1)
        np.testing.assert_allclose(apart, 0.1 * norm * rho ** np.arange(1, 6), atol=1e-12)


def test_nulls_are_the_three() -> None:
    nulls = make("nulls", n=6)
    assert list(nulls.components()) == ["frozen.state", "iid.state", "ar1.state"]
    for name in ("frozen", "iid", "ar1"):
        nulls.reset(3)
        alone = make(name, n=6)
        alone.reset(3)
        assert np.array_equal(trajectory(nulls, 4, f"{name}.state"), trajectory(alone, 4))
    nulls.reset(3)
    assert not any(np.allclose(a, b) for a, b in combinations(nulls.components().values(), 2)), "noise of its own each"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": np.ones(5)}, "shape"),
        ({"reference": np.ones((2, 5))}, "3 ticks"),
        ({"reference": np.array([[0.0], [np.nan], [np.inf]])}, "2 values that are not finite"),
        ({"reference": {}}, "no component"),
        ({"n": 0}, "n=0"),
        ({"rho": 1.5}, "rho=1.5"),
        ({"rho": math.nan}, "rho=nan"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("ar1", **settings)
