"""Synthetic physics: a particle in many dimensions, confined, damped, heated, and driven by chaos.

    m dv = F dt - gam v dt + sqrt(2 gam T) dW        dx = v dt        x, v in R^n
    F(x, t) = -k x - lam |x|^2 x / n + g u(t) + wells

u is the world signal (`world.World`). T = 0 is a damped driven oscillator, g = 0 a heat bath, lam = 0 without wells
linear, with a closed form. Every unit is relative: lengths, masses and times are the model's own.

Couplings to a language model, off unless chosen:

text->physics  `step(token)` adds the impulse `push` along the token's own direction, a random unit vector that depends
               on the token's id and `wiring` only: m v grows by it at the tick's begin (overdamped: gam x does).
physics->text  `signal()` gives one number a tick, the position along one random unit vector (of `wiring`), in the
               model's units of length, 0 on average. Nothing here uses it: a host may add it, times a gain of its own,
               to a token's logit or to the sampling temperature, and should say which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from rookery.errors import InputError
from rookery.lab.substrates.common import Array, Float64, Snapshot, displacement, put_back, stream
from rookery.lab.substrates.integrators import Baoab, EulerMaruyama, Integrator
from rookery.lab.substrates.world import World

Mode: TypeAlias = Literal["underdamped", "overdamped"]
Coupling: TypeAlias = Literal["none", "text->physics", "physics->text", "both"]

_WHOLE = {"n": 3, "attractors": 1, "inner_steps": 1, "patterns": 0, "wiring": 0}
_REAL = {
    "k": "", "lam": "of 0 or more", "gam": "of 0 or more", "m": "above 0", "T": "of 0 or more", "g": "",
    "dt": "above 0", "radius": "above 0", "depth": "", "sharpness": "above 0", "push": "",
}  # fmt: skip
_WORLD_DT = 0.02  # above it a Runge-Kutta step of the Lorenz system is visibly wrong


@dataclass(kw_only=True, eq=False)
class Physics:
    """A `Substrate` with the components "position" [n], "velocity" [n] (underdamped) and "world" [attractors, 3] (where
    g is not 0; standard deviations). Settings, all relative; a wrong one raises InputError:

    n: dimensions. attractors: of the world signal, see World. inner_steps: integration steps of size dt a tick.
    k, lam: linear and cubic stiffness. gam: friction. m: mass. T: temperature. g: gain of the world signal.
    radius: hold x on the sphere |x| = radius and v in its tangent space, projected after every step, which wants |v| dt
        far below it (at a tenth of it v^2 is 7 % too small); None: all of R^n.
    mode: "overdamped" drops the inertia, gam dx = F dt + sqrt(2 gam T) dW, by Euler-Maruyama; else BAOAB.
    patterns: so many stored random unit vectors p pull as wells (a Hopfield network with the energy
        -depth/sharpness log sum exp(sharpness p.x)); at T = g = lam = 0 x rests near p depth/k.
    coupling, push: see the module. wiring: seed of all that is fixed (mixing, patterns, directions); the seed of
        `reset` is that of the run (noise, where it begins).

    It begins in the heat bath's equilibrium at lam = 0: x of variance T/k (0 where k is not above 0), v of T/m.
    """

    name: str = field(default="physics", init=False)

    n: int = 512
    attractors: int = 8
    inner_steps: int = 10
    k: float = 1.0
    lam: float = 0.1
    gam: float = 0.5
    m: float = 1.0
    T: float = 0.01
    g: float = 0.5
    dt: float = 0.01
    radius: float | None = None
    mode: Mode = "underdamped"
    patterns: int = 0
    depth: float = 1.0
    sharpness: float = 10.0
    coupling: Coupling = "none"
    push: float = 1.0
    wiring: int = 0

    tick: int = field(default=0, init=False)
    position: Float64 = field(init=False, repr=False)
    velocity: Float64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        self.position, self.velocity = np.zeros(self.n), np.zeros(self.n)
        self._world = World(self.n, self.attractors, self.dt, self.wiring) if self.g else None
        self._wells = _units(self.patterns, self.n, stream(self.wiring, "patterns"))
        self._ear = _units(1, self.n, stream(self.wiring, "signal"))[0]
        self._integrator: Integrator = (
            EulerMaruyama(self.dt, self.gam, self.T)
            if self.mode == "overdamped"
            else Baoab(self.dt, self.m, self.gam, self.T)
        )
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Begin anew. The first use of a seed takes the attractors through their burn-in, about 0.1 s."""
        self.tick = 0
        self._rng = stream(seed, "noise")
        start = stream(seed, "start")
        self.position[:] = start.standard_normal(self.n) * (math.sqrt(self.T / self.k) if self.k > 0.0 else 0.0)
        self.velocity[:] = start.standard_normal(self.n) * math.sqrt(self.T / self.m)
        if self.radius is not None and not self.position.any():
            self.position[:] = start.standard_normal(self.n)
        self._project()
        if self.mode == "overdamped":
            self.velocity[:] = 0.0
        if self._world:
            self._world.reset(seed)

    def step(self, token: int | None = None) -> None:
        """`inner_steps` steps of size dt, after the token's impulse where text is coupled in."""
        if token is not None and self.coupling in ("text->physics", "both"):
            self._strike(token)
        drive = self.g * self._world.advance(self.inner_steps) if self._world else np.zeros((self.inner_steps + 1, 1))
        noise = self._rng.standard_normal((self.inner_steps, self.n)) if self.T else np.zeros((self.inner_steps, 1))
        x, v = self.position, self.velocity
        force = self.force(x, drive[0])
        for kick, driven in zip(noise, drive[1:], strict=True):
            force = self._integrator.step(x, v, force, partial(self.force, drive=driven), kick)
            if self.radius is not None:
                self._project()
                force = self.force(x, driven)
        self.tick += 1

    def force(self, x: Float64, drive: Float64 | float = 0.0) -> Float64:
        """F(x) [n], and the world's part of it `drive`."""
        total: Float64 = x * -(self.k + self.lam / self.n * float(x @ x))
        if self.patterns:
            overlap = self.sharpness * (self._wells @ x)
            weight = np.exp(overlap - overlap.max())
            total += self.depth / weight.sum() * (weight @ self._wells)
        total += drive
        return total

    def energy(self) -> float:
        """Kinetic and potential energy of the present state without the world signal; relative."""
        square = float(self.position @ self.position)
        kinetic = 0.5 * self.m * float(self.velocity @ self.velocity)
        potential = 0.5 * self.k * square + 0.25 * self.lam * square**2 / self.n
        if self.patterns:
            overlap = self.sharpness * (self._wells @ self.position)
            potential -= self.depth / self.sharpness * float(np.logaddexp.reduce(overlap))
        return kinetic + potential

    def signal(self) -> float | None:
        """The channel physics->text, see the module; None where it is not coupled."""
        return float(self._ear @ self.position) if self.coupling in ("physics->text", "both") else None

    def snapshot(self) -> Snapshot:
        return Snapshot.take(self.name, self.tick, self._arrays(), self._rng)

    def restore(self, snapshot: Snapshot) -> None:
        self.tick = put_back(snapshot, self.name, self._arrays(), self._rng)

    def components(self) -> dict[str, Array]:
        found: dict[str, Array] = {"position": self.position.copy()}
        if self.mode == "underdamped":
            found["velocity"] = self.velocity.copy()
        if self._world:
            found["world"] = self._world.standard()
        return found

    def perturb(self, component: str, direction: Array, size: float) -> None:
        """See Substrate. On a sphere, x and v are projected back onto it."""
        by = displacement(self.components(), component, direction, size)
        if component == "world" and self._world:
            self._world.shift(by)
        else:
            (self.position if component == "position" else self.velocity)[:] += by
            self._project()

    def logits(self) -> None:
        return None

    def _arrays(self) -> dict[str, Float64]:
        mine = {"position": self.position, "velocity": self.velocity}
        return mine | {"world": self._world.points} if self._world else mine

    def _strike(self, token: int) -> None:
        impulse = self.push * _units(1, self.n, stream(self.wiring, "token", token))[0]
        if self.mode == "overdamped":
            self.position += impulse / self.gam
        else:
            self.velocity += impulse / self.m
        self._project()

    def _project(self) -> None:
        """Onto the sphere, where there is one."""
        if self.radius is not None:
            x, v = self.position, self.velocity
            x *= self.radius / math.sqrt(x @ x)
            v -= x * (float(v @ x) / self.radius**2)

    def _check(self) -> None:
        for name, least in _WHOLE.items():
            value: Any = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise InputError(f"physics {name}={value!r}: wanted a whole number of {least} or more")
        for name, wanted in _REAL.items():
            value = getattr(self, name)
            if name == "radius" and value is None:
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"physics {name}={value!r}: wanted a finite number")
            if (wanted == "above 0" and value <= 0.0) or (wanted == "of 0 or more" and value < 0.0):
                raise InputError(f"physics {name}={value!r}: wanted a number {wanted}")
        for name, known in (("mode", get_args(Mode)), ("coupling", get_args(Coupling))):
            if getattr(self, name) not in known:
                raise InputError(f"physics {name}={getattr(self, name)!r}: wanted one of {', '.join(known)}")
        self._check_together()

    def _check_together(self) -> None:
        if self.mode == "overdamped" and self.gam == 0.0:
            raise InputError("physics gam=0 with mode='overdamped': wanted friction above 0")
        if self.k < 0.0 and self.lam == 0.0 and self.radius is None:
            raise InputError(f"physics k={self.k:g} with lam=0: nothing confines the position; wanted lam above 0")
        limit = 2.0 * self.gam / self.dt if self.mode == "overdamped" else 4.0 * self.m / self.dt**2
        if self.k >= limit:
            raise InputError(f"physics k={self.k:g}, dt={self.dt:g}: unstable from k={limit:g} on; wanted a smaller dt")
        if self.g and self.dt > _WORLD_DT:
            raise InputError(f"physics dt={self.dt:g}: the world signal wants at most {_WORLD_DT} (or g=0)")


def _units(count: int, n: int, rng: np.random.Generator) -> Float64:
    """[count, n] random unit vectors."""
    rows = rng.standard_normal((count, n))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
