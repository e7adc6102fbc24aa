"""A stretch of tokens read while points of a model are listened to: plain arrays, for analyses that want all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.model import Model
from rookery.state import State

Array = npt.NDArray[Any]


def read_with_taps(
    model: Model, tokens: Sequence[int], points: Iterable[str], state: State | None = None
) -> tuple[dict[str, Array], Array, State]:
    """Read `tokens` from `state`: what was heard at each of `points`, the logits [T,V], and the state after.

    A point is [T, ...], one row a token; one made of parameters alone (the decay of v4 and v5) has no rows. Raises
    InputError for a point that there is not.
    """
    heard: dict[str, list[Array]] = {}
    model.runner.listen(lambda name, rows: heard.setdefault(name, []).append(np.array(rows)), points)
    try:
        logits, after = model.forward(tokens, state, every=True)
    finally:
        model.runner.listen(None)
    constant = model.config.version[0] in "45"
    return (
        {n: rows[0] if constant and n.endswith(".att.w") else np.concatenate(rows) for n, rows in heard.items()},
        logits,
        after,
    )
