"""What memory allows: the bandwidth that this machine really has, and the decode speed that follows from it.

A decode step reads every weight and the state once. So no step is faster than its bytes over the bandwidth, unless
bytes are counted wrongly or lie in a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

BUFFER = 1 << 29  # bytes that are read: many times any cache
PASSES = 9


def stream(size: int = BUFFER, passes: int = PASSES, seed: int = 0) -> dict[str, list[float]]:
    """GB/s of each pass over a buffer of `size` bytes, for each way to go over it, with torch's threads.

    `sum` and `mv` (a matrix times a vector, which decode does) read; `copy` reads and writes, and both count.
    """
    import torch

    matrix = torch.full((size // 4 // 4096, 4096), 1e-3)
    vector, target = torch.ones(4096), torch.empty_like(matrix)
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "sum": (1, lambda: matrix.sum()),
        "mv": (1, lambda: torch.mv(matrix, vector)),
        "copy": (2, lambda: target.copy_(matrix)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(passes + 1):
        for name, (times, go) in ways.items():
            begin = time.perf_counter()
            go()
            found[name].append(times * matrix.nbytes / (time.perf_counter() - begin) / 1e9)
    return {name: rates[1:] for name, rates in found.items()}  # the first pass warms up


def ceiling(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """GB/s: the most that any measurement of the stream reached, for a roof is what cannot be passed."""
    rates = [
        rate
        for row in rows
        if row["phase"] == "stream" and row["status"] == "measured"
        for way in row["gb_per_second"].values()
        for rate in way
    ]
    return max(rates, default=None)


def roof(row: Mapping[str, Any], bandwidth: float | None) -> float | None:
    """Tokens a second that `bandwidth` in GB/s allows a decode point; None where there is none to hold it against."""
    if bandwidth is None or row["phase"] != "decode" or row["status"] != "measured":
        return None
    return 1e9 * bandwidth / float(row["bytes_per_token"])


def above(row: Mapping[str, Any], bandwidth: float | None) -> bool:
    """Whether a point is faster than memory allows."""
    limit = roof(row, bandwidth)
    return limit is not None and row["tokens_per_second"]["median"] > limit
