"""A state in numbers: what the lab measures of each piece of each layer."""

from __future__ import annotations

import math
from typing import Any

from rookery.lab import metrics
from rookery.state import State


def layers(state: State, start: State) -> list[dict[str, Any]]:
    """For each layer and piece: norm (L2), rms and max_abs in the state's units; delta (L2 over sqrt(n)), rel_delta and
    cosine against `start`, the state before the first token; of WKV matrices the mean effective and stable rank over
    the heads. A number that is not finite, or not defined, is None.
    """
    changes = metrics.compare(start, state)
    arrays = metrics.parts(state)
    found: list[dict[str, Any]] = [{} for _ in range(state.config.n_layer)]
    for name, change in changes.items():
        _, layer, piece = name.split(".")
        numbers: dict[str, float] = {
            "norm": change.rms * math.sqrt(change.n),
            "rms": change.rms,
            "max_abs": change.max_abs,
            "delta": change.delta,
            "rel_delta": change.rel_delta,
            "cosine": change.cosine,
        }
        if arrays[name].ndim == 3:
            singular = metrics.singular_values(arrays[name])
            numbers["effective_rank"] = float(metrics.effective_rank(singular).mean())
            numbers["stable_rank"] = float(metrics.stable_rank(singular).mean())
        found[int(layer)][piece] = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return found
