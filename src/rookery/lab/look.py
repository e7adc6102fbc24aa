"""How the lab's pictures look; matplotlib is imported only to draw.

Colours tell apart what they should for every eye: Okabe and Ito's for lines, viridis for fields. Text is large enough
to be read at half size.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from rookery.errors import MissingExtra

Figure: TypeAlias = Any  # matplotlib.figure.Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = {
    "rwkv": BLUE, "transformer": RED, "physics": GREEN, "frozen": BLACK, "iid": PINK, "ar1": ORANGE,
}  # fmt: skip
TITLES = {
    "rwkv": "RWKV", "transformer": "Transformer", "physics": "physics", "frozen": "frozen (null)",
    "iid": "white noise (null)", "ar1": "AR(1) noise (null)",
}  # fmt: skip
STYLES = {"frozen": ":", "iid": (0, (1, 1)), "ar1": "--"}
CYCLE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)
BAND = (5, 95)  # percentiles over prompts
WIDTH = 9.0  # inches
STYLE: dict[Any, Any] = {
    "font.size": 13, "axes.titlesize": 13, "axes.labelsize": 13, "legend.fontsize": 11.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "lines.linewidth": 2.0, "savefig.facecolor": "white", "svg.fonttype": "path", "axes.axisbelow": True,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Our looks, for drawing and saving. Raises MissingExtra without matplotlib."""
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingExtra("a plot", "lab") from None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "rookery"}):
        yield


def figure(rows: int = 1, columns: int = 1, height: float = 3.6, **shared: Any) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns]."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]

    made = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False, **shared)


def grid(count: int, columns: int, height: float, **shared: Any) -> tuple[Figure, list[Any]]:
    """A figure of `count` axes, at most so many a row."""
    columns = min(count, columns) if count != 4 or columns == 4 else 2
    made, axes = figure(-(-count // columns), columns, height, **shared)
    every = list(axes.flat)
    for ax in every[count:]:
        ax.remove()
    if shared.get("sharex"):
        for ax in every[max(count - columns, 0) : count]:
            ax.tick_params(labelbottom=True)
    return made, every[:count]


def saved(made: Figure, kind: str) -> bytes:
    """The file of a figure: "svg" or "png"; equal figures give equal bytes."""
    out = io.BytesIO()
    made.savefig(out, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def label(component: str) -> str:
    """ "layers.3.att_shift" -> "layer 3 att_shift"."""
    head, _, rest = component.partition(".")
    return f"layer {rest.replace('.', ' ')}" if head == "layers" else component


def heat(made: Figure, ax: Any, field: Any, title: str, rows: Sequence[str]) -> None:
    """A field [rows, ticks] with a colour scale of its own, from 0 to its 99th percentile; what is NaN stays white."""
    top = max(float(np.nanpercentile(field, 99)) if np.isfinite(field).any() else 0.0, 1e-12)
    image = ax.imshow(field, aspect="auto", vmin=0, vmax=top, extent=(0.5, field.shape[1] + 0.5, len(rows), 0))
    ax.set_title(title, loc="left")
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.set_ylabel("layer" if rows[0].isdigit() else "")
    ax.grid(False)
    made.colorbar(image, ax=ax, extend="max", aspect=8, pad=0.01, ticks=[0, top / 2, top], format="%.2g")


def band(ax: Any, x: Any, series: Any, colour: str, title: str, name: str = "") -> None:
    """Median and BAND of [runs, T]."""
    low, middle, high = np.percentile(series, [BAND[0], 50, BAND[1]], axis=0)
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, middle, color=colour, label=title, linestyle=STYLES.get(name, "-"))
