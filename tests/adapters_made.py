"""Adapters with random numbers of a size at which they matter, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rookery.weights import Weights
from rookery.weights.adapters import Adapter, Dora, LowRank, Miss, Part, Pissa, Whole

LINEARS = ("att", "ffn", "head")  # kinds of tensor


def adapter(
    of: Weights, method: str = "lora", seed: int = 0, rank: int = 4, names: Sequence[str] = (), path: str = "made"
) -> Adapter:
    """For every linear of `of`, the head too, or for `names` alone."""
    random = np.random.default_rng(seed)
    chosen = names or [p.name for p in of.params if p.kind in LINEARS]
    parts = {name: _part(method, of.tensors[name].float32(), rank, random) for name in chosen}
    return Adapter(parts, method, path, {}, of.fingerprint, of.lineage)


def _part(method: str, w: Any, rank: int, random: np.random.Generator) -> Part:
    def values(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    out, inside = w.shape
    scale = 0.3 * float(np.sqrt(np.square(w).mean() / rank))  # the product is 0.3 of W's size
    match method:
        case "lora":
            return LowRank(values(rank, inside), values(out, rank), scale)
        case "dora":
            return Dora(
                values(rank, inside), values(out, rank), scale, np.linalg.norm(w, axis=1) * (1 + values(out) / 9)
            )
        case "pissa":
            a, b = values(rank, inside), scale * values(out, rank)
            return Pissa(a + values(rank, inside) / 2, b, a, b)
        case "miss":
            return Miss(scale * values(rank, out))
    return Whole(w + scale * values(*w.shape))
