"""What the monitor's rows look like: a heat strip of every layer, and one line where there is no terminal.

A row is a capture, see `lab.monitor`. A strip's columns are captures, the newest at the right; its colours are
viridis, from 0 to 1 of the strip's largest value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from rookery.lab.journal import Row

Cells: TypeAlias = list[float | None]

# viridis at equal distances
ANCHORS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
    (170, 220, 50), (253, 231, 37),
)  # fmt: skip


def colour(share: float) -> str:
    """viridis at 0 to 1, as "#rrggbb"."""
    at = min(max(share, 0.0), 1.0) * (len(ANCHORS) - 1)
    left = min(int(at), len(ANCHORS) - 2)
    mixed = [round(a + (b - a) * (at - left)) for a, b in zip(ANCHORS[left], ANCHORS[left + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def strips(rows: Sequence[Row], width: int) -> Iterator[tuple[str, list[Cells], float]]:
    """For every piece of the state its name, rel_delta [layers][captures], at most `width` of them, and the largest."""
    changed = [row for row in rows if "rel_delta" in row][-width:]
    for piece in changed[-1]["rel_delta"] if changed else ():
        layers = [list(cells) for cells in zip(*(row["rel_delta"][piece] for row in changed), strict=True)]
        largest = max((x for cells in layers for x in cells if x is not None), default=0.0)
        yield piece, layers, largest


def line(row: Row) -> str:
    """One capture in words: what changed as a whole, and rel_delta of each piece's layers."""
    where = f"sequence {row['sequence']} tokens {row['tokens']}"
    bad = "".join(f"  NOT FINITE {name}: {count}" for name, count in row["nonfinite"].items())
    if "delta" not in row:
        return f"{where}  the first of its sequence{bad}"
    said = [f"delta {_number(row['delta'])}", f"coherence {_number(row['coherence'])}"]
    said += [f"{piece} {' '.join(map(_number, layers))}" for piece, layers in row["rel_delta"].items()]
    if "effective_rank" in row:
        said.append(f"rank {' '.join(_number(_mean(heads)) for heads in row['effective_rank'])}")
    return f"{where}  {'  '.join(said)}{bad}"


def panel(rows: Sequence[Row], width: int) -> Any:
    """The strips and numbers as something that rich draws, `width` columns wide. Colour is never all: the newest value
    of each layer stands beside its strip."""
    from rich.console import Group
    from rich.text import Text

    parts = [Text(_summary(rows))]
    for piece, layers, largest in strips(rows, max(width - 30, 8)):
        parts.append(Text(f"{piece}: rel_delta per capture, 0 to {_number(largest)} (relative)", style="bold"))
        ranks = rows[-1].get("effective_rank") if piece == "wkv" else None
        for i, cells in enumerate(layers):
            drawn = Text(f"{i:>3} ")
            for x in cells:
                drawn.append(" " if x is not None else "?", style=f"on {colour((x or 0.0) / (largest or 1.0))}")
            drawn.append(f" {_number(cells[-1])}")
            if ranks:
                drawn.append(f"  rank {_number(_mean(ranks[i]))}")
            parts.append(drawn)
    return Group(*parts)


def _summary(rows: Sequence[Row]) -> str:
    if not rows or "delta" not in rows[-1]:
        return "waiting for the second capture"
    row = rows[-1]
    steady = "  ".join(
        f"{piece} {_number(_mean(values))} (mean rel_delta {_number(_mean(row['mean_rel_delta'][piece]))})"
        for piece, values in row["coherence_cv"].items()
    )
    bad = sum(row["nonfinite"].values())
    return (
        f"tokens {row['tokens']}  state_delta {_number(row['delta'])}  coherence {_number(row['coherence'])} "
        f"(white noise scores near 1)\ncoherence_cv {steady}{f'  NOT FINITE: {bad} numbers' if bad else ''}"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if known else None


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}" if x < 0.99 or x > 1.01 or x == 1 else f"{x:.5f}"
