"""What a perturbation of the state does: to the next token, to the state afterwards, to the text that is written.

    python examples/state/perturbation.py [--model gosling] [--out perturbation]

(On a model this small, threads of NumPy's BLAS only wait for each other.) A push is a random direction of the length
`size` times the component's. Measured by us: the native engine as stored rounds its activations to 8 bits, so that it
answers small pushes in steps; sensitivities are taken with dtype="float32", which rounds none, and both are shown.
Prints three tables and writes perturbation.csv and perturbation.png.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import rookery
from rookery.lab import look, metrics, sensitivity
from rookery.lab.drive import begin
from rookery.lab.passages import PASSAGES
from rookery.lab.substrates import make

Array = npt.NDArray[Any]

READ = 40  # tokens of each text before the push
STEPS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative sizes for the sensitivity
PUSH = 0.1  # relative size whose recovery is watched
COLOURS = (look.BLUE, look.ORANGE, look.GREEN, look.RED)


class Row(NamedTuple):
    part: str
    component: str
    size: float  # of the push, relative
    metric: str
    unit: str
    estimate: float
    low: float = float("nan")
    high: float = float("nan")
    prompts: int = 0


class Setting:
    """A model that has read the beginning of a text, and what comes next in it."""

    def __init__(self, model: rookery.Model, texts: Sequence[str]) -> None:
        self.rwkv = make("rwkv", model=model, sampling=rookery.Sampling())
        self.ids = [model.tokenizer.encode(text) for text in texts]

    def at(self, text: int, tokens: int) -> list[int]:
        """Go there; the next `tokens` tokens of the text."""
        begin(self.rwkv, self.ids[text][:READ], text)
        return self.ids[text][READ : READ + tokens]


def to_the_next_token(here: Setting) -> tuple[list[Row], dict[str, list[metrics.Sensitivity]]]:
    """KL / size^2 of each component, over texts: a number where it is the same for at least three sizes."""
    sweeps: dict[str, list[metrics.Sensitivity]] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*had no range of sizes")  # counted in the table
        for text in range(len(here.ids)):
            tokens = here.at(text, 1)
            for effect in sensitivity.next_token_effect(here.rwkv, tokens, directions=1, seed=text, steps=STEPS):
                sweeps.setdefault(effect.component, []).extend(effect.sweeps)
    rows = []
    for component, each in sweeps.items():
        values = [sweep.value for sweep in each if np.isfinite(sweep.value)]
        if len(values) > 1:
            i = metrics.bootstrap(values)
            one = Row("next token", component, 1.0, "KL / size^2", "nats", i.estimate, i.low, i.high, i.prompts)
            rows.append(one)
    return rows, sweeps


def to_the_state(here: Setting, components: Sequence[str], tokens: int) -> tuple[list[Row], dict[str, Array]]:
    """Teacher-forced: the component's distance from the undisturbed run, while both read the same text."""
    rows, curves = [], {}
    for component in components:
        found = []
        for text in range(len(here.ids)):
            rest: list[int | None] = [*here.at(text, tokens)]
            found.append(sensitivity.recovery(here.rwkv, rest, component, PUSH, seed=text))
        curves[component] = np.array([f.curves[component] for f in found])
        shares = {f"left after {t} tokens": [c[t] / c[0] for c in curves[component]] for t in (1, 8, tokens)}
        kl = {"KL of the 1st token": [f.kl[0] for f in found], f"KL of token {tokens}": [f.kl[-1] for f in found]}
        for metric, values in (shares | kl).items():
            i = metrics.bootstrap(values)
            unit = "nats" if metric.startswith("KL") else "share"
            rows.append(Row("recovery", component, PUSH, metric, unit, i.estimate, i.low, i.high, i.prompts))
        fits = [metrics.recovery(c) for c in curves[component]]
        fitted: dict[str, list[float]] = {"half is left after": [_half(c) for c in curves[component]]}
        fitted |= {
            "half-life, by exp + floor": [f.half_life for f in fits],
            "error of that fit": [f.residual for f in fits],
        }
        for (metric, values), unit in zip(fitted.items(), ("tokens", "tokens", "relative"), strict=True):
            i = metrics.bootstrap(values, lambda x: float(np.median(x)))
            rows.append(Row("recovery", component, PUSH, metric, unit, i.estimate, i.low, i.high, i.prompts))
    return rows, curves


def _half(curve: Array) -> float:
    return float(metrics.response_half_life(curve))


def to_the_text(
    here: Setting, component: str, sizes: Sequence[float], tokens: int, seeds: int
) -> tuple[list[Row], dict[float, metrics.Survival]]:
    """Free-running: both write with the same random numbers; when do the texts part?"""
    rows, curves = [], {}
    for size in sizes:
        found = []
        for text in range(len(here.ids)):
            here.at(text, 1)
            each = range(text * seeds, (text + 1) * seeds)
            found.append(sensitivity.divergence(here.rwkv, component, size, tokens, each, rookery.Sampling()))
        curves[size] = metrics.survival([event for f in found for event in f.first])
        equal = [[float(not event.seen) for event in f.first] for f in found]
        edits = [f.edits for f in found]
        for metric, by_text, unit in (("still equal", equal, "share"), ("edits", edits, f"tokens of {tokens}")):
            i = metrics.bootstrap(by_text)
            rows.append(Row("free-running", component, size, metric, unit, i.estimate, i.low, i.high, i.prompts))
        rows.append(Row("free-running", component, size, "median time to a difference", "tokens", curves[size].median))
    return rows, curves


def floor(here: Setting, model: rookery.Model) -> list[Row]:
    """The same tokens on the reference back end: differences below these are no effects."""
    other = rookery.load(model.weights.path, backend="reference")
    at_once, elsewhere = sensitivity.noise_floor(model, here.ids[0][:READ], [other])
    rows = [Row("floor", name, 0.0, "another back end", "relative", x) for name, x in elsewhere.pieces.items()]
    rows.append(Row("floor", "next token", 0.0, "another back end", "nats", elsewhere.kl))
    return [*rows, Row("floor", "all", 0.0, "one by one", "relative", max(at_once.pieces.values()))]


def show(rows: Sequence[Row], stored: Sequence[metrics.Sensitivity], tried: int) -> None:
    at = {(r.component, r.metric): r for r in rows if r.part in ("recovery", "floor")}
    other = at["next token", "another back end"].estimate
    print(
        "1. The next token: nats of KL for a push of size 1, as far as the square law holds; 1 % is a ten-thousandth."
    )
    print(f"   95 % interval over texts. Numeric floor: {other:.1e} nats.\n")
    print(f"{'component':20}{'KL / size^2':>12}{'interval':>20}{'texts':>8}")
    for r in rows:
        if r.part == "next token":
            print(f"{r.component:20}{r.estimate:12.2e}{f'{r.low:.1e} to {r.high:.1e}':>20}{r.prompts:4} of {tried}")
    flat = sum(np.isfinite(sweep.value) for sweep in stored)
    print(f"\n   Activations as stored: {flat} of {len(stored)} pushes have any range of sizes with one answer.\n")
    least = max(r.estimate for r in rows if (r.part, r.unit) == ("floor", "relative"))
    parts = {
        "recovery": f"2. The state after a push of {PUSH:g}, both reading the same text. Numeric floor: {least:.0e}"
    }
    parts["free-running"] = "3. The text, both drawing with the same random numbers; the first size is the floor's"
    for part, title in parts.items():
        print(f"{title}.\n")
        for r in rows:
            if r.part == part:
                interval = "" if np.isnan(r.low) else f"{r.low:.3g} to {r.high:.3g}"
                what = f"{r.component}, {r.size:.2g}"
                print(f"{what:22}{r.metric:30}{r.estimate:10.3g} {r.unit:14}{interval}")
        print()


def picture(
    path: Path,
    rows: Sequence[Row],
    sweeps: tuple[metrics.Sensitivity, metrics.Sensitivity],
    curves: dict[str, Array],
    texts: dict[float, metrics.Survival],
    tokens: int,
) -> None:
    with look.styled():
        made, ((next_token, steps), (state, text)) = look.figure(2, 2, 4.4)
        kl = [r for r in rows if r.part == "next token"]
        next_token.hlines(range(len(kl)), [r.low for r in kl], [r.high for r in kl], color=look.BLUE)
        next_token.plot([r.estimate for r in kl], range(len(kl)), "o", color=look.BLUE)
        next_token.set_yticks(range(len(kl)), [look.label(r.component) for r in kl])
        next_token.invert_yaxis()
        next_token.set_xscale("log")
        next_token.set_xlabel("KL / size² (nats)")
        for sweep, colour, said in zip(sweeps, COLOURS, ("float32", "as stored (8 bits)"), strict=False):
            steps.loglog(sweep.steps, sweep.ratios, "o-", color=colour, label=said)
        steps.set_xlabel("size of the push (relative)")
        steps.set_ylabel("KL / size² (nats)")
        steps.legend(frameon=False)
        for (component, curve), colour in zip(curves.items(), COLOURS, strict=False):
            low, middle, high = np.percentile(curve, [5, 50, 95], axis=0)
            state.fill_between(range(len(middle)), low, high, color=colour, alpha=0.18, linewidth=0)
            state.semilogy(middle, color=colour, label=look.label(component))
        state.set_xlabel("tokens after the push")
        state.set_ylabel("distance (relative)")
        state.legend(frameon=False)
        for (size, survival), colour in zip(texts.items(), COLOURS, strict=False):
            x, y = [0, *survival.times, tokens], [1, *survival.share, (survival.share.tolist() or [1])[-1]]
            text.step(x, y, where="post", color=colour, label=f"size {size:.1g}")
        text.set_ylim(0, 1.05)
        text.set_xlabel("tokens written")
        text.set_ylabel("share of texts still equal")
        text.legend(frameon=False)
        path.write_bytes(look.saved(made, "png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--component", default="layers.1.wkv", help="pushed before the texts are written")
    parser.add_argument("--texts", type=int, default=10, help="at most 30; 10 or more for intervals to be trusted")
    parser.add_argument("--tokens", type=int, default=48, help="that are followed after a push")
    parser.add_argument("--seeds", type=int, default=2, help="texts written from each")
    parser.add_argument("--out", type=Path, default=Path("perturbation"), help="folder of the table and the picture")
    o = parser.parse_args()
    texts = [text for _, text in PASSAGES[: o.texts]]
    model = rookery.load(o.model, dtype="float32")
    here, stored = Setting(model, texts), Setting(rookery.load(o.model), texts[:2])
    rows, sweeps = to_the_next_token(here)
    rounded = to_the_next_token(stored)[1]
    wkv = [name for name in sweeps if name.endswith(".wkv")][:4]
    back, curves = to_the_state(here, wkv, o.tokens)
    rows += back + floor(here, model)
    least = max(r.estimate for r in rows if (r.part, r.unit) == ("floor", "relative"))
    away, survivals = to_the_text(here, o.component, (least, 0.01, 0.1), o.tokens, o.seeds)
    rows += away
    show(rows, [sweep for each in rounded.values() for sweep in each], len(texts))
    o.out.mkdir(parents=True, exist_ok=True)
    with open(o.out / "perturbation.csv", "w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *rows])
    both = sweeps[o.component][0], rounded[o.component][0]
    picture(o.out / "perturbation.png", rows, both, curves, survivals, o.tokens)
    print(f"wrote {o.out / 'perturbation.csv'} and {o.out / 'perturbation.png'}")


if __name__ == "__main__":
    main()
