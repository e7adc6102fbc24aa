"""How much an output answers to a small push, accepted only where the answer is proportional to the push."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64, norm

STEPS = tuple(float(h) for h in np.logspace(-5, -1, 9))  # four decades, two a decade: relative sizes
RUN = 3  # steps that must agree: one decade of STEPS


class Sensitivity(NamedTuple):
    """Response per unit of push (order 2: per its square). NaN where no range of steps is flat."""

    value: float
    steps: Array  # [K], ascending
    ratios: Array  # [K], response over step (order 2: step squared)
    flat: Array  # [K], the steps the value is the median of
    nonfinite: int  # steps whose response was NaN or infinite


def step_sweep(
    respond: Callable[[float], Any], steps: Sequence[float] = STEPS, order: int = 1, tolerance: float = 0.1
) -> Sensitivity:
    """Central differences of `respond(step)`, a number or an array, over a sweep of steps that spans four decades.

    order 1: ||respond(h) - respond(-h)|| / 2h. order 2, for what is least at 0, such as a KL divergence from the
    undisturbed: the mean of respond(h) and respond(-h), less respond(0), over h^2 (KL: nats per squared unit).
    Too small a step measures rounding and too large a one the curvature, so only the longest run of at least 3
    neighbouring steps whose ratios lie within `tolerance` of each other (relative) counts. Where there is none, the
    value is NaN and a UserWarning says so. Raises InputError for steps over less than four decades.
    """
    h = np.sort(float64(steps))
    if order not in (1, 2):
        raise InputError(f"order {order}: 1 or 2")
    if len(h) < RUN or h[0] <= 0 or h[-1] / h[0] < 0.999e4:
        raise InputError("steps: positive sizes over at least four decades are wanted")
    start = float64(respond(0.0)) if order == 2 else None
    with np.errstate(invalid="ignore", over="ignore"):
        ratios = np.array([_ratio(float64(respond(s)), float64(respond(-s)), s, start) for s in h.tolist()])
    flat = _flat(ratios, tolerance)
    if not flat.any():
        warnings.warn(
            f"no range of steps from {h[0]:.0e} to {h[-1]:.0e} in which the response is proportional to the push: "
            "no sensitivity is given",
            UserWarning,
            stacklevel=2,
        )
    value = float(np.median(ratios[flat])) if flat.any() else float("nan")
    return Sensitivity(value, h, ratios, flat, int(np.count_nonzero(~np.isfinite(ratios))))


def _ratio(up: Array, down: Array, step: float, start: Array | None) -> float:
    if start is None:
        return norm(up - down) / (2 * step)
    return norm((up + down) / 2 - start) / step**2


def _flat(ratios: Array, tolerance: float) -> Array:
    """The longest run of neighbours within `tolerance`; of equal ones the flattest. A response of 0 is flat too."""
    best: tuple[int, float, int] = (0, 0.0, 0)  # length, -spread, start
    for start in range(len(ratios)):
        for stop in range(start + RUN, len(ratios) + 1):
            part = ratios[start:stop]
            if not np.isfinite(part).all():
                break
            middle = float(np.median(part))
            spread = float(np.ptp(part)) / middle if middle else 0.0 if not part.any() else np.inf
            if spread <= tolerance:
                best = max(best, (stop - start, -spread, start))
    length, _, start = best
    mask = np.zeros(len(ratios), bool)
    mask[start : start + length] = True
    return mask
