"""Can a known fact be read off the state by a straight line? A ridge probe, tested on prompts it has not seen.

R rows (ticks of all prompts), D channels, K classes. Channels are standardised by the training rows alone. The null
shuffles the labels as they hang together: among prompts where a prompt has one label, round within it elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.lab.metrics.arrays import Array, float64, nonfinite
from rookery.lab.metrics.uncertainty import Seed


class Probe(NamedTuple):
    """`score` is accuracy, or R^2 for real labels, over held-out prompts; NaN where a channel is not finite."""

    score: float
    null: Array  # [shuffles], the same with shuffled labels
    p: float  # share of the null, with the true one among it, that does as well
    chance: float  # always guessing the commonest label; of R^2, 0
    by_prompt: Array  # [P], each prompt's accuracy or (for R^2) mean squared error over the variance of all
    nonfinite: int


class _Fold(NamedTuple):
    train: Array  # rows
    test: Array
    hat: Array  # [test, train]: held-out predictions are hat @ (centred labels) + their mean


def linear_probe(
    states: Any,
    labels: Any,
    prompts: Any,
    penalty: float = 0.01,
    folds: int = 5,
    shuffles: int = 200,
    seed: Seed = 0,
) -> Probe:
    """How well labels [R] are read off states [R, D], whole prompts held out; `prompts` [R] says whose row is whose.

    Labels of a float type are regressed on and scored by R^2; all others are classes, one ridge regression each, the
    largest wins. `penalty` is per training row, in units of a standardised channel's variance.
    """
    x, y, groups = float64(states), np.asarray(labels), np.asarray(prompts)
    if x.ndim != 2 or y.shape != (len(x),) or groups.shape != (len(x),):
        raise InputError(
            f"states [rows, channels], labels [rows] and prompts [rows] are wanted, not {list(x.shape)}, "
            f"{list(y.shape)} and {list(groups.shape)}"
        )
    names, whose = np.unique(groups, return_inverse=True)
    if not 2 <= folds <= len(names):
        raise InputError(f"{folds} folds of {len(names)} prompts: at least 2 folds, and a prompt for each, are wanted")
    if penalty <= 0:
        raise InputError(f"penalty {penalty}: a positive one is wanted")
    real = y.dtype.kind == "f"
    classes = np.zeros(0) if real else np.unique(y)
    if len(np.unique(y)) < 2:
        raise InputError("all labels are the same: there is nothing to read off")
    truth = y.astype(np.float64) if real else np.searchsorted(classes, y)
    chance = 0.0 if real else float(np.bincount(truth).max() / len(truth))
    bad = nonfinite(x) + (nonfinite(y) if real else 0)
    if bad:
        nan = float("nan")
        return Probe(nan, np.full(shuffles, nan), nan, chance, np.full(len(names), nan), bad)
    rng = np.random.default_rng(seed)
    parts = _folds(x, whose, folds, penalty, rng)
    score, right = _score(parts, truth, len(classes))
    null = np.array([_score(parts, _shuffled(truth, whose, rng), len(classes))[0] for _ in range(shuffles)])
    by_prompt = np.bincount(whose, right) / np.bincount(whose)
    p = (1 + int((null >= score).sum())) / (1 + shuffles)
    return Probe(score, null, p, chance, by_prompt, 0)


def _folds(x: Array, whose: Array, folds: int, penalty: float, rng: np.random.Generator) -> list[_Fold]:
    """Predictions are linear in the labels, so each fold's solve is made once for the truth and all shuffles."""
    fold_of = rng.permutation(int(whose.max()) + 1) % folds
    out = []
    for f in range(folds):
        test, train = np.flatnonzero(fold_of[whose] == f), np.flatnonzero(fold_of[whose] != f)
        mean, sd = x[train].mean(0), x[train].std(0)
        scale = np.where(sd > 1e-12 * (np.abs(mean) + 1e-300), sd, np.inf)  # a channel that never moves says nothing
        known, asked = (x[train] - mean) / scale, (x[test] - mean) / scale
        strength = penalty * len(train)
        if known.shape[1] <= len(train):
            gram = known.T @ known + strength * np.eye(known.shape[1])
            hat = asked @ np.linalg.solve(gram, known.T)
        else:
            gram = known @ known.T + strength * np.eye(len(train))
            hat = np.linalg.solve(gram, known @ asked.T).T
        out.append(_Fold(train, test, hat))
    return out


def _score(folds: list[_Fold], truth: Array, classes: int) -> tuple[float, Array]:
    """Accuracy and its row-wise parts [R]; without classes R^2 and each row's squared error over the variance."""
    targets = np.eye(classes)[truth] if classes else truth[:, None]
    predicted = np.empty_like(targets)
    for train, test, hat in folds:
        mean = targets[train].mean(0)
        predicted[test] = hat @ (targets[train] - mean) + mean
    if classes:
        right = (predicted.argmax(1) == truth).astype(np.float64)
        return float(right.mean()), right
    error = np.square(predicted[:, 0] - truth) / truth.var()
    return float(1 - error.mean()), error


def _shuffled(truth: Array, whose: Array, rng: np.random.Generator) -> Array:
    rows = [np.flatnonzero(whose == g) for g in range(int(whose.max()) + 1)]
    out = np.empty_like(truth)
    if all((truth[r] == truth[r[0]]).all() for r in rows):
        for r, other in zip(rows, rng.permutation(len(rows)), strict=True):
            out[r] = truth[rows[other][0]]
        return out
    for r in rows:
        out[r] = np.roll(truth[r], rng.integers(len(r)))
    return out
