"""A probe finds what is there, on prompts it has not seen, and no more than chance where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rookery import errors
from rookery.lab import metrics
from tolerances import METRIC

PROMPTS, TICKS = 24, 10


def rows(seed: int, channels: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States with their prompts' own offsets, who is whose, and two topics of prompts."""
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(PROMPTS), TICKS)
    own = 3 * rng.normal(size=(PROMPTS, channels))
    return own[prompts] + rng.normal(size=(len(prompts), channels)), prompts, prompts % 2


def test_a_topic_that_is_there_is_read() -> None:
    x, prompts, topic = rows(0)
    x[:, 3] = 1e-4 * (x[:, 3] + 20 * topic)  # a quiet channel, which standardising makes heard
    found = metrics.linear_probe(x, topic, prompts, shuffles=99)
    assert found.score > 0.9
    assert found.p == 0.01
    assert found.chance == 0.5
    assert np.mean(found.null) == pytest.approx(0.5, abs=0.1)
    assert found.by_prompt.shape == (PROMPTS,)
    assert found.by_prompt.mean() == pytest.approx(found.score)
    names = np.array(["sea", "sky"])[topic]
    assert metrics.linear_probe(x, names, prompts, shuffles=99).score == found.score


def test_a_topic_that_is_not_there_is_not_read_off_the_prompts_own_marks() -> None:
    found = [metrics.linear_probe(*(rows(seed)[i] for i in (0, 2, 1)), shuffles=60) for seed in range(8)]
    assert np.mean([f.score for f in found]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([f.p for f in found]) > 0.2
    x, _, topic = rows(0)
    leaking = metrics.linear_probe(x, topic, np.arange(len(x)), shuffles=5)  # every row its own prompt
    assert leaking.score > found[0].score + 0.15  # what holding out prompts is for


def test_labels_that_vary_within_a_prompt_are_shuffled_within_it() -> None:
    x, prompts, _ = rows(1)
    tick = np.tile(np.arange(TICKS), PROMPTS)
    x[:, 0] += 2.0 * tick
    x[:, 1] = 1.0  # never moves
    found = metrics.linear_probe(x, tick.astype(float), prompts, shuffles=49)
    assert found.score > 0.3
    assert found.p == 0.02
    assert found.chance == 0
    assert np.median(found.null) < 0.1
    assert (1 - found.by_prompt).mean() == pytest.approx(found.score)


def test_against_a_ridge_by_the_book() -> None:
    """One split by hand: centre, standardise, solve the normal equations; wide states take the other solve."""
    for channels in (4, 60):
        rng = np.random.default_rng(2)
        x, y = rng.normal(size=(40, channels)) * 5 + 3, rng.normal(size=40)
        prompts = np.repeat([0, 1], 20)
        found = metrics.linear_probe(x, y, prompts, penalty=0.3, folds=2, shuffles=1)
        error = 0.0
        for held in (0, 1):
            a, b = prompts != held, prompts == held
            mean, sd = x[a].mean(0), x[a].std(0)
            z = (x[a] - mean) / sd
            weights = np.linalg.inv(z.T @ z + 0.3 * 20 * np.eye(channels)) @ z.T @ (y[a] - y[a].mean())
            error += float(np.square((x[b] - mean) / sd @ weights + y[a].mean() - y[b]).sum())
        assert found.score == pytest.approx(1 - error / (40 * y.var()), rel=METRIC)


def test_a_state_with_a_nan_has_no_score() -> None:
    x, prompts, topic = rows(3)
    x[5, 5], x[7, 0] = np.nan, np.inf
    found = metrics.linear_probe(x, topic, prompts)
    assert found.nonfinite == 2
    assert math.isnan(found.score)
    assert np.isnan(found.null).all()


def test_what_cannot_be_probed() -> None:
    x, prompts, topic = rows(4)
    for changed, said in (
        ({"labels": np.ones(len(x), int)}, "all labels are the same"),
        ({"labels": topic[1:]}, r"labels \[rows\]"),
        ({"prompts": np.zeros(len(x))}, "5 folds of 1 prompts"),
        ({"penalty": 0.0}, "penalty 0.0"),
    ):
        with pytest.raises(errors.InputError, match=said):
            metrics.linear_probe(**{"states": x, "labels": topic, "prompts": prompts, **changed})
