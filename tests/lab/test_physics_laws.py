"""The physics substrate against the laws of physics; and that each law would notice a wrong integrator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rookery.lab.substrates.common import Float64, displacement
from rookery.lab.substrates.integrators import Baoab, EulerMaruyama, Integrator
from rookery.lab.substrates.physics import Physics
from tolerances import ORDER, PHYSICS_CLOSED, PHYSICS_ENERGY, PHYSICS_LOOP, SIGMAS

LINEAR: dict[str, Any] = {"g": 0.0, "lam": 0.0}
COLD: dict[str, Any] = {"g": 0.0, "T": 0.0}
# Everything apart from 1, so that no two can be mistaken for each other.
ODD: dict[str, Any] = {"k": 2.0, "m": 0.5, "T": 0.03, "gam": 0.7}

Planted = Callable[[Physics], Integrator]


def physics(planted: Planted | None = None, **settings: Any) -> Physics:
    made = Physics(**settings)
    if planted:
        made._integrator = planted(made)
    return made


def assert_variance(values: list[Float64], expected: float) -> None:
    """Mean 0 and variance `expected`, for independent normal values: the interval of a chi-square."""
    ratio = float(np.mean(np.square(values))) / expected
    assert abs(ratio - 1.0) < SIGMAS * math.sqrt(2.0 / np.size(values)), ratio


def equipartition(planted: Planted | None = None) -> None:
    """<v^2> = T/m, from a cold begin, whatever the potential. A sample every 20 units of time; v forgets in 1.4."""
    p = physics(planted, g=0.0, lam=0.1, dt=0.04, inner_steps=500, **ODD)
    p.position[:], p.velocity[:] = 0.0, 0.0
    p.step()
    samples = []
    for _ in range(20):
        p.step()
        samples.append(p.components()["velocity"])
    assert_variance(samples, 0.03 / 0.5)


def linear_bath(planted: Planted | None = None) -> None:
    """lam = 0: <x^2> = T/k at any step size, <v^2> = T/m (1 - dt^2 k/4m); 0.8 is near the edge of stability."""
    p = physics(planted, dt=0.8, inner_steps=25, **LINEAR, **ODD)
    positions, velocities = [], []
    for _ in range(80):
        p.step()
        positions.append(p.components()["position"])
        velocities.append(p.components()["velocity"])
    assert_variance(positions, 0.03 / 2.0)
    assert_variance(velocities, 0.03 / 0.5 * (1.0 - 0.8**2 * 2.0 / (4.0 * 0.5)))


def stretched(planted: Planted | None = None, **settings: Any) -> Physics:
    """Cold, let go at a random place, about 23 units of length away."""
    p = physics(planted, **COLD, **settings)
    p.position[:] = np.random.default_rng(7).standard_normal(p.n)
    return p


def energy_falls(planted: Planted | None = None) -> None:
    """At T = 0 and g = 0 the energy never rises, and in 40 units of time it is gone; without friction it stays."""
    p = stretched(planted, lam=0.1, inner_steps=3)
    begin = before = p.energy()
    for _ in range(1300):
        p.step()
        after = p.energy()
        assert after - before <= PHYSICS_ENERGY * begin
        before = after
    assert before < 1e-6 * begin

    free = stretched(planted, lam=0.1, gam=0.0)
    for _ in range(100):
        free.step()
        assert abs(free.energy() / begin - 1.0) < PHYSICS_ENERGY


def linear_decay(planted: Planted | None = None) -> None:
    """x'' = -(k/m) x - (gam/m) x' has exp(s t) with s^2 + (gam/m) s + k/m = 0: rate and frequency."""
    k, m, gam = 2.0, 0.5, 0.3
    p = stretched(planted, lam=0.0, k=k, m=m, gam=gam)
    s = complex(-gam / (2.0 * m), math.sqrt(k / m - (gam / (2.0 * m)) ** 2))
    x, v = p.position.copy(), p.velocity.copy()
    mode = v - s.conjugate() * x  # grows by exp(s t): the other mode is projected out
    for _ in range(100):
        p.step()
    t = 100 * p.inner_steps * p.dt
    now = p.velocity - s.conjugate() * p.position
    gain = np.vdot(mode, now) / np.vdot(mode, mode)
    assert abs(math.log(abs(gain)) / t / s.real - 1.0) < PHYSICS_CLOSED
    np.testing.assert_allclose(
        now, mode * np.exp(s * t), rtol=0, atol=PHYSICS_CLOSED * float(np.abs(mode).max()) * s.imag
    )


LAWS = [equipartition, linear_bath, energy_falls, linear_decay]


@pytest.mark.parametrize("law", LAWS)
def test_law(law: Callable[..., None]) -> None:
    law()


class Misordered(Baoab):
    """Whole kick, whole drift, then the bath: symplectic Euler, of order 1."""

    def step(
        self, x: Float64, v: Float64, force: Float64, after: Callable[[Float64], Float64], noise: Float64 | float
    ) -> Float64:
        v += 2.0 * self.kick * force
        x += 2.0 * self.drift * v
        v *= self.keep
        v += self.noise * noise
        return after(x)


class BathLast(Baoab):
    """Kick, drift, kick, and the bath at the end: all halves there, in another order."""

    def step(
        self, x: Float64, v: Float64, force: Float64, after: Callable[[Float64], Float64], noise: Float64 | float
    ) -> Float64:
        v += self.kick * force
        x += 2.0 * self.drift * v
        force = after(x)
        v += self.kick * force
        v *= self.keep
        v += self.noise * noise
        return force


def altered(**factors: float) -> Planted:
    """BAOAB with some of its coefficients multiplied."""

    def plant(p: Physics) -> Integrator:
        made = Baoab(p.dt, p.m, p.gam, p.T)
        for name, factor in factors.items():
            setattr(made, name, getattr(made, name) * factor)
        return made

    return plant


def of(kind: type[Baoab]) -> Planted:
    return lambda p: kind(p.dt, p.m, p.gam, p.T)


@pytest.mark.parametrize(
    ("law", "planted"),
    [
        pytest.param(equipartition, altered(noise=1.05), id="equipartition: noise 5 % too strong"),
        pytest.param(equipartition, altered(noise=math.sqrt(0.5)), id="equipartition: noise without its factor 2"),
        pytest.param(equipartition, lambda p: Baoab(p.dt, 1.0, p.gam, p.T), id="equipartition: mass forgotten"),
        pytest.param(linear_bath, altered(noise=1.05), id="linear bath: noise 5 % too strong"),
        pytest.param(linear_bath, of(Misordered), id="linear bath: whole steps"),
        pytest.param(linear_bath, of(BathLast), id="linear bath: bath last"),
        pytest.param(energy_falls, of(Misordered), id="energy: whole steps"),
        pytest.param(energy_falls, lambda p: Baoab(p.dt, p.m, -p.gam, p.T), id="energy: friction's sign"),
        pytest.param(energy_falls, altered(kick=1.01), id="energy: kicks 1 % too strong"),
        pytest.param(linear_decay, of(Misordered), id="linear decay: whole steps"),
        pytest.param(linear_decay, lambda p: Baoab(p.dt, p.m, 0.999 * p.gam, p.T), id="linear decay: friction"),
        pytest.param(linear_decay, altered(drift=0.5), id="linear decay: half a drift missing"),
    ],
)
def test_law_notices(law: Callable[..., None], planted: Planted) -> None:
    with pytest.raises(AssertionError):
        law(planted)


def slope(make: Callable[[float], Any], T: float) -> float:
    """Of log error over log step. The error: RMS distance in x to a run of step h over the same Brownian paths, 2 units
    of time in an anharmonic well.

    The O step solves friction and noise exactly, so the noise of a long step is that of its short ones, each damped by
    those after it.
    """
    h, steps, replicas, ratios = 2.0 / 2048, 2048, 400, [16, 32, 64]
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((steps, replicas)) if T else np.zeros((steps, 1))
    begin = rng.standard_normal(replicas)

    def run(ratio: int) -> Float64:
        fine, coarse = make(h), make(ratio * h)
        weights = getattr(fine, "keep", 1.0) ** np.arange(ratio - 1, -1, -1) * (fine.noise / (coarse.noise or 1.0))
        x, v = begin.copy(), np.zeros(replicas)
        force = -x - x**3
        for kicks in noise.reshape(-1, ratio, noise.shape[1]):
            force = coarse.step(x, v, force, lambda at: -at - at**3, weights @ kicks)
        return x

    exact = run(1)
    errors = [math.sqrt(np.mean((run(ratio) - exact) ** 2)) for ratio in ratios]
    return float(np.polyfit(np.log(ratios), np.log(errors), 1)[0])


@pytest.mark.parametrize(
    ("make", "T", "order"),
    [
        pytest.param(lambda h: Baoab(h, 1.0, 0.5, 0.5), 0.5, 1.0, id="BAOAB, strong"),
        pytest.param(lambda h: Baoab(h, 1.0, 0.5, 0.0), 0.0, 2.0, id="BAOAB, T=0"),
        pytest.param(lambda h: EulerMaruyama(h, 1.0, 0.5), 0.5, 1.0, id="Euler-Maruyama, strong"),
    ],
)
def test_order(make: Callable[[float], Any], T: float, order: float) -> None:
    assert abs(slope(make, T) - order) < ORDER


def test_order_notices() -> None:
    assert abs(slope(lambda h: Misordered(h, 1.0, 0.5, 0.0), 0.0) - 2.0) > ORDER


def test_overdamped_bath() -> None:
    """<x^2> = T/k / (1 - k dt/2 gam), Euler-Maruyama's own; at T = 0 each step multiplies by 1 - k dt/gam."""
    settings: dict[str, Any] = {"mode": "overdamped", "dt": 0.2, "inner_steps": 30}
    p = Physics(**LINEAR, **ODD, **settings)
    samples = []
    for _ in range(60):
        p.step()
        samples.append(p.components()["position"])
    assert_variance(samples, 0.03 / 2.0 / (1.0 - 2.0 * 0.2 / (2.0 * 0.7)))

    cold = Physics(g=0.0, lam=0.0, **ODD | {"T": 0.0}, **settings)
    cold.position[:] = begin = np.linspace(-1.0, 1.0, cold.n)
    cold.step()
    np.testing.assert_allclose(cold.position, begin * (1.0 - 2.0 * 0.2 / 0.7) ** 30, rtol=1e-12)
    assert not cold.velocity.any()


@pytest.mark.parametrize(
    "settings", [{"lam": 3.0}, {"patterns": 5, "depth": 4.0}, {"k": -1.0, "lam": 2.0, "patterns": 2}]
)
def test_force_is_the_slope_of_the_energy(settings: dict[str, Any]) -> None:
    p = Physics(n=12, g=0.0, **settings)
    x = np.random.default_rng(1).standard_normal(12)

    def energy(at: Float64) -> float:
        p.position[:] = at
        return p.energy()

    slope = [(energy(x + step) - energy(x - step)) / 2e-5 for step in 1e-5 * np.eye(12)]
    np.testing.assert_allclose(p.force(x), -np.array(slope), atol=1e-7)


def test_wells_hold_what_they_store() -> None:
    p = Physics(**COLD, lam=0.0, gam=2.0, patterns=20, depth=3.0)
    for number in (0, 7):
        stored = p._wells[number]
        p.position[:] = stored + displacement(
            {"x": stored}, "x", np.random.default_rng(number).standard_normal(p.n), 0.8
        )
        p.velocity[:] = 0.0
        for _ in range(200):
            p.step()
        np.testing.assert_allclose(p.position, 3.0 * stored, atol=1e-2)


def test_sphere() -> None:
    """x stays on the sphere and v in its tangent space; the n - 1 directions left hold T/m each."""
    p = Physics(g=0.0, radius=20.0, dt=0.02, inner_steps=500, T=0.03, gam=1.0)
    samples = []
    for _ in range(20):
        p.step()
        assert abs(np.linalg.norm(p.position) - 20.0) < PHYSICS_LOOP
        assert abs(p.position @ p.velocity) < PHYSICS_LOOP
        samples.append(p.components()["velocity"])
    assert_variance(samples, 0.03 * (1.0 - 1.0 / p.n))


def test_sphere_without_force_is_a_great_circle() -> None:
    """On radius 2 at speed 1, after 2 pi of time: the antipode."""
    p = Physics(**COLD, k=0.0, lam=0.0, gam=0.0, radius=2.0, inner_steps=628, dt=math.pi / 314)
    p.velocity[:] = np.linspace(1.0, 2.0, p.n)
    p._project()
    p.velocity /= np.linalg.norm(p.velocity)
    begin = p.position.copy()
    p.step()
    np.testing.assert_allclose(p.position, -begin, atol=1e-3 * 2.0)
