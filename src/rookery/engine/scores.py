"""How likely a token was by the model's own distribution: log-softmax in float64, before any penalty or cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.engine.events import Score

Array = npt.NDArray[Any]


def score(logits: Array, token: int, top: int) -> Score:
    """Of `token` at `logits` [V], and the `top` likeliest beside it; of tied tokens the lower ids."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    best: list[int] = []
    if top:
        last = np.partition(x, len(x) - top)[len(x) - top]
        above = np.flatnonzero(x >= last)
        best = above[np.argsort(-x[above], kind="stable")][:top].tolist()
    return Score(token, float(x[token]), tuple((id, float(x[id])) for id in best))
