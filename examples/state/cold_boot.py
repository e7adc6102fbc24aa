"""Cold boot: the experiment that Rookery began with, as it was defined, and then as it can be trusted.

    python examples/state/cold_boot.py [--model gosling] [--out cold-boot]

As defined: after each of some generations the state is captured; state_delta of consecutive captures; coherence =
1 / (1 + variance of the last deltas). But each generation starts from an empty state, so that no state is followed.
As it can be trusted: one state is carried from tick to tick (a tick is so many tokens written), each component stands
apart, numbers are relative, and beside each stand nulls, the numeric noise floor and an interval over prompts.
Prints both, and writes cold-boot.csv and cold-boot.png.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import rookery
from rookery.lab import look, metrics, sensitivity
from rookery.lab.drive import begin, free
from rookery.lab.passages import PASSAGES
from rookery.lab.substrates import make

Array = npt.NDArray[Any]
Trajectory = Mapping[str, Array]  # [ticks + 1, ...] by component

NULLS = ("frozen", "iid", "ar1")
LOOKS = {"carried": look.BLUE, "frozen": look.BLACK, "iid": look.PINK, "ar1": look.ORANGE}
PREFIX = 16  # tokens of each text that are read before the first tick


class Row(NamedTuple):
    """What is written to the table: `system` is a state that was watched, or a null made like it."""

    system: str
    component: str
    metric: str
    unit: str
    estimate: float
    low: float = float("nan")
    high: float = float("nan")
    prompts: int = 1


# as it was defined


def captures(model: rookery.Model, prompts: Sequence[str], tokens: int) -> Array:
    """The whole state after each generation, [prompts, n]. Every one starts from an empty state, and from one seed."""
    states = []
    for prompt in prompts:
        run = model.stream(prompt, max_tokens=tokens, seed=42)
        "".join(run)
        states.append(run.state.vector())
    return np.stack(states).astype(np.float64)


def first_definition(states: Array, window: int) -> tuple[float, float, float]:
    """Mean and variance of the last deltas, and their coherence."""
    deltas = np.array([metrics.state_delta(a, b) for a, b in pairwise(states)])[-window:]
    return float(deltas.mean()), float(deltas.var()), metrics.coherence(deltas, n=states.shape[1])


def as_defined(model: rookery.Model, prompts: Sequence[str], tokens: int, window: int) -> list[Row]:
    states = captures(model, prompts, tokens)
    white = free(make("iid", reference=states), len(states) - 1, 1).states["state"]
    again = captures(model, [prompts[0], prompts[1], prompts[0]], tokens)
    print(f"1. As it was defined: {len(prompts)} generations of {tokens} tokens, each from an empty state, all")
    print(f"   {states.shape[1]:,} numbers as one; the last {window} deltas.\n")
    print(f"{'':34}{'mean delta':>12}{'variance':>12}{'coherence':>12}")
    systems = {
        "the captures": states,
        "in another order": states[np.random.default_rng(0).permutation(len(states))],
        "in units a hundred times smaller": 100 * states,
        "noise of their mean and sd": white,
        "white noise, mean 0 and sd 1": free(make("iid", n=states.shape[1]), len(states) - 1, 1).states["state"],
        "one capture, over and over": np.repeat(states[:1], len(states), axis=0),
    }
    rows = []
    for system, run in systems.items():
        mean, variance, coherence = first_definition(run, window)
        print(f"{system:34}{mean:12.4g}{variance:12.3g}{coherence:12.6f}")
        values = {"state_delta": mean, "variance of deltas": variance, "coherence": coherence}
        units = {"state_delta": "the state's", "variance of deltas": "the state's, squared", "coherence": "none"}
        rows += [Row(system, "all", metric, units[metric], value) for metric, value in values.items()]
    apart = metrics.state_delta(again[0], again[2])
    print("\n   Read it beside the noise, which means nothing, and the other units, which change nothing.")
    print(f"   Prompt A, then B, then A: the two captures after A differ by {apart:g}, so they hold nothing of B.")
    print("   The deltas tell prompts apart; there is no state that goes from tick to tick.\n")
    return rows


# as it can be trusted


def whole(path: Trajectory) -> Trajectory:
    """With all components together as "all"."""
    return {**path, "all": np.concatenate([rows.reshape(len(rows), -1) for rows in path.values()], axis=1)}


def measured(path: Trajectory) -> dict[tuple[str, str], float]:
    found = {}
    for name, rows in whole(path).items():
        relative = [metrics.rel_delta(a, b) for a, b in pairwise(rows)]
        found[name, "rel_delta"] = float(np.mean(relative))
        found[name, "coherence_cv"] = metrics.coherence_cv(relative).coherence_cv
        found[name, "coherence"] = metrics.coherence([metrics.state_delta(a, b) for a, b in pairwise(rows)])
    return found


def followed(
    model: rookery.Model, texts: Sequence[str], ticks: int, tokens: int
) -> dict[str, list[dict[tuple[str, str], float]]]:
    """Of the model and of nulls matched to each of its runs: what was measured, by prompt."""
    rwkv = make("rwkv", model=model, sampling=rookery.Sampling())
    found: dict[str, list[Any]] = {system: [] for system in ("carried", *NULLS)}
    for seed, text in enumerate(texts):
        begin(rwkv, model.tokenizer.encode(text)[:PREFIX], seed)
        path = free(rwkv, ticks, tokens).states
        found["carried"].append(measured(path))
        for name in NULLS:
            null = make(name, reference=path)
            null.reset(seed)
            found[name].append(measured(free(null, ticks, 1).states))
    return found


def with_intervals(found: Mapping[str, Sequence[Mapping[tuple[str, str], float]]]) -> list[Row]:
    """Means over prompts, with 95 % intervals from drawing prompts anew."""
    rows = []
    for system, prompts in found.items():
        for component, metric in prompts[0]:
            i = metrics.bootstrap([prompt[component, metric] for prompt in prompts])
            rows.append(Row(system, component, metric, "none", i.estimate, i.low, i.high, i.prompts))
    return rows


def floors(model: rookery.Model, text: str) -> list[Row]:
    """How far a component is from itself when the same tokens are computed another way: no effect is below that."""
    found = sensitivity.noise_floor(
        model, model.tokenizer.encode(text), [rookery.load(model.weights.path, backend="reference")]
    )
    ways = ("floor, one by one", "floor, another back end")
    return [Row(w, n, "rel_delta", "none", x) for w, f in zip(ways, found, strict=True) for n, x in f.pieces.items()]


def table(rows: Sequence[Row], ticks: int, tokens: int) -> None:
    at = {(r.system, r.component, r.metric): r.estimate for r in rows}
    mine = [r for r in rows if (r.system, r.metric) == ("carried", "rel_delta")]
    print(f"2. One state carried on: {mine[0].prompts} prompts, {ticks} ticks of {tokens} tokens that the model wrote.")
    print("   rel_delta a tick, relative to the component's length, with its 95 % interval over prompts.\n")
    print(f"{'component':20}{'rel_delta':>10}{'interval':>17}{'coherence_cv':>14}{'iid':>8}{'ar1':>8}{'floor':>10}")
    for r in mine:
        iid, ar1 = at["iid", r.component, "rel_delta"], at["ar1", r.component, "rel_delta"]
        floor = at.get(("floor, another back end", r.component, "rel_delta"))
        print(
            f"{r.component:20}{r.estimate:10.3f}{f'{r.low:.3f} to {r.high:.3f}':>17}"
            f"{at['carried', r.component, 'coherence_cv']:14.3f}{iid:8.3f}{ar1:8.3f}{_shown(floor):>10}"
        )
    same = max(r.estimate for r in rows if r.system == "floor, one by one")
    print("\n   iid, ar1: rel_delta of noise made like each run (frozen: 0). floor: the same tokens on the reference")
    print(f"   back end, which rounds no activations; one by one against all at once it is {same:.2g}.\n")
    print(f"{'all components':20}{'coherence':>12}{'coherence_cv':>14}{'rel_delta':>11}")
    for system in ("carried", *NULLS):
        first, cv, moved = (at[system, "all", metric] for metric in ("coherence", "coherence_cv", "rel_delta"))
        print(f"{system:20}{first:12.6f}{cv:14.3f}{moved:11.3f}")
    print(
        "\n   Noise is steady too, so neither coherence tells it from a state that keeps something. What does is where"
    )
    print("   rel_delta stands, component by component, between frozen (0) and iid.")


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.1e}"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Left: how much each component moves, between its nulls and its floor. Right: the two coherences."""
    with look.styled():
        made, (axes,) = look.figure(1, 2, 5.2, width_ratios=[1.6, 1])
        _moved(axes[0], rows)
        _coherences(axes[1], {(r.system, r.metric): r for r in rows if r.component == "all"})
        path.write_bytes(look.saved(made, "png"))


def _moved(ax: Any, rows: Sequence[Row]) -> None:
    wanted = [r for r in rows if r.metric == "rel_delta" and r.component != "all"]
    mine = [r for r in wanted if r.system == "carried"]
    marks = {"floor, another back end": ("|", "numeric floor"), "iid": ("s", "iid noise"), "ar1": ("D", "AR(1) noise")}
    for system, (mark, said) in marks.items():
        x = [r.estimate for r in wanted if r.system == system]
        looks = {
            "color": LOOKS.get(system, "dimgrey"),
            "markersize": 10,
            "markerfacecolor": "none",
            "linestyle": "none",
        }
        ax.plot(x, range(len(x)), mark, label=said, **looks)
    ax.plot([r.estimate for r in mine], range(len(mine)), "o", color=LOOKS["carried"], label="carried state")
    ax.hlines(range(len(mine)), [r.low for r in mine], [r.high for r in mine], color=LOOKS["carried"])
    ax.set_yticks(range(len(mine)), [look.label(r.component) for r in mine])
    ax.invert_yaxis()
    ax.set_xlabel("rel_delta (relative change per tick)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.35, -0.12), ncols=2, frameon=False)


def _coherences(ax: Any, at: Mapping[tuple[str, str], Row]) -> None:
    systems = {"the captures": "as defined", "carried": "carried", "frozen": "frozen", "iid": "iid", "ar1": "AR(1)"}
    for i, system in enumerate(systems):
        colour = LOOKS.get(system, look.RED)
        ax.barh(i - 0.2, at[system, "coherence"].estimate, 0.36, color=colour, alpha=0.4)
        if (system, "coherence_cv") in at:
            ax.barh(i + 0.2, at[system, "coherence_cv"].estimate, 0.36, color=colour)
    ax.set_yticks(range(len(systems)), systems.values())
    ax.invert_yaxis()
    ax.set_xlabel("pale: coherence, as defined\nfull: coherence_cv (no unit)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--prompts", type=int, default=30, help="texts that are read, at most 30; 10 or more")
    parser.add_argument("--ticks", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=8, help="of a tick, and of twice as many of a generation")
    parser.add_argument("--out", type=Path, default=Path("cold-boot"), help="folder of the table and the picture")
    o = parser.parse_args()
    model, texts = rookery.load(o.model), [text for _, text in PASSAGES[: o.prompts]]
    warnings.filterwarnings("ignore", "coherence by its first definition")  # the tables say it
    rows = as_defined(model, [text[:80] for text in texts], 2 * o.tokens, window=10)
    rows += with_intervals(followed(model, texts, o.ticks, o.tokens)) + floors(model, texts[0])
    table(rows, o.ticks, o.tokens)
    o.out.mkdir(parents=True, exist_ok=True)
    with open(o.out / "cold-boot.csv", "w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *rows])
    picture(rows, o.out / "cold-boot.png")
    print(f"\nwrote {o.out / 'cold-boot.csv'} and {o.out / 'cold-boot.png'}")


if __name__ == "__main__":
    main()
