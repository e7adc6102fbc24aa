"""An experiment's results as pictures, each labelled with its units; their looks are in `look`. T ticks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from rookery.lab import metrics
from rookery.lab.design import NULLS
from rookery.lab.look import (
    BLACK,
    BLUE,
    COLOURS,
    CYCLE,
    RED,
    SKY,
    TITLES,
    Figure,
    band,
    figure,
    grid,
    heat,
    label,
)
from rookery.lab.motion import WHOLE
from rookery.lab.rows import Row

Records: TypeAlias = Mapping[Any, Mapping[str, Any]]

PATHS = 3  # prompts whose trajectories are drawn: more hide each other
WHITE = 512  # numbers of the white noise that coherence is held against


def of(records: Records, name: str, prompt: int | None = None, seed: int | None = None) -> list[Mapping[str, Any]]:
    """The results of a substrate, of one prompt or seed if asked."""
    return [
        record
        for (mine, p, s), record in sorted(records.items())
        if mine == name and prompt in (None, p) and seed in (None, s)
    ]


def names(records: Records) -> list[str]:
    """The substrates that have results, in our order."""
    have = {name for name, _, _ in records}
    return [name for name in COLOURS if name in have]


# what moved


def heat_map(records: Records) -> Figure | None:
    """Layer by tick of rel_delta, a panel for each kind of component, the mean over prompts."""
    panels: list[tuple[str, list[str], Any]] = []
    for name in [n for n in names(records) if n not in NULLS]:
        runs = [r["teacher"] for r in of(records, name, seed=0)]
        kinds: dict[str, list[str]] = {}
        for component in runs[0]:
            if component != WHOLE:
                kinds.setdefault(component.rpartition(".")[2] if "." in component else "", []).append(component)
        for kind, components in kinds.items():
            field = np.mean([[run[c]["rel_delta"] for c in components] for run in runs], axis=0)
            rows = [c.split(".")[1] if kind else c for c in components]
            panels.append((f"{TITLES[name]}{', ' + kind if kind else ''}", rows, field))
    if not panels:
        return None
    made, axes = figure(len(panels), 1, 1.0 + 0.28 * sum(len(rows) for _, rows, _ in panels) / len(panels), sharex=True)
    for (title, rows, field), ax in zip(panels, axes[:, 0], strict=True):
        heat(made, ax, field, title, rows)
    axes[-1, 0].set_xlabel("tick")
    made.suptitle("colour: rel_delta (relative change per tick), each panel on a scale of its own", fontsize=13)
    return made


def delta_series(records: Records) -> Figure | None:
    """rel_delta of all components together over ticks, teacher-forced and free, with bands over prompts."""
    made, axes = figure(1, 2, 4.4, sharey=True)
    for ax, condition, title in zip(axes[0], ("teacher", "free"), ("teacher-forced", "free-running"), strict=True):
        for name in names(records):
            series = [r[condition][WHOLE]["rel_delta"] for r in of(records, name) if condition in r]
            if series:
                band(ax, np.arange(1, len(series[0]) + 1), np.array(series), COLOURS[name], TITLES[name], name)
        ax.set_title(title)
        ax.set_xlabel("tick")
        ax.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("rel_delta, all components\n(relative change per tick)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return made


# what a push does


def recovery_curves(records: Records) -> Figure | None:
    """What is left of a push, by component that was pushed, a panel for each substrate and one for the nulls."""
    panels: dict[str, dict[str, list[Any]]] = {}
    for name in names(records):
        groups = panels.setdefault("nulls" if name in NULLS else TITLES[name], {})
        for record in of(records, name):
            for component, found in record["push"].items():
                curve = found["all"] if name in ("transformer", *NULLS) else found["curve"]
                groups.setdefault(_pushed(name, component), []).append(curve)
                if name in NULLS:  # of which all components are pushed at once
                    break
    panels = {title: groups for title, groups in panels.items() if groups}
    if not panels:
        return None
    made, axes = grid(len(panels), 2, 3.9, sharex=True, sharey=True)
    for ax, (title, groups) in zip(axes, panels.items(), strict=True):
        _recovery_panel(ax, groups)
        ax.set_title(title)
    axes[0].set_ylim(1e-4, 3)
    made.supxlabel("ticks after the push", fontsize=13)
    made.supylabel("distance ||x' - x|| / ||x|| (relative)", fontsize=13)
    return made


def _pushed(name: str, component: str) -> str:
    if name in NULLS:
        return TITLES[name].removesuffix(" (null)")
    if name == "transformer":
        return f"all, push on {label(component).removesuffix(' resid')}"
    return label(component)


def _recovery_panel(ax: Any, groups: Mapping[str, Sequence[Any]]) -> None:
    colours = iter(CYCLE * len(groups))
    gone = []
    for title, curves in groups.items():
        series = np.array(curves)
        series = series[np.isfinite(series).all(1)]
        here = np.flatnonzero((series > 0).all(0))  # a logarithm has no 0
        if len(here) > 2:
            band(ax, here, series[:, here], next(colours), title)
        else:
            gone.append(title)
    ax.set_yscale("log")
    if ax.lines:
        ax.legend(frameon=False, loc="best", labelspacing=0.2)
    if gone:
        kinds = list(dict.fromkeys(t.split()[-1] if t.startswith("layer") else t for t in gone))
        ax.text(0.98, 0.98, f"{', '.join(kinds)}: gone after 1 tick", ha="right", va="top", transform=ax.transAxes)


# how many dimensions


def singular_spectra(records: Records) -> Figure | None:
    """Singular values of each WKV head at the last tick over the largest, the mean over prompts; a panel a layer."""
    runs = [r["ranks"] for r in of(records, "rwkv", seed=0) if r["ranks"]]
    if not runs:
        return None
    layers = list(runs[0])
    made, axes = grid(len(layers), 4, 3.4, sharex=True, sharey=True)
    for ax, layer in zip(axes, layers, strict=True):
        values = np.mean([run[layer]["spectrum"] for run in runs], axis=0)
        for head, spectrum in enumerate(values):
            share = spectrum / spectrum[0]
            ax.plot(
                np.arange(1, len(share) + 1)[share > 0],
                share[share > 0],
                color=CYCLE[head % len(CYCLE)],
                label=f"head {head}",
            )
        ax.set_yscale("log")
        ax.set_title(label(layer).removesuffix(" wkv"))
    axes[0].set_ylim(1e-7, 2)
    if len(values) <= len(CYCLE):
        handles, labels = axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    made.supxlabel("singular value, by size", fontsize=13)
    made.supylabel("size (relative to the largest)", fontsize=13)
    return made


def rank_series(records: Records) -> Figure | None:
    """Effective rank of the WKV state over ticks, by layer, the mean over heads, with bands over prompts."""
    runs = [r["ranks"] for r in of(records, "rwkv", seed=0) if r["ranks"]]
    if not runs:
        return None
    ticks = len(of(records, "rwkv", seed=0)[0]["teacher"][WHOLE]["rel_delta"])
    made, axes = figure(1, 1, 4.0)
    ax = axes[0, 0]
    common = [layer for layer in runs[0] if all(layer in run for run in runs)]
    for i, layer in enumerate(common):
        series = np.array([np.mean(run[layer]["effective"], axis=1) for run in runs])
        every = max(ticks // (series.shape[1] - 1), 1)
        band(ax, np.arange(series.shape[1]) * every, series, CYCLE[i % len(CYCLE)], label(layer).removesuffix(" wkv"))
    size = len(runs[0][common[0]]["spectrum"][0])
    ax.set_xlabel("tick")
    ax.set_ylabel(f"effective rank (of {size})")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, ncols=2)
    return made


def trajectories(records: Records, topics: Sequence[str]) -> Figure | None:
    """The first two principal components of some prompts' paths, fitted to all; coloured by topic."""
    shown = [name for name in names(records) if name != "frozen"]
    if not shown:
        return None
    made, axes = grid(len(shown), 3, 3.9)
    kinds = list(dict.fromkeys(topics))[: len(CYCLE)]
    for ax, name in zip(axes, shown, strict=True):
        found = {p: np.array(r["path"]) for (n, p, s), r in sorted(records.items()) if n == name and s == 0}
        fit = metrics.pca(np.concatenate([path[1:] for path in found.values()]), 2)
        for prompt, path in list(found.items())[:PATHS]:
            x, y = ((path[1:] - fit.mean) @ fit.directions.T).T
            colour = CYCLE[kinds.index(topics[prompt])] if topics[prompt] in kinds else BLACK
            ax.plot(x, y, color=colour, linewidth=1.2, alpha=0.8)
            ax.plot(x[:1], y[:1], "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)
            ax.plot(x[-1:], y[-1:], "s", color=colour, markersize=8, markeredgecolor="white", zorder=3)
        ax.set_title(TITLES[name])
        ax.set_xlabel(f"1st, {fit.explained[0]:.0%} of variance")
        ax.set_ylabel(f"2nd, {fit.explained[1]:.0%}")
    _topic_legend(made, kinds)
    return made


def _topic_legend(made: Figure, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D  # type: ignore[import-not-found, unused-ignore]

    marks = [Line2D([], [], color=CYCLE[i], label=kind or "no topic") for i, kind in enumerate(kinds)]
    marks += [Line2D([], [], color="grey", marker=m, linestyle="", label=w) for m, w in (("o", "first"), ("s", "last"))]
    made.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)


# memory and the case's own number


def half_lives(records: Records) -> Figure | None:
    """Half-lives of each WKV layer's channels by their decay alone, and (v7) of whole writes; log axis, in tokens."""
    runs = [r["forgetting"] for r in of(records, "rwkv", seed=0) if "forgetting" in r]
    if not runs:
        return None
    layers = list(runs[0])
    made, axes = grid(len(layers), 4, 3.4, sharex=True, sharey=True)
    decays = [metrics.half_life(np.mean([run[x]["log_decay"] for run in runs], axis=0)) for x in layers]
    finite = np.concatenate([h[np.isfinite(h)] for h in decays])
    bins = np.geomspace(max(finite.min(), 0.1), finite.max() * 1.01, 25)
    for ax, layer, halves in zip(axes, layers, decays, strict=True):
        ax.hist(halves, bins, color=SKY, label="decay alone")
        ax.axvline(float(np.median(halves)), color=BLUE, label="its median")
        if "writes" in runs[0][layer]:
            typical = float(np.median([run[layer]["writes"] for run in runs]))
            ax.axvline(typical, color=RED, linestyle="--", label="a whole write")
        ax.set_xscale("log")
        ax.set_title(label(layer).removesuffix(" wkv"))
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    made.supxlabel("half-life (tokens)", fontsize=13)
    made.supylabel("channels", fontsize=13)
    return made


def coherence_bars(found: Sequence[Row], white: float) -> Figure | None:
    """The first definition of coherence and the one without units, of all components together, with the nulls."""
    picked = {(r.substrate, r.metric): r for r in found if (r.condition, r.component) == ("teacher", WHOLE)}
    shown = [name for name in COLOURS if (name, "coherence") in picked]
    if not shown:
        return None
    made, axes = figure(1, 2, 0.9 + 0.5 * len(shown), sharey=True)
    for ax, metric, title in zip(
        axes[0],
        ("coherence", "coherence_cv"),
        ("coherence, first definition", "coherence_cv, without units"),
        strict=True,
    ):
        for at, name in enumerate(shown):
            row = picked[name, metric]
            ax.barh(at, row.estimate, color=COLOURS[name], alpha=0.45 if name in NULLS else 0.9)
            if row.low is not None:
                ax.plot([row.low, row.high], [at, at], color=BLACK, linewidth=3)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
            ax.text(0.03, at, _bar_text(picked, name, metric), va="center", bbox=box)
        ax.set_title(title)
        ax.set_xlim(0, 1.03)
        ax.set_xlabel("0 to 1 (pale: nulls)")
        ax.grid(False, axis="y")
    axes[0, 0].axvline(white, color=BLACK, linestyle="--", linewidth=1.5)
    axes[0, 0].set_xlabel(f"0 to 1; dashed: white noise, n = {WHITE}, {white:.3f}")
    axes[0, 0].set_yticks(range(len(shown)), [TITLES[name] for name in shown])
    axes[0, 0].invert_yaxis()
    return made


def _bar_text(picked: Mapping[tuple[str, str], Row], name: str, metric: str) -> str:
    value = f"{picked[name, metric].estimate:.4f}"
    return value if metric == "coherence" else f"{value}, rel_delta {picked[name, 'rel_delta'].estimate:.2f}"


def all_plots(records: Records, found: Sequence[Row], topics: Sequence[str]) -> dict[str, Callable[[], Figure | None]]:
    """Every plot by its name, drawn when called."""
    return {
        "coherence": lambda: coherence_bars(found, metrics.white_noise_coherence(WHITE)),
        "delta_series": lambda: delta_series(records),
        "heat_map": lambda: heat_map(records),
        "recovery": lambda: recovery_curves(records),
        "trajectories": lambda: trajectories(records, topics),
        "singular_spectra": lambda: singular_spectra(records),
        "effective_rank": lambda: rank_series(records),
        "half_lives": lambda: half_lives(records),
    }
