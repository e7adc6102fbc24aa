"""One step of Langevin dynamics, underdamped and overdamped, in place.

x, v: position and velocity, any shape; F: force; m: mass; gam: friction; T: temperature in units of energy (Boltzmann's
constant is 1); R: standard normal noise. All units are relative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from rookery.lab.substrates.common import Float64


class Integrator(Protocol):
    """A step of size dt."""

    def step(
        self, x: Float64, v: Float64, force: Float64, after: Callable[[Float64], Float64], noise: Float64 | float
    ) -> Float64:
        """Move x and v. force: F now; after(x): F at a position at the end of the step, which is returned; noise: R in
        x's shape, or 0.
        """


class Baoab:
    """m dv = F dt - gam v dt + sqrt(2 gam T) dW, dx = v dt, by the splitting BAOAB (Leimkuhler and Matthews 2013).

    Half a kick (B), half a drift (A), friction and noise solved exactly (O), half a drift, half a kick. For a linear
    force k the stationary <x^2> is T/k at every stable step, dt^2 k/m < 4, and <v^2> is T/m (1 - dt^2 k / 4m).
    """

    def __init__(self, dt: float, m: float, gam: float, T: float) -> None:
        self.kick, self.drift = 0.5 * dt / m, 0.5 * dt
        self.keep = math.exp(-gam * dt / m)
        self.noise = math.sqrt(-math.expm1(-2.0 * gam * dt / m) * T / m)

    def step(
        self, x: Float64, v: Float64, force: Float64, after: Callable[[Float64], Float64], noise: Float64 | float
    ) -> Float64:
        v += self.kick * force
        x += self.drift * v
        v *= self.keep
        v += self.noise * noise
        x += self.drift * v
        force = after(x)
        v += self.kick * force
        return force


class EulerMaruyama:
    """gam dx = F dt + sqrt(2 gam T) dW; v is left alone.

    For a linear force k the stationary <x^2> is T/k / (1 - k dt / 2 gam).
    """

    def __init__(self, dt: float, gam: float, T: float) -> None:
        self.move = dt / gam
        self.noise = math.sqrt(2.0 * T * dt / gam)

    def step(
        self, x: Float64, v: Float64, force: Float64, after: Callable[[Float64], Float64], noise: Float64 | float
    ) -> Float64:
        x += self.move * force
        x += self.noise * noise
        return after(x)
