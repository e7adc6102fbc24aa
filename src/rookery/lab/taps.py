"""A stretch of tokens read under a trace, for analyses that want every row and the logits with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
    with model.trace(*points) as trace:
        logits, after = model.forward(tokens, state, every=True)
    heard = {name: trace[name][0] if name in trace.constants else trace[name] for name in trace.names}
    return heard, logits, after
