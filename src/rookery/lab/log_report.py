"""The page of a monitor's log: how a state changed over all captures of all its runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from rookery.errors import InputError
from rookery.lab import look
from rookery.lab.journal import Row, read
from rookery.lab.report import page, pictures

CAPTIONS = {
    "changes": "rel_delta of each piece, by layer, over captures.",
    "coherence": "coherence by its first definition (of whole states, over the window: white noise scores near 1), and "
    "coherence_cv of rel_delta, the mean over layers.",
    "ranks": "Effective rank of the WKV state, the mean over heads, by layer.",
}


def html(path: str | os.PathLike[str]) -> str:
    """The page of the log at `path`. Raises FileError subclasses, InputError without changes, MissingExtra."""
    rows = list(read(path))
    changed = [row for row in rows if "delta" in row]
    if len(changed) < 2:
        raise InputError(f"{os.fspath(path)}: {len(changed)} changes were captured; at least 2 are wanted")
    bad = sum(sum(row["nonfinite"].values()) for row in rows)
    said = f"{len(rows)} captures in {rows[-1]['run']} runs; {bad} numbers were NaN or infinite."
    draw = {
        "changes": lambda: _changes(changed),
        "coherence": lambda: _coherence(changed),
        "ranks": lambda: _ranks(rows),
    }
    title = f"State log: {os.path.basename(os.fspath(path))}"
    return page(title, [f"<h1>{escape(title)}</h1><p>{said}</p>", pictures(draw, CAPTIONS)])


def _changes(rows: Sequence[Row]) -> Any:
    kinds = list(rows[0]["rel_delta"])
    made, axes = look.figure(len(kinds), 1, 2.2, sharex=True)
    for kind, ax in zip(kinds, axes[:, 0], strict=True):
        field = np.array([row["rel_delta"][kind] for row in rows], np.float64).T
        look.heat(made, ax, field, kind, [str(i) for i in range(len(field))])
    axes[-1, 0].set_xlabel("capture")
    made.suptitle("colour: rel_delta (relative change per capture)", fontsize=13)
    return made


def _coherence(rows: Sequence[Row]) -> Any:
    made, axes = look.figure(1, 1, 3.8)
    ax, x = axes[0, 0], np.arange(1, len(rows) + 1)
    ax.plot(x, _column([row["coherence"] for row in rows]), color=look.BLACK, label="coherence, first definition")
    for i, piece in enumerate(rows[0]["coherence_cv"]):
        values = [np.mean(_column(row["coherence_cv"][piece])) for row in rows]
        ax.plot(x, values, color=look.CYCLE[i], label=f"coherence_cv, {piece}")
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("capture")
    ax.set_ylabel("0 to 1")
    made.legend(loc="outside lower center", ncols=2, frameon=False)
    return made


def _ranks(rows: Sequence[Row]) -> Any:
    ranked = [row["effective_rank"] for row in rows if "effective_rank" in row]
    if not ranked:
        return None
    made, axes = look.figure(1, 1, 3.8)
    for i in range(len(ranked[0])):
        values = [np.mean(_column(layers[i])) for layers in ranked]
        axes[0, 0].plot(range(1, len(values) + 1), values, color=look.CYCLE[i % len(look.CYCLE)], label=f"layer {i}")
    axes[0, 0].set_xlabel("capture")
    axes[0, 0].set_ylabel("effective rank (dimensions)")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(frameon=False, ncols=2)
    return made


def _column(values: Any) -> Any:
    """None, which stands for what was not finite, as NaN."""
    return np.array(values, np.float64)
