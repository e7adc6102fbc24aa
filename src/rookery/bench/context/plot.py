"""A sweep's summary as pictures: decode, memory, prefill and training against context, on logarithmic axes.

A line is a median with its quartiles as a band. Dashed is the roof that memory bandwidth sets. A cross at the edge is
a point that does not fit, with the bytes it needs. No two kinds share a marker, so colour is never all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from rookery.bench.context.summary import Row, chosen, title
from rookery.bench.context.table import Summary, absent, setting, size

Figure: TypeAlias = Any
Value: TypeAlias = Callable[[Row], "tuple[float, float, float]"]  # low, middle, high

MARKERS = {
    "rwkv4": "v", "rwkv5": "<", "rwkv6": ">", "rwkv7": "o", "rwkv7-native": "*", "transformer-gqa": "s",
    "transformer-mha": "D", "mamba2": "P", "lstm": "^",
}  # fmt: skip
GREY = "#7F7F7F"
SPAN = 4  # least ratio of an axis's ends


def all_plots(found: Summary) -> dict[str, bytes]:
    """PNG files by name, those that have anything to show. Raises MissingExtra without matplotlib."""
    from rookery.lab import look

    with look.styled():
        drawn = {name: draw(found) for name, draw in _PLOTS.items()}
        return {name: look.saved(made, "png") for name, made in drawn.items() if made is not None}


def decode(found: Summary) -> Figure | None:
    """Tokens a second against depth, the roof of each kind dashed."""
    panel = _Panel(found, "decode", "decode speed (tokens/s)", _spread("tokens_per_second"))
    if not panel.anything:
        return None
    for kind, rows in panel.series():
        roof = [row["roofline_tokens_per_second"] for row in rows]
        if None not in roof:
            panel.dashed(kind, [row["length"] for row in rows], roof)
    return _page(found, [panel], "depth (tokens before)", "Decode against depth (state injected)", roofs=True)


def memory(found: Summary) -> Figure | None:
    """Weights with state or KV, exact, and the peak of the process that held them."""
    weights = {model["kind"]: model["weight_bytes"] for model in found["models"]}

    def held(row: Row) -> tuple[float, float, float]:
        total = weights[row["kind"]] + row["state_bytes"]
        return total, total, total

    states = _Panel(found, "decode", "state or KV (bytes)", lambda row: (row["state_bytes"],) * 3, crosses=False)
    totals = _Panel(found, "decode", "weights + state or KV (bytes)", held, need=True)
    if not totals.anything:
        return None
    for kind, rows in totals.series():
        peaks = [(row["length"], row["peak_bytes"]) for row in rows if row["peak_bytes"]]
        totals.dashed(kind, [at for at, _ in peaks], [peak for _, peak in peaks])
    return _page(found, [states, totals], "depth (tokens before)", "Memory against depth", peaks=True)


def prefill(found: Summary) -> Figure | None:
    """Reading speed and time to first token against the prompt."""
    speed = _Panel(found, "prefill", "prefill speed (tokens/s)", _spread("prefill_tokens_per_second"))
    first = _Panel(found, "prefill", "time to first token (s)", _spread("first_token_seconds"), crosses=False)
    return _page(found, [speed, first], "prompt (tokens)", "Prefill and first token") if speed.anything else None


def train(found: Summary) -> Figure | None:
    """Time and peak memory of a training step against the sequence."""
    seconds = _Panel(found, "train", "training step (s)", _spread("step_seconds"))
    peak = _Panel(found, "train", "peak above imports (bytes)", lambda row: (row["peak_bytes"] or 0,) * 3, need=True)
    return _page(found, [seconds, peak], "sequence (tokens)", "Training step, batch 1") if seconds.anything else None


_PLOTS = {"decode": decode, "memory": memory, "prefill": prefill, "train": train}


class _Panel:
    """One pair of axes to be; what is drawn is collected first, for a page knows its layout only then."""

    def __init__(
        self, found: Summary, phase: str, label: str, value: Value, crosses: bool = True, need: bool = False
    ) -> None:
        self.found, self.phase, self.label, self.value = found, phase, label, value
        self.crosses, self.need = crosses, need  # need: a cross stands at the bytes needed, not at the edge
        self.dashes: list[tuple[str, Sequence[float], Sequence[float]]] = []
        self.anything = bool(chosen(found, phase))

    def series(self) -> Iterator[tuple[str, list[Row]]]:
        for kind in self.found["settings"]["kinds"]:
            if rows := chosen(self.found, self.phase, kind):
                yield kind, rows

    def dashed(self, kind: str, x: Sequence[float], y: Sequence[float]) -> None:
        self.dashes.append((kind, x, y))

    def draw(self, ax: Any) -> None:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        for kind, rows in self.series():
            x = [row["length"] for row in rows]
            low, middle, high = zip(*map(self.value, rows), strict=True)
            look: dict[str, Any] = {"color": colour(kind), "marker": MARKERS.get(kind, "x"), "markersize": 6}
            ax.fill_between(x, low, high, color=colour(kind), alpha=0.2, linewidth=0)
            ax.plot(x, middle, label=title(kind), linewidth=1.8, alpha=0.9, **look)
        for kind, xs, ys in self.dashes:
            ax.plot(xs, ys, color=colour(kind), linestyle="--", linewidth=1.1, alpha=0.8)
        _widen(ax)
        if self.crosses:
            self._draw_crosses(ax)
        ax.set_title(self.label, loc="left")
        _tokens_axis(ax, {row["length"] for row in chosen(self.found, self.phase, measured=False)})
        _values_axis(ax, size if "bytes" in self.label else _plain)

    def _draw_crosses(self, ax: Any) -> None:
        missing = [row for row in chosen(self.found, self.phase, measured=False) if row["status"] != "measured"]
        bottom, top = ax.get_ylim()
        step = (top / bottom) ** 0.07  # one below the other under all lines, so that texts stay apart
        for place, row in enumerate(missing, 1):
            y = row["need_bytes"] if self.need and row["status"] == "oom" else bottom / step**place
            mark = "X" if row["status"] == "oom" else "x"
            ax.plot([row["length"]], [y], color=colour(row["kind"]), marker=mark, markersize=9, linestyle="none")
            text = f"{title(row['kind'])}: {absent(row)}"
            ax.annotate(text, (row["length"], y), (-9, 0), textcoords="offset points", ha="right", va="center",
                        color=colour(row["kind"]), fontsize=11)  # fmt: skip
        if not self.need:
            ax.set_ylim(bottom / step ** (len(missing) + bool(missing)), top)


def colour(kind: str) -> str:
    """Okabe and Ito's, in which no pair is alike to any common eye; blues and greens for RWKV."""
    from rookery.lab import look

    return {
        "rwkv4": look.SKY, "rwkv5": GREY, "rwkv6": look.GREEN, "rwkv7": look.BLUE, "rwkv7-native": look.BLACK,
        "transformer-gqa": look.RED, "transformer-mha": look.ORANGE, "mamba2": look.PINK, "lstm": "#8B7500",
    }.get(kind, look.BLACK)  # fmt: skip


def _spread(name: str) -> Value:
    def value(row: Row) -> tuple[float, float, float]:
        found = row[name]
        return found["q1"], found["median"], found["q3"]

    return value


def _page(
    found: Summary, panels: Sequence[_Panel], across: str, heading: str, roofs: bool = False, peaks: bool = False
) -> Figure:
    from rookery.lab import look

    made, axes = look.figure(1, len(panels), 6.2 if len(panels) == 1 else 5.4)
    if len(panels) > 1:
        made.set_size_inches(1.45 * look.WIDTH, 5.8)
    for ax, panel in zip(axes[0], panels, strict=True):
        panel.draw(ax)
        ax.set_xlabel(across)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    from matplotlib.lines import Line2D  # type: ignore[import-not-found, unused-ignore]

    if roofs and found["stream_gb_per_second"]:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.1))
        labels.append(f"roof at {found['stream_gb_per_second']:.1f} GB/s")
    if peaks:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.1))
        labels.append("peak of the process")
    made.legend(handles, labels, loc="outside lower center", ncols=5 if len(panels) > 1 else 4, frameon=False)
    made.suptitle(f"{heading}\n{setting(found)}", fontsize=12.5, wrap=True)
    return made


def _tokens_axis(ax: Any, lengths: set[int]) -> None:
    """A tick for each length, as 512, 8K or 1M; where they are many, for every second or third."""
    every = sorted(lengths)
    stride = -(-len(every) // 8)
    ticks = every[::-1][::stride][::-1]
    ax.set_xticks(ticks, [_tokens(n) for n in ticks], fontsize=11.5)
    ax.minorticks_off()
    ax.grid(True, which="major", alpha=0.3)


def _widen(ax: Any) -> None:
    """Little differences stay little: no axis shows less than a factor of SPAN."""
    bottom, top = ax.get_ylim()
    if (short := SPAN / (top / bottom)) > 1:
        ax.set_ylim(bottom / short**0.5, top * short**0.5)


def _values_axis(ax: Any, said: Callable[[float], str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator  # type: ignore[import-not-found, unused-ignore]

    bottom, top = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top / bottom < 2e3 else (1,), numticks=20))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, place: said(value)))


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _tokens(n: int) -> str:
    for unit, name in ((1_000_000, "M"), (1 << 20, "Mi"), (1 << 10, "K")):
        if n % unit == 0:
            return f"{n // unit}{name}"
    return f"{n:,}"
