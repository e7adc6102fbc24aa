"""The world signal: chaotic attractors, each seen through three directions of its own in a space of n dimensions."""

from __future__ import annotations

from functools import lru_cache
from itertools import cycle, islice

import numpy as np

from rookery.lab.substrates.attractors import ATTRACTORS, BURN_IN, DT, rk4, starts
from rookery.lab.substrates.common import Float64, stream


class World:
    """u(t) = sum over attractors of P_k z_k(t): [n], relative. z_k [3] has mean 0 and variance 1 over its attractor.

    n: dimensions, 3 or more. count: attractors, Lorenz, Roessler, Thomas in turn. dt: the step of the Runge-Kutta
    method, and its clock: one unit of time is one of each attractor's own. wiring: the seed of the matrices P_k
    [n, 3], whose columns are orthonormal; those of different attractors are not orthogonal to each other.
    """

    def __init__(self, n: int, count: int, dt: float, wiring: int) -> None:
        self.kinds = tuple(islice(cycle(ATTRACTORS), count))
        self.dt = dt
        self._mean = np.array([ATTRACTORS[kind].mean for kind in self.kinds])
        self._sd = np.array([ATTRACTORS[kind].sd for kind in self.kinds])
        normal = stream(wiring, "mixing").standard_normal((count, n, 3))
        self.mixing: Float64 = np.concatenate(list(np.linalg.qr(normal)[0].transpose(0, 2, 1)))  # [3 count, n]
        self.points: Float64 = np.zeros((count, 3))  # x, y, z of each, in its own units
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Every attractor at a random point of its own."""
        self.points[...] = _burnt_in(self.kinds, seed)

    def standard(self) -> Float64:
        """z [count, 3], in standard deviations."""
        z: Float64 = (self.points - self._mean) / self._sd
        return z

    def shift(self, by: Float64) -> None:
        """Move z by `by` [count, 3], in standard deviations."""
        self.points += by * self._sd

    def advance(self, steps: int) -> Float64:
        """Go on by `steps` steps: u [steps + 1, n], from the present to the last."""
        path = np.empty((steps + 1, *self.points.shape))
        path[0] = self.points
        for k, kind in enumerate(self.kinds):
            path[1:, k] = _path(kind, self.points[k], steps, self.dt)
        self.points[...] = path[-1]
        signal: Float64 = ((path - self._mean) / self._sd).reshape(steps + 1, -1) @ self.mixing
        return signal


def _path(kind: str, start: Float64, steps: int, dt: float) -> list[tuple[float, float, float]]:
    """The next `steps` points. Python's numbers are faster than arrays of three."""
    field = ATTRACTORS[kind].field
    x, y, z = start.tolist()
    path = []
    for _ in range(steps):
        x, y, z = rk4(field, (x, y, z), dt)
        path.append((x, y, z))
    return path


@lru_cache(maxsize=64)
def _burnt_in(kinds: tuple[str, ...], seed: int) -> Float64:
    """[count, 3] points on the attractors; kept, since the burn-in takes as long as a thousand ticks."""
    cubes = np.stack(starts(len(kinds), stream(seed, "world")), 1)
    return np.array([_path(kind, cube, BURN_IN, DT)[-1] for kind, cube in zip(kinds, cubes, strict=True)])
