"""Contrastive steering: the mean difference of two kinds of prompts, added to a state or to the residual stream.

`contrast` takes it from the state (any version, any back end), `contrast_residual` from the residual stream after each
layer, at the last token. Each comes with its null: the same pairs with their sides swapped at random, which is what a
direction that means nothing would come to. A direction that is no longer than its null is none.
On the state it is added once (`steer`) and lasts as long as the state keeps it; on the residual stream it is added at
every token while a `with steering_residual(...)` block runs, which only the reference and torch back ends can do: the
native plan's listeners hear and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.errors import BackendError, InputError
from rookery.lab import metrics, pieces, surgery
from rookery.lab.metrics.arrays import norm
from rookery.lab.taps import read_with_taps
from rookery.model import Model
from rookery.state import State

Float64: TypeAlias = npt.NDArray[np.float64]
Prompt: TypeAlias = str | bytes | Sequence[int]
Pairs: TypeAlias = Sequence[tuple[Prompt, Prompt]]  # (towards, away from)

NULLS = 200  # random swaps; the smallest p is 1 / 201


@dataclass(frozen=True)
class Contrast:
    """By name: the mean over pairs of (towards - away), and its length against that of `NULLS` random swaps.

    `null` [NULLS]: their lengths, in the units of the vector. `p`: the share of swaps, this one included, that come out
    as long or longer; with n pairs it cannot fall below 2 / 2^n.
    """

    vectors: dict[str, Float64]
    null: dict[str, Float64]
    p: dict[str, float]
    pairs: int

    def ratio(self, name: str) -> float:
        """The vector's length over the median one of its null: 1 for a direction that means nothing."""
        return norm(self.vectors[name]) / float(np.median(self.null[name]))

    def blank(self, seed: int) -> Contrast:
        """Directions that mean nothing, of the lengths of these: Gaussian. What they do is the null of an effect."""
        random = np.random.default_rng(seed)
        draws = {name: random.standard_normal(v.shape) for name, v in self.vectors.items()}
        same = {name: d * (norm(self.vectors[name]) / norm(d)) for name, d in draws.items()}
        return Contrast(same, self.null, self.p, self.pairs)


def contrast(model: Model, pairs: Pairs, pattern: str | Iterable[str] = "layers.*.wkv", seed: int = 0) -> Contrast:
    """Of the state after each prompt, for the pieces that fit. Raises InputError for fewer than two pairs."""

    def seen(prompt: Prompt) -> Mapping[str, Float64]:
        return pieces.read_all(model.forward(_ids(model, prompt))[1], pattern)

    return _contrast(seen, pairs, seed)


def contrast_residual(model: Model, pairs: Pairs, layers: Sequence[int] | None = None, seed: int = 0) -> Contrast:
    """Of the residual stream [C] after these layers (default: all) at the last token, by "layers.{i}.resid"."""
    chosen = range(model.config.n_layer) if layers is None else layers

    def seen(prompt: Prompt) -> Mapping[str, Float64]:
        heard, _, _ = read_with_taps(model, _ids(model, prompt), [f"layers.{i}.resid" for i in chosen])
        return {name: rows[-1].astype(np.float64) for name, rows in heard.items()}

    return _contrast(seen, pairs, seed)


def _contrast(seen: Callable[[Prompt], Mapping[str, Float64]], pairs: Pairs, seed: int) -> Contrast:
    if len(pairs) < 2:
        raise InputError(f"{len(pairs)} pairs: at least 2 are wanted, and 6 for a p below 0.05")
    towards, away = ([seen(pair[side]) for pair in pairs] for side in (0, 1))
    swaps = np.random.default_rng(seed).choice([-1.0, 1.0], (NULLS, len(pairs)))
    vectors, null, p = {}, {}, {}
    for name in towards[0]:
        each = np.stack([a[name] - b[name] for a, b in zip(towards, away, strict=True)])
        vectors[name] = each.mean(0)
        gram = each.reshape(len(each), -1) @ each.reshape(len(each), -1).T  # lengths of all swaps without the vectors
        null[name] = np.sqrt(np.maximum(np.einsum("si,ij,sj->s", swaps, gram, swaps), 0)) / len(each)
        length = norm(vectors[name])
        p[name] = float((1 + (null[name] >= length * (1 - 1e-9)).sum()) / (1 + NULLS))
    return Contrast(vectors, null, p, len(pairs))


def steer(state: State, contrast: Contrast, scale: float = 1.0, pattern: str | Iterable[str] = "*") -> State:
    """A new state with `scale` times the vectors that fit added; scale 1 is the mean difference of the pairs.

    Raises InputError for a contrast that is not of this state's pieces.
    """
    for name in pieces.match(contrast.vectors, pattern):
        state = surgery.add(state, name, contrast.vectors[name], scale)
    return state


@contextmanager
def steering_residual(model: Model, contrast: Contrast, scale: float = 1.0) -> Iterator[None]:
    """While it runs, `scale` times each vector is added to the residual stream after its layer, at every token read.

    Raises BackendError on the native back end, and where something else changes values already.
    """
    runner: Any = model.runner
    if model.backend not in ("reference", "torch"):
        raise BackendError(
            f"the {model.backend} back end cannot change the residual stream; backend='reference' and 'torch' can"
        )
    if runner.listener is not None:
        raise BackendError("another listener changes this model's values already; leave its block first")

    def listener(name: str, x: Any) -> Any:
        vector = contrast.vectors.get(name)
        if vector is None:
            return x
        step = (scale * vector).astype(model.runner.dtype)
        return x + (step if isinstance(x, np.ndarray) else x.new_tensor(step))

    runner.listener = listener
    try:
        yield
    finally:
        runner.listener = None


@dataclass(frozen=True)
class Steered:
    """Log-odds, in nats, of the one continuation against the other, by scale: without steering, with it, and with
    directions that mean nothing of the same lengths.
    """

    base: float
    scales: Float64  # [S]
    log_odds: Float64  # [S]
    null: Float64  # [S, nulls]

    @property
    def change(self) -> Float64:
        """[S], nats."""
        return self.log_odds - self.base

    @property
    def null_change(self) -> Float64:
        """[S, nulls], nats."""
        return self.null - self.base


def effect(
    model: Model,
    prompt: Prompt,
    contrast: Contrast,
    wanted: Prompt,
    other: Prompt,
    scales: Sequence[float] = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0),
    nulls: int = 10,
    seed: int = 0,
) -> Steered:
    """ln P(wanted) - ln P(other) after `prompt`, teacher-forced, with the vectors added to the state there.

    The prompt's last token is read after the vectors are added, so that its logits see them. A contrast of the residual
    stream acts at every token from the prompt's last on.
    """
    ids = _ids(model, prompt)
    if len(ids) < 2:
        raise InputError("a prompt of at least 2 tokens is wanted: the last one is read after the vectors are added")
    _, before = model.forward(ids[:-1])
    texts = [[*ids[-1:], *_ids(model, text)] for text in (wanted, other)]

    def odds(vectors: Contrast, scale: float) -> float:
        if all(name.endswith(".resid") for name in vectors.vectors):
            with steering_residual(model, vectors, scale):
                return _log_odds(model, before, texts)
        return _log_odds(model, steer(before, vectors, scale), texts)

    blanks = [contrast.blank(seed + i) for i in range(nulls)]
    return Steered(
        _log_odds(model, before, texts),
        np.array(scales, np.float64),
        np.array([odds(contrast, s) for s in scales]),
        np.array([[odds(blank, s) for blank in blanks] for s in scales]).reshape(len(scales), nulls),
    )


def _log_odds(model: Model, state: State, texts: Sequence[Sequence[int]]) -> float:
    """ln P(texts[0]) - ln P(texts[1]) from `state`, of all tokens but each one's first, which is only read."""
    each = []
    for text in texts:
        logits, _ = model.forward(text[:-1], state, every=True)
        each.append(float(metrics.log_softmax(logits)[np.arange(len(text) - 1), text[1:]].sum()))
    return each[0] - each[1]


def _ids(model: Model, prompt: Prompt) -> list[int]:
    ids = list(model.tokenizer.encode(prompt)) if isinstance(prompt, str | bytes) else list(prompt)
    if not ids:
        raise InputError("an empty text: at least one token is wanted")
    return ids
