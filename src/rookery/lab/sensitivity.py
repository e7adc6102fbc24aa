"""What a small disturbance does: to the next token, to the state afterwards, to what is written from there.

For any substrate (`lab.substrates`); it is left as it was found. Sizes are relative: a push of 0.01 along a direction
is 1 % of the component's L2 norm. KL is in nats, time in ticks (of an RWKV: tokens). Directions are Gaussian, from a
seed. An effect below the noise floor (`noise_floor`) is no effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError
from rookery.lab import metrics, pieces
from rookery.lab.metrics.arrays import norm
from rookery.lab.metrics.sensitivity import STEPS
from rookery.lab.substrates import Substrate, stream
from rookery.model import Model
from rookery.sampling import Sampler, Sampling

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """On the next token, of pushes into one component: KL(undisturbed || disturbed) = kl * size^2 for small sizes."""

    component: str
    kl: float  # nats per squared unit of relative size, the mean over directions; NaN if none had a flat range
    sweeps: list[metrics.Sensitivity]  # one a direction

    @property
    def kl_of_one_percent(self) -> float:
        """Nats, for a push of 1 % of the component's norm, as far as the square law holds."""
        return self.kl * 1e-4

    @property
    def used(self) -> int:
        """Directions that had a flat range of steps."""
        return sum(np.isfinite(sweep.value) for sweep in self.sweeps)


def next_token_effect(
    substrate: Substrate,
    tokens: Sequence[int],
    components: str | Iterable[str] = "*",
    directions: int = 4,
    seed: int = 0,
    steps: Sequence[float] = STEPS,
) -> list[Effect]:
    """Push each component (globs) where the substrate stands, read `tokens`, and compare the next token's distribution.

    Every direction is pushed both ways over four decades of size, and counts where KL / size^2 is flat: too small a
    push measures rounding. A model that rounds its activations (native as stored, of quantised files) rounds by steps:
    load it with dtype="float32". A UserWarning says how many directions were not flat anywhere. Raises InputError for
    a substrate without logits and for no tokens.
    """
    if not len(tokens):
        raise InputError("no tokens to read: a push shows in the logits only after the next token")
    here = substrate.snapshot()
    undisturbed = _logits_after(substrate, tokens)
    substrate.restore(here)
    now, out = substrate.components(), []
    for name in pieces.match(now, components):
        sweeps = []
        for i in range(directions):
            direction = stream(seed, name, i).standard_normal(now[name].shape)

            def respond(size: float, name: str = name, direction: Float64 = direction) -> Float64:
                substrate.restore(here)
                if size:
                    substrate.perturb(name, direction, size)
                divergence: Float64 = metrics.kl(undisturbed, _logits_after(substrate, tokens))
                return divergence

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "no range of steps", UserWarning)  # said once for all, below
                sweeps.append(metrics.step_sweep(respond, steps, order=2))
        values = [sweep.value for sweep in sweeps if np.isfinite(sweep.value)]
        out.append(Effect(name, float(np.mean(values)) if values else float("nan"), sweeps))
    substrate.restore(here)
    tried, used = directions * len(out), sum(effect.used for effect in out)
    if used < tried:
        warnings.warn(
            f"{tried - used} of {tried} pushes had no range of sizes in which KL grows with the square of the size and "
            'are left out; activations that are rounded do that (dtype="float32" rounds none)',
            UserWarning,
            stacklevel=2,
        )
    return out


@dataclass(frozen=True)
class Recovered:
    """After a push at t = 0. `curves`: ||x' - x|| / ||x|| of each component, [T+1], relative; `fits`: half-life and
    floor of each, where it was moved at all; `kl` [T]: of the next token, in nats (empty without logits).
    """

    curves: dict[str, Float64]
    fits: dict[str, metrics.Recovery]
    kl: Float64
    nonfinite: int  # numbers of both runs' components that are NaN or infinite


def recovery(
    substrate: Substrate, tokens: Sequence[int | None], component: str, size: float = 0.01, seed: int = 0
) -> Recovered:
    """Push one component, then read the same tokens with and without (None: a tick without a token), and compare.

    A component of no length gives infinity where it was moved, 0 where not. Raises InputError for fewer than 3 tokens.
    """
    if len(tokens) < 3:
        raise InputError(f"{len(tokens)} tokens do not show a recovery; at least 3 are wanted")
    here = substrate.snapshot()
    shape = substrate.components()[pieces.match(substrate.components(), component)[0]].shape
    plain = _run(substrate, tokens)
    substrate.restore(here)
    substrate.perturb(component, stream(seed, component).standard_normal(shape), size)
    pushed = _run(substrate, tokens)
    substrate.restore(here)
    curves = {
        name: np.array([_distance(a[0][name], b[0][name]) for a, b in zip(plain, pushed, strict=True)])
        for name in plain[0][0]
    }
    fits = {n: metrics.recovery(c) for n, c in curves.items() if c.any() and np.isfinite(c).all()}
    pairs = [(a[1], b[1]) for a, b in zip(plain[1:], pushed[1:], strict=True)]
    kl = np.array([metrics.kl(p, q) for p, q in pairs if p is not None and q is not None])
    bad = sum(metrics.nonfinite(x) for run in (plain, pushed) for parts, _ in run for x in parts.values())
    return Recovered(curves, fits, kl, bad)


@dataclass(frozen=True)
class Divergence:
    """Of free-running texts, pushed against not pushed: one entry a seed. `first`: after how many tokens they first
    differ, or for how long they did not; `edits`: tokens inserted, deleted or replaced between them.
    """

    first: list[metrics.Event]
    edits: list[int]
    tokens: int  # length of each text

    @property
    def survival(self) -> metrics.Survival:
        """The share of texts still equal, by tokens."""
        return metrics.survival(self.first)


def divergence(
    substrate: Substrate,
    component: str,
    size: float,
    tokens: int = 64,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    sampling: Sampling | None = None,
) -> Divergence:
    """Write `tokens` tokens from where the substrate stands, twice a seed: as it is, and after a push.

    A seed gives the direction and the random numbers of `sampling` (None: greedy), which both texts share. The first
    token is drawn from logits made before the push, so that no text differs before its second. Raises InputError for a
    substrate that has no logits here.
    """
    here, first, edits = substrate.snapshot(), [], []
    shape = substrate.components()[pieces.match(substrate.components(), component)[0]].shape
    for seed in seeds:
        texts = []
        for pushed in (False, True):
            substrate.restore(here)
            if pushed:
                substrate.perturb(component, stream(seed, component).standard_normal(shape), size)
            texts.append(_write(substrate, tokens, sampling or Sampling(temperature=0), seed))
        first.append(metrics.first_difference(*texts))
        edits.append(metrics.edit_distance(*texts))
    substrate.restore(here)
    return Divergence(first, edits, tokens)


@dataclass(frozen=True)
class Floor:
    """Numeric noise of one way to compute the same: relative difference of each piece, KL of the next token in nats."""

    way: str
    pieces: dict[str, float]
    kl: float


def noise_floor(model: Model, tokens: Sequence[int], others: Iterable[Model] = ()) -> list[Floor]:
    """`model` reading `tokens` at once against one by one, and against `others`: the same model on another back end, or
    quantised otherwise. The first is 0 where the law of rows holds (native, reference).
    """
    logits, state = model.forward(tokens)
    single, after = model.forward(tokens[0])
    for token in tokens[1:]:
        single, after = model.forward(token, after)
    runs = [("one by one", single, after)]
    runs += [(f"{m.arithmetic}, {m.weights.path}", *m.forward(tokens)) for m in others]
    here = pieces.read_all(state)
    return [
        Floor(way, {n: _distance(here[n], x) for n, x in pieces.read_all(s).items()}, float(metrics.kl(logits, y)))
        for way, y, s in runs
    ]


def _distance(x: Array, other: Array) -> float:
    """||other - x|| / ||x||, relative."""
    moved, length = (norm(d) for d in (other - x, x))
    return moved / length if length else np.inf if moved else 0.0


def _logits_after(substrate: Substrate, tokens: Sequence[int]) -> Array:
    for token in tokens:
        substrate.step(token)
    return _required(substrate)


def _required(substrate: Substrate) -> Array:
    logits = substrate.logits()
    if logits is None:
        raise InputError(f"{substrate.name} has no logits here: a next token is what this compares")
    return logits


def _run(substrate: Substrate, tokens: Sequence[int | None]) -> list[tuple[dict[str, Array], Array | None]]:
    out = [(substrate.components(), substrate.logits())]
    for token in tokens:
        substrate.step(token)
        out.append((substrate.components(), substrate.logits()))
    return out


def _write(substrate: Substrate, count: int, sampling: Sampling, seed: int) -> list[int]:
    sampler = Sampler(sampling, len(_required(substrate)), seed)
    text: list[int] = []
    while len(text) < count:
        text.append(sampler.sample(_required(substrate)))
        sampler.accept(text[-1])
        substrate.step(text[-1])
    return text
