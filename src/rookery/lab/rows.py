"""One number of an experiment, and the file of all of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

UNITS = {
    "rel_delta": "relative, per tick",
    "coherence_cv": "relative",
    "state_delta": "component's units, per tick",
    "coherence": "none: changes with the units",
    "memory": "ticks",
    "dimension": "dimensions",
    "effective_rank": "dimensions",
    "rms": "component's units",
    "nonfinite": "numbers",
    "recovery": "ticks",
    "kept": "relative to the push",
    "exponent": "nats per tick",
    "growth": "factor",
    "decay_half_life": "tokens",
    "write_half_life": "tokens",
    "probe": "accuracy",
    "probe_null": "accuracy",
    "probe_p": "p-value",
    "kl": "nats per squared relative push",
    "kl_at_size": "nats",
    "loss": "nats per token",
    "bits_per_byte": "bits per byte",
    "floor": "relative",
}


@dataclass(frozen=True)
class Row:
    """One number. `estimate` None: there is none, and `note` says why; else `note` says what to be careful of."""

    substrate: str
    condition: str  # teacher, free, or - where the distinction has no meaning
    component: str
    metric: str
    estimate: float | None
    low: float | None = None
    high: float | None = None
    prompts: int = 0
    runs: int = 0
    note: str = ""

    @property
    def unit(self) -> str:
        return UNITS[self.metric]


def table(found: Iterable[Row]) -> str:
    """metrics.csv."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["substrate", "condition", "component", "metric", "estimate", "low", "high", "unit", "prompts", "runs", "note"]
    )
    for r in found:
        numbers = ["-" if r.estimate is None else _text(r.estimate), _text(r.low), _text(r.high)]
        writer.writerow([r.substrate, r.condition, r.component, r.metric, *numbers, r.unit, r.prompts, r.runs, r.note])
    return out.getvalue()


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"
