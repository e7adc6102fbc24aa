"""A state, or two, as rows of a table: by layer and head. Norms are in the state's units, ranks are counts."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from rookery.lab import metrics
from rookery.state import State

Line: TypeAlias = dict[str, Any]


def contents(state: State) -> list[Line]:
    """A row for every piece, and below a WKV state one for each head, with its ranks."""
    found: list[Line] = []
    for name, part in metrics.parts(state).items():
        found.append({"piece": name, "head": None, **_size(part)})
        if part.ndim == 3:
            for head, matrix in enumerate(part):
                values = metrics.singular_values(matrix)
                found.append(
                    {
                        "piece": name,
                        "head": head,
                        **_size(matrix),
                        "largest_singular": _finite(values[0]),
                        "effective_rank": _finite(metrics.effective_rank(values)),
                        "stable_rank": _finite(metrics.stable_rank(values)),
                    }
                )
    return found


def difference(a: State, b: State) -> list[Line]:
    """A row for every piece, `b` after `a`, and below a WKV state one for each head. Raises StateError, InputError."""
    metrics.state_delta(metrics.vector(a), metrics.vector(b))  # of two sizes: refused before any row
    found: list[Line] = []
    before, after = metrics.parts(a), metrics.parts(b)
    for name, change in metrics.compare(before, after).items():
        found.append({"piece": name, "head": None, **_change(change)})
        if before[name].ndim == 3:
            for head, (x, y) in enumerate(zip(before[name], after[name], strict=True)):
                found.append({"piece": name, "head": head, **_change(metrics.compare({"": x}, {"": y})[""])})
    return found


def _size(part: Any) -> Line:
    return {
        "numbers": int(np.size(part)),
        "rms": _finite(metrics.rms(part)),
        "max_abs": _finite(metrics.max_abs(part)),
        "nonfinite": metrics.nonfinite(part),
    }


def _change(change: metrics.Change) -> Line:
    return {
        "delta": _finite(change.delta),
        "rel_delta": _finite(change.rel_delta),
        "cosine": _finite(change.cosine),
        "nonfinite": change.nonfinite,
    }


def _finite(x: Any) -> float | None:
    """None for what is no number: JSON has no word for it."""
    return float(x) if np.isfinite(x) else None
