"""Three chaotic attractors, each three equations, and what is known of them: Lorenz, Roessler, Thomas.

Time is in each system's own units. A `field` gives the velocities (dx, dy, dz) and takes numbers or arrays alike: a
few attractors go faster as Python's numbers, an ensemble as arrays. A `tangent` is the field's linearisation at
(x, y, z) applied to (a, b, c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from rookery.errors import InputError
from rookery.lab.substrates.common import Float64, stream

DT = 0.01
BURN_IN = 10_000  # steps of DT: 100 units of time, from the cube onto the attractor

Number = TypeVar("Number", float, Float64)
Point: TypeAlias = tuple[Float64, Float64, Float64]


def _sin(angle: Number) -> Number:
    return math.sin(angle) if isinstance(angle, float) else np.sin(angle)


def _lorenz(x: Number, y: Number, z: Number) -> tuple[Number, Number, Number]:
    """Lorenz 1963: sigma 10, rho 28, beta 8/3."""
    return 10.0 * (y - x), x * (28.0 - z) - y, x * y - (8.0 / 3.0) * z


def _lorenz_tangent(x: Float64, y: Float64, z: Float64, a: Float64, b: Float64, c: Float64) -> Point:
    return 10.0 * (b - a), (28.0 - z) * a - b - x * c, y * a + x * b - (8.0 / 3.0) * c


def _roessler(x: Number, y: Number, z: Number) -> tuple[Number, Number, Number]:
    """Roessler 1976: a = b = 0.2, c = 5.7."""
    return -y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)


def _roessler_tangent(x: Float64, y: Float64, z: Float64, a: Float64, b: Float64, c: Float64) -> Point:
    return -b - c, a + 0.2 * b, z * a + (x - 5.7) * c


def _thomas(x: Number, y: Number, z: Number) -> tuple[Number, Number, Number]:
    """Thomas 1999: b = 0.18; chaos sets in at 0.208."""
    return _sin(y) - 0.18 * x, _sin(z) - 0.18 * y, _sin(x) - 0.18 * z


def _thomas_tangent(x: Float64, y: Float64, z: Float64, a: Float64, b: Float64, c: Float64) -> Point:
    return np.cos(y) * b - 0.18 * a, np.cos(z) * c - 0.18 * b, np.cos(x) * a - 0.18 * c


@dataclass(frozen=True)
class Attractor:
    """One system; mean and sd [3] of x, y, z over its attractor, as `moments` found them."""

    field: Callable[..., Any]
    tangent: Callable[..., Point]
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


ATTRACTORS = {
    "lorenz": Attractor(_lorenz, _lorenz_tangent, (-0.0010, -0.0010, 23.5497), (7.9246, 9.0114, 8.6228)),
    "roessler": Attractor(_roessler, _roessler_tangent, (0.1769, -0.8852, 0.8854), (5.1542, 4.8425, 2.8431)),
    "thomas": Attractor(_thomas, _thomas_tangent, (0.0024, 0.0026, 0.0047), (2.2687, 2.2649, 2.2678)),
}


def attractor(kind: str) -> Attractor:
    """By name. Raises InputError for another."""
    if kind not in ATTRACTORS:
        raise InputError(f"attractor {kind!r}: wanted one of {', '.join(ATTRACTORS)}")
    return ATTRACTORS[kind]


def rk4(field: Callable[..., Any], at: tuple[Number, Number, Number], dt: float) -> tuple[Number, Number, Number]:
    """From the point `at`, one step of the classical Runge-Kutta method of order 4."""
    x, y, z = at
    half, sixth = 0.5 * dt, dt / 6.0
    x1, y1, z1 = field(x, y, z)
    x2, y2, z2 = field(x + half * x1, y + half * y1, z + half * z1)
    x3, y3, z3 = field(x + half * x2, y + half * y2, z + half * z2)
    x4, y4, z4 = field(x + dt * x3, y + dt * y3, z + dt * z3)
    return (
        x + sixth * (x1 + 2.0 * (x2 + x3) + x4),
        y + sixth * (y1 + 2.0 * (y2 + y3) + y4),
        z + sixth * (z1 + 2.0 * (z2 + z3) + z4),
    )


def starts(count: int, rng: np.random.Generator) -> Point:
    """`count` points from which every attractor here is reached: uniform in the cube [-1, 1]^3."""
    x, y, z = rng.uniform(-1.0, 1.0, (3, count))
    return x, y, z


def _ensemble(kind: str, purpose: str, replicas: int, seed: int) -> Point:
    """`replicas` independent points on the attractor: random starts after the burn-in."""
    point = starts(replicas, stream(seed, purpose, kind))
    for _ in range(BURN_IN):
        point = rk4(attractor(kind).field, point, DT)
    return point


def moments(kind: str, replicas: int = 4096, time: float = 1000.0, seed: int = 0) -> tuple[Float64, Float64, Float64]:
    """Mean [3] and standard deviation [3] over the attractor, and the standard error [3] of the means.

    Time averages over `time` units, after the burn-in, of `replicas` runs from random starts, which are independent.
    The constants in ATTRACTORS are what the defaults give, rounded to four digits after the point; the largest
    standard error of a mean is 0.004 (the defaults take a minute and a half in all).
    """
    point = _ensemble(kind, "moments", replicas, seed)
    steps = round(time / DT)
    total, squares = np.zeros((3, replicas)), np.zeros((3, replicas))
    for _ in range(steps):
        point = rk4(attractor(kind).field, point, DT)
        total += point
        squares += np.square(point)
    means = total / steps
    mean = means.mean(1)
    sd = np.sqrt((squares / steps).mean(1) - mean**2)
    return mean, sd, means.std(1, ddof=1) / math.sqrt(replicas)


def exponents(
    kind: str, replicas: int = 64, time: float = 200.0, settle: float = 20.0, every: int = 10, seed: int = 0
) -> Float64:
    """Lyapunov exponents [replicas, 3], largest first, per unit of the system's time: one estimate a run.

    The variational equations go along with the state through the same Runge-Kutta steps; every `every` steps a QR
    factorisation keeps the three directions apart, and log |diag R| summed over `time` gives the exponents (Benettin
    et al. 1980). `settle` units after the burn-in let the directions turn first and are not counted. The runs start
    at random, so their spread gives an interval for the mean.
    """
    system, point = attractor(kind), _ensemble(kind, "exponents", replicas, seed)

    def both(x: Float64, y: Float64, z: Float64) -> Point:
        """[replicas, 4]: column 0 is the point, the other three are the directions there."""
        at = (x[:, :1], y[:, :1], z[:, :1])
        moved = system.tangent(*at, x[:, 1:], y[:, 1:], z[:, 1:])
        x, y, z = (np.hstack(pair) for pair in zip(system.field(*at), moved, strict=True))
        return x, y, z

    directions = np.broadcast_to(np.eye(3), (replicas, 3, 3))
    growth = np.zeros((replicas, 3))
    rounds, settling = round(time / DT / every), round(settle / DT / every)
    for turn in range(settling + rounds):
        x, y, z = (np.column_stack([point[axis], directions[:, axis]]) for axis in range(3))
        for _ in range(every):
            x, y, z = rk4(both, (x, y, z), DT)
        point = x[:, 0], y[:, 0], z[:, 0]
        directions, r = np.linalg.qr(np.stack([x[:, 1:], y[:, 1:], z[:, 1:]], 1))
        if turn >= settling:
            growth += np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))
    return growth / (rounds * every * DT)
