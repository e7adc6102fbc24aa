"""What is said of one run of one substrate: how much it moved, how steadily, in how many dimensions.

T ticks. All numbers are relative or counts but `delta` and `rms`, which have the component's units.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.lab import metrics
from rookery.lab.substrates import stream

Array: TypeAlias = npt.NDArray[Any]
Record: TypeAlias = dict[str, Any]

WHOLE = "all"  # the components of a substrate together, one after the other
WIDTH = 64  # numbers that a state is projected to where it must be kept: distances hold to about 1/sqrt(WIDTH)


def motion(states: Mapping[str, Array]) -> Record:
    """By component, and for all together, of states [T + 1, ...]."""
    flat = {name: rows.reshape(len(rows), -1) for name, rows in states.items()}
    grams = {name: _gram(rows[1:]) for name, rows in flat.items()}
    found = {name: _component(rows, grams[name]) for name, rows in flat.items()}
    whole = np.concatenate(list(flat.values()), axis=1)
    found[WHOLE] = _component(whole, np.sum(list(grams.values()), axis=0))
    return found


def _gram(rows: Array) -> Array:
    """Inner products [T, T] of a trajectory about its mean."""
    away = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    gram: Array = away @ away.T
    return gram


def _component(rows: Array, gram: Array) -> Record:
    """Of one trajectory [T + 1, n]. `few`: what the number of ticks, rather than the state, may have decided."""
    few: list[str] = []
    memory = dimension = float("nan")
    if np.isfinite(gram).all() and np.ptp(rows[1:], axis=0).any():
        values, vectors = np.linalg.eigh(gram)
        turned = vectors * np.sqrt(np.maximum(values, 0.0))  # [T, T]: the same path, turned into fewer coordinates
        memory = _noted("memory", few, lambda: metrics.autocorrelation_time(turned).ticks)
        dimension = _noted("dimension", few, lambda: metrics.participation_ratio(turned))
        few += ["dimension"] * (dimension > (len(gram) - 1) / 2 and "dimension" not in few)
    return {
        "n": rows.shape[1],
        "rel_delta": short([metrics.rel_delta(a, b) for a, b in pairwise(rows)]),
        "delta": short([metrics.state_delta(a, b) for a, b in pairwise(rows)]),
        "memory": short(memory),
        "dimension": short(dimension),
        "rms": short(metrics.rms(rows[1:])),
        "nonfinite": metrics.nonfinite(rows[1:]),
        "few": few,
    }


def _noted(name: str, few: list[str], measure: Any) -> float:
    """`measure()`; a warning of it becomes an entry in `few`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = float(measure())
    if caught:
        few.append(name)
    return value


def ranks(states: Mapping[str, Array], every: int) -> Record:
    """Of matrices [T + 1, H, N, N]: effective and stable rank [T/every + 1, H], singular values [H, N] at the end."""
    found: Record = {}
    for name, rows in states.items():
        if rows.ndim != 4 or not rows[-1].any():
            continue
        values = metrics.singular_values(rows[::every])
        found[name] = {
            "effective": short(metrics.effective_rank(values)),
            "stable": short(metrics.stable_rank(values)),
            "spectrum": short(metrics.singular_values(rows[-1])),
        }
    return found


def sketch(states: Mapping[str, Array]) -> Record:
    """Directions of what is carried slowly, projected to [T + 1, WIDTH]: for pictures of trajectories.

    Of an RWKV that is the WKV state, without the token shifts, which are new at each token; else all components. Each
    is scaled to length 1 at each tick, so that none outweighs the others by its units.
    """
    slow = {name: rows for name, rows in states.items() if name.endswith(".wkv")} or states
    parts = []
    for name, rows in slow.items():
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        parts.append(_projected(name, flat / np.where(length > 0, length, 1.0)))
    return {"path": short(np.sum(parts, axis=0))}


def features(states: Mapping[str, Array], at: list[int]) -> Record:
    """Each component after the ticks `at`, [len(at), at most WIDTH]: for probes."""
    return {name: short(_projected(name, rows.reshape(len(rows), -1)[at])) for name, rows in states.items()}


_projections: dict[tuple[str, int], Array] = {}


def _projected(name: str, rows: Array) -> Array:
    """[R, n] -> [R, WIDTH] by a random matrix that depends on the name alone; as they are where n is not larger."""
    n = rows.shape[1]
    if n <= WIDTH:
        return np.pad(rows, ((0, 0), (0, WIDTH - n)))
    if (name, n) not in _projections:
        _projections[name, n] = stream(0, "sketch", name).standard_normal((n, WIDTH)) / np.sqrt(WIDTH)
    return rows @ _projections[name, n]


def short(values: Any) -> Any:
    """Numbers, or nested lists of them, to six digits: what is kept is read by people too."""
    array = np.asarray(values, np.float64)
    if array.ndim == 0:
        return float(f"{float(array):.6g}")
    return [short(part) for part in array]
