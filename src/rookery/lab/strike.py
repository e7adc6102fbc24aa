"""What a push does to a substrate that goes on reading the same tokens: return, effect on the next token, growth.

Relative sizes are of the component's own L2 norm. V vocabulary, R ticks after the push.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.lab import metrics
from rookery.lab.drive import Components, Path_, follow
from rookery.lab.metrics.arrays import norm
from rookery.lab.motion import short
from rookery.lab.sensitivity import next_token_effect
from rookery.lab.substrates import Substrate, stream

Array: TypeAlias = npt.NDArray[Any]
Record: TypeAlias = dict[str, Any]

APART = 1e-4  # relative distance of two neighbours whose growth is measured, kept at that
SETTLE = 8  # ticks in which their distance turns to the direction that grows most, not counted


def direction(shape: tuple[int, ...], seed: int, *labels: str | int) -> Array:
    return stream(seed, "direction", *labels).standard_normal(shape)


@np.errstate(over="ignore", invalid="ignore")  # an attractor pushed out of its basin: NaN, which is reported
def recovery(
    substrate: Substrate, path: Path_, struck: int, tokens: Sequence[int], per_tick: int, size: float,
    seed: int, prompt: int, together: bool = False,
) -> Record:  # fmt: skip
    """By component that is pushed: its own distance ||x' - x|| / ||x|| from the undisturbed path after each tick
    [R + 1]; the root mean square of all components' [R + 1]; the KL of the next token [R], in nats.

    together: push all components at once, which is the same where none hears of another, and quicker.
    """
    names = [name for name, rows in path.states.items() if rows[struck].any()]
    found: Record = {}
    for group in [names] if together and names else [[name] for name in names]:
        substrate.restore(path.snapshot)
        for name in group:
            substrate.perturb(name, direction(path.states[name].shape[1:], seed, prompt, name), size)
        curves: dict[str, list[float]] = {name: [] for name in group}
        kl: list[float] = []
        every: list[float] = []

        def look(
            tick: int,
            now: Substrate,
            curves: dict[str, list[float]] = curves,
            kl: list[float] = kl,
            every: list[float] = every,
        ) -> None:
            components, logits, before = now.components(), now.logits(), path.logits[tick]
            apart = {name: _distance(part, path.states[name][struck + tick]) for name, part in components.items()}
            every.append(float(np.sqrt(np.mean(np.square(list(apart.values()))))))
            for name, curve in curves.items():
                curve.append(apart[name])
            if tick and logits is not None and before is not None:
                kl.append(float(metrics.kl(before, logits)))

        follow(substrate, tokens, per_tick, look)
        found |= {name: {"curve": short(curve), "all": short(every), "kl": short(kl)} for name, curve in curves.items()}
    return found


def _distance(x: Array, y: Array) -> float:
    length = norm(y)
    return norm(x.astype(np.float64) - y) / (length or 1.0)


def response(substrate: Substrate, path: Path_, token: int, seed: int, prompt: int) -> Record:
    """By component: nats of KL of the next token per squared relative push, once `token` was read after it.

    None where no range of pushes gives a proportional answer; a substrate without logits has no entries.
    """
    substrate.restore(path.snapshot)
    names = [name for name, part in substrate.components().items() if part.any()]
    if substrate.logits() is None or not names:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was not flat is None here, and counted in the report
        effects = next_token_effect(substrate, [token], names, directions=1, seed=1000 * prompt + seed)
    return {effect.component: short(effect.kl) if np.isfinite(effect.kl) else None for effect in effects}


@np.errstate(over="ignore", invalid="ignore")
def growth(substrate: Substrate, path: Path_, struck: int, tokens: Sequence[int], per_tick: int, seed: int) -> float:
    """The largest exponent per tick, by two neighbours: how fast their distance grows, brought back each tick.

    Distances are those of all components, each in units of its own RMS over the path, so that none outweighs others.
    """
    scale = {name: float(np.sqrt(np.square(rows).mean())) or 1.0 for name, rows in path.states.items()}
    near = {name: direction(rows.shape[1:], seed, name) for name, rows in path.states.items()}
    total = counted = 0.0
    substrate.restore(path.snapshot)
    after = len(tokens) // per_tick
    for number in range(after):
        group = tokens[number * per_tick : (number + 1) * per_tick]
        here = substrate.snapshot()
        ahead = _advanced(substrate, group)
        there = substrate.snapshot()
        substrate.restore(here)
        _displace(substrate, near, scale)
        start = _gap(substrate.components(), path.states, struck + number)
        far = _advanced(substrate, group)
        near = {name: far[name].astype(np.float64) - ahead[name] for name in far}
        rate = np.log(_norm(near, scale) / _norm(start, scale))
        if number >= min(SETTLE, after // 2):
            total, counted = total + float(rate), counted + 1
        substrate.restore(there)
    return float(short(total / counted))


def _advanced(substrate: Substrate, group: Sequence[int]) -> Components:
    for token in group:
        substrate.step(token)
    return substrate.components()


def _displace(substrate: Substrate, near: Components, scale: dict[str, float]) -> None:
    """Move by `near`, brought to the length APART."""
    shrink = APART / (_norm(near, scale) or 1.0)
    now = substrate.components()
    for name, gap in near.items():
        length, size = (norm(x) for x in (gap, now[name]))
        if length and size:
            substrate.perturb(name, gap, shrink * length / size)


def _gap(disturbed: Components, states: Components, tick: int) -> Components:
    return {name: disturbed[name].astype(np.float64) - rows[tick] for name, rows in states.items()}


def _norm(gap: Components, scale: dict[str, float]) -> float:
    return float(np.sqrt(sum(float(np.square(x / scale[name]).mean()) for name, x in gap.items())))
