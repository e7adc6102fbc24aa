"""Nulls: states that mean nothing, by which every metric is calibrated. Gaussian, each channel on its own.

    frozen  never changes                                        a delta of 0
    iid     a fresh draw each tick                               what pure noise scores
    ar1     x' - mean = rho (x - mean) + sqrt(1 - rho^2) sd R    noise that is as sluggish as the reference

They are one process: frozen is rho = 1, iid is rho = 0. A perturbation is added to the state and then forgotten at that
rate: never, at once, by the factor rho a tick.

reference: what to match, channel by channel in mean, variance (population) and, for ar1, lag-1 autocorrelation. Either
one trajectory [ticks, ...], called "state", or several by component name. Without one: "state" [n] of mean 0 and
variance 1. Units are the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, StateError
from rookery.lab.substrates.common import Array, Float64, Snapshot, displacement, put_back, stream

Reference: TypeAlias = npt.ArrayLike | Mapping[str, npt.ArrayLike]


class Null:
    """A `Substrate` of independent stationary AR(1) channels. tokens are ignored.

    rho: per component, lag-1 autocorrelation, one number or one for each channel, -1 to 1.
    """

    def __init__(
        self, name: str, mean: Mapping[str, Float64], sd: Mapping[str, Float64], rho: Mapping[str, Float64 | float]
    ) -> None:
        self.name = name
        self._mean, self._sd = dict(mean), dict(sd)
        self._rho = {key: np.asarray(value, np.float64) for key, value in rho.items()}
        self._fresh = {key: np.sqrt(1.0 - self._rho[key] ** 2) * sd[key] for key in sd}
        self._away = {key: np.zeros(value.shape) for key, value in mean.items()}  # x - mean: exact where rho is 1
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """A draw from the stationary distribution."""
        self.tick = 0
        self._rng = stream(seed, self.name)
        for key, away in self._away.items():
            away[...] = self._sd[key] * self._rng.standard_normal(away.shape)

    def step(self, token: int | None = None) -> None:
        for key, away in self._away.items():
            away *= self._rho[key]
            away += self._fresh[key] * self._rng.standard_normal(away.shape)
        self.tick += 1

    def snapshot(self) -> Snapshot:
        return Snapshot.take(self.name, self.tick, self._away, self._rng)

    def restore(self, snapshot: Snapshot) -> None:
        self.tick = put_back(snapshot, self.name, self._away, self._rng)

    def components(self) -> dict[str, Array]:
        return {key: self._mean[key] + away for key, away in self._away.items()}

    def perturb(self, component: str, direction: Array, size: float) -> None:
        by = displacement(self.components(), component, direction, size)
        self._away[component] += by

    def logits(self) -> None:
        return None


class Nulls:
    """`frozen`, `iid` and `ar1` side by side: a `Substrate` whose components are theirs, "iid.state" and so on."""

    name = "nulls"

    def __init__(self, reference: Reference | None = None, n: int = 512, rho: float | None = None) -> None:
        self.members = {
            "frozen": frozen(reference, n), "iid": iid(reference, n), "ar1": ar1(reference, n, rho),
        }  # fmt: skip
        self.tick = 0

    def reset(self, seed: int = 0) -> None:
        self.tick = 0
        for member in self.members.values():
            member.reset(seed)

    def step(self, token: int | None = None) -> None:
        self.tick += 1
        for member in self.members.values():
            member.step(token)

    def snapshot(self) -> dict[str, Snapshot]:
        return {key: member.snapshot() for key, member in self.members.items()}

    def restore(self, snapshot: Mapping[str, Snapshot]) -> None:
        if not isinstance(snapshot, Mapping) or set(snapshot) != set(self.members):
            raise StateError(f"wanted a snapshot of the nulls {', '.join(self.members)}")
        for key, member in self.members.items():
            member.restore(snapshot[key])
            self.tick = member.tick

    def components(self) -> dict[str, Array]:
        return {
            f"{key}.{name}": value
            for key, member in self.members.items()
            for name, value in member.components().items()
        }

    def perturb(self, component: str, direction: Array, size: float) -> None:
        key, _, name = component.partition(".")
        if key not in self.members:
            raise InputError(f"component {component!r}: wanted one of {', '.join(self.components())}")
        self.members[key].perturb(name, direction, size)

    def logits(self) -> None:
        return None


def frozen(reference: Reference | None = None, n: int = 512) -> Null:
    """A state that never changes: one draw. See the module for `reference`; n: channels without one."""
    mean, sd, rho = _matched(reference, n)
    return Null("frozen", mean, sd, dict.fromkeys(rho, 1.0))


def iid(reference: Reference | None = None, n: int = 512) -> Null:
    """A fresh Gaussian draw each tick. See the module for `reference`; n: channels without one."""
    mean, sd, rho = _matched(reference, n)
    return Null("iid", mean, sd, dict.fromkeys(rho, 0.0))


def ar1(reference: Reference | None = None, n: int = 512, rho: float | None = None) -> Null:
    """Noise with a memory of one tick. See the module for `reference`; n: channels without one.

    rho: -1 to 1; None: the reference's, else 0.9. Estimated from a trajectory of N ticks it is (1 + 4 rho)/N too low on
    average, so give long ones.
    """
    mean, sd, found = _matched(reference, n)
    if rho is None:
        return Null("ar1", mean, sd, found)
    if not -1.0 <= rho <= 1.0:
        raise InputError(f"rho={rho!r}: wanted a number from -1 to 1")
    return Null("ar1", mean, sd, dict.fromkeys(found, rho))


def _matched(reference: Reference | None, n: int) -> tuple[dict[str, Float64], dict[str, Float64], dict[str, Float64]]:
    """Mean, standard deviation and lag-1 autocorrelation of every channel."""
    if reference is None:
        if n < 1:
            raise InputError(f"n={n!r}: wanted a whole number of 1 or more")
        return {"state": np.zeros(n)}, {"state": np.ones(n)}, {"state": np.full(n, 0.9)}
    runs = reference if isinstance(reference, Mapping) else {"state": reference}
    if not runs:
        raise InputError("the reference has no component: wanted at least one trajectory")
    mean, sd, rho = {}, {}, {}
    for key, given in runs.items():
        run = np.asarray(given, np.float64)
        if run.ndim < 2 or len(run) < 3:
            raise InputError(f"reference {key!r} has shape {run.shape}: wanted [ticks, ...] with 3 ticks or more")
        if bad := run.size - int(np.isfinite(run).sum()):
            raise InputError(f"reference {key!r} has {bad} values that are not finite: no null can match it")
        mean[key] = run.mean(0)
        away = run - mean[key]
        power = (away**2).sum(0)
        sd[key] = np.sqrt(power / len(run))
        rho[key] = (away[1:] * away[:-1]).sum(0) / np.where(power > 0.0, power, math.inf)
    return mean, sd, rho
