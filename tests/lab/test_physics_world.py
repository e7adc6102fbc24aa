"""The attractors against what is known of them, and the world signal against a slow one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rookery.errors import InputError
from rookery.lab.substrates.attractors import ATTRACTORS, DT, Attractor, exponents, moments, rk4
from rookery.lab.substrates.world import World
from tolerances import EXPONENT, EXPONENT_SUM, ORDER, PHYSICS_LOOP, SIGMAS

KINDS = sorted(ATTRACTORS)


def test_fields_are_those_of_the_papers() -> None:
    """At (1, 2, 3), by hand."""
    at = (1.0, 2.0, 3.0)
    assert ATTRACTORS["lorenz"].field(*at) == (10.0, 23.0, -6.0)
    assert ATTRACTORS["roessler"].field(*at) == pytest.approx((-5.0, 1.4, -13.9), rel=1e-12)
    b = 0.18
    thomas = (math.sin(2.0) - b, math.sin(3.0) - 2.0 * b, math.sin(1.0) - 3.0 * b)
    assert ATTRACTORS["thomas"].field(*at) == pytest.approx(thomas, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_tangent_is_the_slope_of_the_field(kind: str) -> None:
    system = ATTRACTORS[kind]
    point, along = np.random.default_rng(2).standard_normal((2, 3, 50))
    ahead, behind = (np.array(system.field(*(point + sign * 1e-6 * along))) for sign in (1, -1))
    np.testing.assert_allclose(system.tangent(*point, *along), (ahead - behind) / 2e-6, atol=1e-7)


def test_order_of_runge_kutta() -> None:
    def end(steps: int) -> np.ndarray[Any, Any]:
        at = (1.0, 2.0, 20.0)
        for _ in range(steps):
            at = rk4(ATTRACTORS["lorenz"].field, at, 0.4 / steps)
        return np.array(at)

    errors = [float(np.linalg.norm(end(steps) - end(5120))) for steps in (80, 160, 320)]
    slope = -np.polyfit(np.log([80, 160, 320]), np.log(errors), 1)[0]
    assert abs(slope - 4.0) < ORDER, slope


@pytest.mark.parametrize("kind", KINDS)
def test_stored_moments(kind: str) -> None:
    """The constants against a shorter run of the function that made them, and against what the equations say.

    dy/dt of Roessler averages to 0, so <x> = -0.2 <y>, and dx/dt, so <z> = -<y>; Lorenz: <xy> = 8/3 <z> and
    d(x^2)/dt = 20 (xy - x^2) give var x = 8/3 <z>; Thomas is symmetric in its three axes and under a change of sign.
    """
    mean, sd, error = moments(kind, replicas=256, time=100.0, seed=1)
    stored = ATTRACTORS[kind]
    assert np.all(np.abs(mean - stored.mean) < SIGMAS * error + 0.004)
    assert np.all(np.abs(sd / stored.sd - 1.0) < 0.02)
    if kind == "roessler":
        assert stored.mean[0] == pytest.approx(-0.2 * stored.mean[1], abs=1e-3)
        assert stored.mean[2] == pytest.approx(-stored.mean[1], abs=1e-3)
    if kind == "lorenz":
        assert stored.sd[0] == pytest.approx(math.sqrt(8.0 / 3.0 * stored.mean[2]), rel=1e-3)
    if kind == "thomas":
        assert np.ptp(stored.sd) < 0.01
        assert np.abs(stored.mean).max() < 0.01


def interval(runs: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean over independent runs, and its standard error."""
    return runs.mean(0), runs.std(0, ddof=1) / math.sqrt(len(runs))


def assert_largest(runs: np.ndarray[Any, Any], known: float) -> None:
    mean, error = interval(runs)
    assert abs(mean[0] - known) < SIGMAS * error[0] + EXPONENT, (mean, error)
    assert abs(mean[1]) < SIGMAS * error[1] + EXPONENT, "along the flow nothing grows or shrinks"


def test_exponents_of_lorenz() -> None:
    """Largest 0.906; their sum is the divergence -(10 + 1 + 8/3) at every point."""
    runs = exponents("lorenz", replicas=256, time=30.0)
    assert_largest(runs, 0.906)
    assert interval(runs)[1][0] < 0.005, "an interval that would let any number in"
    np.testing.assert_allclose(runs.sum(1), -(10.0 + 1.0 + 8.0 / 3.0), atol=EXPONENT_SUM)


def test_exponents_of_thomas_sum_to_its_divergence() -> None:
    np.testing.assert_allclose(exponents("thomas", replicas=16, time=10.0).sum(1), -3.0 * 0.18, atol=EXPONENT_SUM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "known", "settle", "narrow"), [("lorenz", 0.906, 20.0, 1e-3), ("roessler", 0.071, 200.0, 7e-4)]
)
def test_exponents_over_long_runs(kind: str, known: float, settle: float, narrow: float) -> None:
    """0.9061 +- 0.0007 and 0.0713 +- 0.0006 were measured (one standard error)."""
    runs = exponents(kind, replicas=64, time=800.0, settle=settle)
    assert_largest(runs, known)
    assert interval(runs)[1][0] < narrow


def test_exponent_of_roessler() -> None:
    runs = exponents("roessler", replicas=64, time=60.0, settle=60.0)
    assert_largest(runs, 0.071)
    assert interval(runs)[1][0] < 0.004


def test_exponents_notice_a_wrong_tangent(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ATTRACTORS["lorenz"]

    def wrong(x: Any, y: Any, z: Any, a: Any, b: Any, c: Any) -> Any:
        first, second, third = right.tangent(x, y, z, a, b, c)
        return first, second, third - x * b

    planted = Attractor(right.field, wrong, right.mean, right.sd)
    monkeypatch.setitem(ATTRACTORS, "lorenz", planted)
    with pytest.raises(AssertionError):
        assert_largest(exponents("lorenz", replicas=64, time=10.0), 0.906)


def test_world_is_its_attractors_mixed() -> None:
    """Against arrays of one attractor at a time, and P_k written out."""
    world = World(n=40, count=5, dt=DT, wiring=3)
    world.reset(4)
    assert world.kinds == ("lorenz", "roessler", "thomas", "lorenz", "roessler")
    expected = np.zeros((8, 40))
    for k, kind in enumerate(world.kinds):
        system, columns = ATTRACTORS[kind], world.mixing[3 * k : 3 * k + 3].T
        np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-14)
        at = tuple(world.points[k, axis : axis + 1] for axis in range(3))
        for row in range(8):
            expected[row] += columns @ ((np.concatenate(at) - system.mean) / system.sd)
            at = rk4(system.field, at, DT)
    np.testing.assert_allclose(world.advance(7), expected, atol=PHYSICS_LOOP)
    np.testing.assert_allclose(world.advance(2)[0], expected[-1], atol=PHYSICS_LOOP)


def test_world_seeds() -> None:
    world = World(n=10, count=8, dt=DT, wiring=0)
    found = []
    for seed in (0, 1, 0):
        world.reset(seed)
        found.append(world.standard())
        assert np.abs(found[-1]).max() < 6.0, "on the attractors, in standard deviations"
    assert np.array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max(1).min() > 0.01, "every attractor begins elsewhere"
    assert not np.allclose(world.mixing, World(n=10, count=8, dt=DT, wiring=1).mixing)


def test_unknown_attractor() -> None:
    with pytest.raises(InputError, match=r"'chua'.*lorenz, roessler, thomas"):
        moments("chua")
