"""A run's losses as a picture, in nats per token; matplotlib is imported only to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rookery.formats.atomic import atomic_write


def plot(metrics: Sequence[dict[str, Any]], to: Path) -> None:
    """Draw training and validation loss against tokens; where there are no steps, nothing.

    metrics: the objects of a metrics.jsonl. Raises ImportError without matplotlib, and CannotWrite.
    """
    rows = [r for r in metrics if "tokens" in r]
    last = max((r["tokens"] for r in rows), default=0)
    steps = [r for r in rows if r.get("loss") is not None]
    smooth = dict(zip((r["tokens"] for r in steps), _smoothed([r["loss"] for r in steps]), strict=True))
    long = len(steps) > 400  # then the first steps would take half the width and most of the height
    steps = [r for r in steps if not long or r["tokens"] >= last / 200]
    held_out = [r for r in rows if r.get("validation_loss") is not None]
    if not steps:
        return
    from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]
    from matplotlib.ticker import EngFormatter  # type: ignore[import-not-found, unused-ignore]

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    tokens = [r["tokens"] for r in steps]
    axes.plot(tokens, [r["loss"] for r in steps], color="tab:blue", alpha=0.25, linewidth=0.8, label="training")
    axes.plot(tokens, [smooth[t] for t in tokens], color="tab:blue", linewidth=1.6, label="training, smoothed")
    if held_out:
        _plot_validation(axes, held_out)
    if long:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("training tokens" + (", without the first 0.5 %" if long else ""))
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.grid(alpha=0.12, which="minor")
    axes.legend(frameon=False)
    with atomic_write(to) as file:
        figure.savefig(file, format="png")


def _plot_validation(axes: Any, rows: list[dict[str, Any]]) -> None:
    values = [r["validation_loss"] for r in rows]
    label = f"validation, last {values[-1]:.3f}"
    bits = rows[-1]["bits_per_byte"]
    if bits:
        label += f" ({bits:.3f} bits per byte)"
        factor = bits / values[-1]  # the same at every step: the held-out text has so many bytes a token
        side = axes.secondary_yaxis("right", functions=(lambda y: y * factor, lambda y: y / factor))
        side.set_ylabel("bits per byte of the held-out text")
    axes.plot([r["tokens"] for r in rows], values, color="tab:orange", marker="o", markersize=4, label=label)


def _smoothed(values: list[float]) -> list[float]:
    """Each step's mean with its neighbours, of which there are more the later it is: an even width on a log scale."""
    sums, out = [0.0], []
    for value in values:
        sums.append(sums[-1] + value)
    for i in range(len(values)):
        reach = (i + 1) // 20
        begin, end = i - reach, min(len(values), i + reach + 1)
        out.append((sums[end] - sums[begin]) / (end - begin))
    return out
