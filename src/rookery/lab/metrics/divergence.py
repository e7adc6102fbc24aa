"""How far two outputs lie apart: next-token distributions in nats, and texts as tokens.

V vocabulary. Free-running texts differ for good once a token differs, so their time to that is a survival curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64


class Event(NamedTuple):
    """When it happened, in tokens; or, not `seen`, how long it was watched for in vain (censored)."""

    time: int
    seen: bool


class Survival(NamedTuple):
    """Kaplan-Meier: the share of runs that are still equal after `times` tokens, at each time something differed."""

    times: Array  # [K], ascending
    share: Array  # [K]
    at_risk: Array  # [K], runs still watched and equal just before
    runs: int
    censored: int

    @property
    def median(self) -> float:
        """The first time at which at most half are left, in tokens; infinite where more than half stay equal."""
        below = self.times[self.share <= 0.5]
        return float(below[0]) if below.size else float("inf")


@np.errstate(invalid="ignore", over="ignore")
def log_softmax(logits: Any) -> Array:
    """[..., V] -> [..., V], in nats."""
    x = float64(logits)
    shifted = x - x.max(-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


@np.errstate(invalid="ignore")
def kl(p_logits: Any, q_logits: Any) -> Array:
    """KL(p || q) of two rows of logits [..., V] -> [...], in nats.

    A token that p excludes (-inf) counts 0; one that only q excludes makes it infinite. NaN logits give NaN.
    """
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    total: Array = np.where(p == -np.inf, 0.0, np.exp(p) * (p - q)).sum(-1)
    return np.where(np.isnan(p).any(-1) | np.isnan(q).any(-1), np.nan, np.maximum(total, 0.0))


def first_difference(a: Sequence[int], b: Sequence[int]) -> Event:
    """How many tokens two texts share before they differ; where one ends and the other goes on, they differ there."""
    shared = next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return Event(shared, shared < max(len(a), len(b)))


def survival(events: Sequence[Event | tuple[int, bool]]) -> Survival:
    """Kaplan-Meier over runs: (time, seen) each, unseen ones censored at their time."""
    if not events:
        raise InputError("no runs to make a survival curve of")
    time, seen = (np.array(column) for column in zip(*events, strict=True))
    times = np.unique(time[seen.astype(bool)])
    at_risk = (time[None] >= times[:, None]).sum(1)
    deaths = ((time[None] == times[:, None]) & seen.astype(bool)).sum(1)
    share = np.cumprod(1 - deaths / at_risk)
    return Survival(times, share, at_risk, len(events), int((~seen.astype(bool)).sum()))


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein: the fewest insertions, deletions and replacements of tokens that make `b` of `a`."""
    row_tokens, along = np.asarray(b, dtype=np.int64), np.arange(len(b) + 1)
    row = along
    for done, token in enumerate(a, 1):
        new = np.minimum(row[1:], row[:-1] - 1 + (row_tokens != token)) + 1
        new = np.concatenate([[done], new])
        row = np.minimum.accumulate(new - along) + along  # insertions, all at once
    return int(row[-1])
