"""Many texts at once on one model: continuous batching.

A newcomer's path: `sequence` (what is asked, and the branches that compute it), `scheduler` (who runs how many tokens
in the next step; it sees numbers only), `engine` (one step: plan, run, draw, tell), `events` (what is told),
`prefixes` (states of prompts that may come again).
"""

from __future__ import annotations

from rookery.engine.engine import Engine
from rookery.engine.events import (
    Busy,
    Cancelled,
    Ended,
    Event,
    Failed,
    Marked,
    Read,
    Score,
    Scored,
    Wrote,
)
from rookery.engine.prefixes import Prefixes
from rookery.engine.sequence import Sequence, Start

__all__ = [
    "Busy",
    "Cancelled",
    "Ended",
    "Engine",
    "Event",
    "Failed",
    "Marked",
    "Prefixes",
    "Read",
    "Score",
    "Scored",
    "Sequence",
    "Start",
    "Wrote",
]
