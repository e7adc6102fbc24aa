"""A sweep of pushes over components and sizes of one substrate: next token, return, and what is written from there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from rookery.errors import InputError
from rookery.lab import look, metrics, pieces
from rookery.lab.sensitivity import divergence, next_token_effect, recovery
from rookery.lab.substrates import Substrate
from rookery.sampling import Sampling

Line: TypeAlias = dict[str, Any]


def sweep(
    substrate: Substrate,
    follow: Sequence[int],
    components: Sequence[str] = ("*",),
    sizes: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: int = 5,
    tokens: int = 64,
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Line]:
    """A row for each component (globs) and size (relative), pushed where `substrate` stands; it is left as found.

    kl: nats of the next token once follow[0] was read after the push, median over seeds (directions). kl_per_square:
    nats per squared size, for small sizes, None where no range of sizes was flat. half_life: ticks, while all of
    `follow` is read (None: no return); curve: the median distance after each, relative. first_difference: tokens until
    a free-running text differs, median (infinite: most do not, None in the row), of `tokens`; edit_distance: in
    tokens, the mean. Raises InputError for fewer than 3 tokens to follow, a size that is not above 0, and a glob that
    fits nothing.
    """
    if not sizes or min(sizes) <= 0:
        raise InputError(f"sizes {list(sizes)}: numbers above 0, relative to the component, are wanted")
    names = pieces.match(substrate.components(), components)
    rows: list[Line] = []
    for done, name in enumerate(names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was flat nowhere is None
            small = next_token_effect(substrate, follow[:1], [name], directions=seeds).pop().kl
        for size in sizes:
            if progress:
                progress(done * len(sizes) + list(sizes).index(size), len(names) * len(sizes))
            rows.append(
                {"component": name, "size": size, "kl_per_square": small if np.isfinite(small) else None}
                | _returned(substrate, follow, name, size, seeds)
                | _diverged(substrate, name, size, seeds, tokens, sampling)
            )
    return rows


def _returned(substrate: Substrate, follow: Sequence[int], name: str, size: float, seeds: int) -> Line:
    found = [recovery(substrate, follow, name, size, seed) for seed in range(seeds)]
    curve = np.median([one.curves[name] for one in found], axis=0)
    fit = metrics.recovery(curve) if curve.any() and np.isfinite(curve).all() else None
    half = fit.half_life if fit else float("nan")
    return {
        "kl": float(np.median([one.kl[0] for one in found])) if len(found[0].kl) else None,
        "half_life": half if np.isfinite(half) else None,
        "curve": [float(x) for x in curve],
        "nonfinite": sum(one.nonfinite for one in found),
    }


def _diverged(substrate: Substrate, name: str, size: float, seeds: int, tokens: int, sampling: Sampling | None) -> Line:
    found = divergence(substrate, name, size, tokens, range(seeds), sampling)
    middle = found.survival.median
    return {
        "first_difference": middle if np.isfinite(middle) else None,
        "equal_share": float(np.mean([not event.seen for event in found.first])),
        "edit_distance": float(np.mean(found.edits)),
    }


def picture(rows: Sequence[Line]) -> Any:
    """Left: KL of the next token against size, a line for each component. Right: return from the largest push."""
    made, axes = look.figure(1, 2, 4.8)
    names = list(dict.fromkeys(row["component"] for row in rows))
    largest = max(row["size"] for row in rows)
    for i, name in enumerate(names):
        style = {"color": look.CYCLE[i % len(look.CYCLE)], "linestyle": ("-", "--", ":")[i // len(look.CYCLE) % 3]}
        mine = sorted((row for row in rows if row["component"] == name), key=lambda row: float(row["size"]))
        points = [(row["size"], row["kl"]) for row in mine if row["kl"]]
        if points:
            axes[0, 0].plot(*zip(*points, strict=True), marker="o", markersize=4, label=look.label(name), **style)
        curve = np.array(mine[-1]["curve"])
        shown = np.flatnonzero(curve > 0)
        axes[0, 1].plot(shown, curve[shown], marker="." if len(shown) < 3 else None, **style)
    for ax, x, y in zip(
        axes[0],
        ("size of the push (relative)", f"tokens after a push of {largest:g}"),
        ("KL of the next token (nats)", "distance ||x' - x|| / ||x|| (relative)"),
        strict=True,
    ):
        ax.set_yscale("log")
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    axes[0, 0].set_xscale("log")
    axes[0, 1].set_ylim(bottom=min(axes[0, 1].get_ylim()[0], largest / 30))
    made.legend(loc="outside lower center", ncols=3, frameon=False)
    return made
