"""Forgetting: half-lives in closed form, v7's transitions against its own recurrence, their bounds on real weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import errors
from rookery.lab import metrics
from rookery.lab.metrics import decay
from tolerances import LOG_DECAY, METRIC, STATE_FLOAT64

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXT = b"Once upon a time there was a crow who kept small shiny things, and every one of them had a story."


def tapped(model: rookery.Model, tokens: list[int]) -> dict[str, np.ndarray]:
    """Every point of interest over one reading of the tokens."""
    seen: dict[str, np.ndarray] = {}

    def listen(name: str, x: Any) -> Any:
        seen[name] = np.array(x, np.float64)
        return x

    runner: Any = model.runner
    runner.listener = listen
    try:
        model.forward(tokens)
    finally:
        runner.listener = None
    return seen


def reference(name: str) -> rookery.Model:
    path = name if name == "gosling" else FIXTURES / f"{name}.safetensors"
    return rookery.load(path, backend="reference", dtype="float64")


def test_half_life_is_where_half_is_left() -> None:
    w = np.array([0.5, 0.9, 0.25])
    assert w ** metrics.half_life(np.log(w)) == pytest.approx(0.5, rel=METRIC)
    assert metrics.half_life(0.0) == math.inf
    assert metrics.half_life(-math.exp(-0.5)) == pytest.approx(1.143, abs=5e-4)  # v7's shortest


@pytest.mark.parametrize("version", ["v4", "v5.0", "v5.1", "v5.2"])
def test_static_decays_are_the_ones_that_run(version: str) -> None:
    model = reference(version)
    static, taps = metrics.static_log_decay(model), tapped(model, [1, 2, 3])
    assert len(static) == model.config.n_layer
    for name, values in static.items():
        np.testing.assert_allclose(values.reshape(-1), taps[name].reshape(-1), rtol=LOG_DECAY)
        assert (metrics.half_life(values) > 0).all()


def test_decays_of_v6_and_v7_are_traced() -> None:
    for version in ("v6", "v7"):
        with pytest.raises(errors.InputError, match="depends on the token"):
            metrics.static_log_decay(reference(version))
    w = np.concatenate([np.full(94, 0.9), np.full(6, 0.5)])  # so 5 % lies among the fast ones and 95 % among the slow
    x = np.log(np.stack([w, np.full(100, 0.8)], 1))
    band = metrics.traced_half_life(x)
    mean = (94 * -math.log(0.9) + 6 * -math.log(0.5)) / 100
    assert band.half_life == pytest.approx([math.log(2) / mean, math.log(2) / -math.log(0.8)], rel=METRIC)
    assert band.low == pytest.approx([1, math.log(2) / -math.log(0.8)], rel=METRIC)
    assert band.high == pytest.approx([math.log(2) / -math.log(0.9), math.log(2) / -math.log(0.8)], rel=METRIC)
    for bad in (np.nan, -np.inf):
        x[5, 0] = bad
        broken = metrics.traced_half_life(x)
        assert broken.nonfinite == 1
        assert np.isnan([broken.half_life[0], broken.low[0], broken.high[0]]).all()
        assert np.isfinite(broken.half_life[1])


def test_v7_factors_are_what_its_state_does() -> None:
    model, tokens = reference("v7"), [7, 50, 9, 200, 3]
    taps = tapped(model, tokens)
    for layer in range(model.config.n_layer):
        f = metrics.v7_factors(model, layer, taps)
        g = metrics.transitions(f.log_decay, f.kk, f.a)
        v = taps[f"layers.{layer}.att.v"].reshape(f.key.shape)
        s = np.zeros((model.config.n_head, g.shape[-1], g.shape[-1]))  # [value, key]
        for t in range(len(tokens)):
            s = s @ g[t] + v[t][:, :, None] * f.key[t][:, None, :]
        kept = model.forward(tokens)[1].layer(layer).wkv  # [key, value]
        np.testing.assert_allclose(s.swapaxes(1, 2), kept, atol=STATE_FLOAT64 * np.abs(kept).max())
    with pytest.raises(errors.InputError, match="RWKV-7"):
        metrics.v7_factors(reference("v6"), 0, {})


def random_factors(count: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-decays, unit keys and rates [count, n] of every kind that v7 can make, its extremes among them."""
    rng = np.random.default_rng(seed)
    log_decay = decay_range(rng.uniform(0, 1, (count, n)))
    log_decay[: count // 4] = decay_range(rng.integers(0, 2, (count // 4, n)).astype(float))
    kk = rng.standard_normal((count, n)) ** rng.choice([1, 3], (count, 1))  # some keys lie close to an axis
    a = rng.uniform(0, 1, (count, n))
    a[: count // 2] = rng.integers(0, 2, (count // 2, n))
    return log_decay, kk / np.linalg.norm(kk, axis=-1, keepdims=True), a


def decay_range(share: np.ndarray) -> np.ndarray:
    return -math.exp(-0.5) * share


@pytest.mark.parametrize("n", [1, 2, 8])
def test_bounds_hold_on_random_factors_and_are_those_of_g_itself(n: int) -> None:
    log_decay, kk, a = random_factors(2000, n, n)
    found = metrics.check_bounds(log_decay, kk, a)
    assert found.hold
    assert found.nonfinite == 0
    eigenvalues = np.linalg.eigvals(metrics.transitions(log_decay, kk, a))
    assert np.abs(eigenvalues.imag).max() < 1e-6
    assert found.lowest == pytest.approx(eigenvalues.real.min(), abs=1e-6)
    assert found.highest == pytest.approx(eigenvalues.real.max(), abs=1e-6)
    assert found.lowest > decay.LOWEST - 1e-12
    assert found.negative == 1
    if n > 1:
        assert 1 < found.norm <= decay.LARGEST_NORM


def test_the_bounds_are_reached_and_seen_to_break() -> None:
    steepest = np.array([-math.exp(-0.5), 0.0])
    one, both = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    assert metrics.check_bounds(steepest, one, both).lowest == pytest.approx(-0.4548, abs=5e-5)
    key = np.sqrt([1 / 3, 2 / 3])  # where the norm is largest
    assert metrics.check_bounds(np.zeros(2), key, one).norm == pytest.approx(2 / math.sqrt(3), rel=METRIC)
    assert not metrics.check_bounds(steepest - 0.1, one, both).hold  # decays further than v7 can
    assert not metrics.check_bounds(np.array([0.0, 0.1]), one, both).hold  # grows
    assert not metrics.check_bounds(steepest, 1.1 * one, both).hold  # a key longer than 1
    assert not metrics.check_bounds(steepest, one, 2 * both).hold  # the removal doubled
    broken = metrics.check_bounds(steepest, one, np.array([np.nan, 1.0]))
    assert (broken.hold, broken.nonfinite) == (False, 1)
    with pytest.raises(errors.InputError, match="0 to 1 is wanted"):
        metrics.check_bounds(steepest, one, -both)


@pytest.mark.parametrize("name", ["v7", "gosling"])
def test_bounds_hold_on_real_weights(name: str) -> None:
    model = reference(name)
    tokens = list(TEXT) if name == "v7" else model.tokenizer.encode(TEXT)
    taps = tapped(model, tokens)
    found = [metrics.check_bounds(*metrics.v7_factors(model, i, taps)[:3]) for i in range(model.config.n_layer)]
    assert all(f.hold for f in found), found
    assert max(f.norm for f in found) > 1  # there is something to bound


def test_an_impulse_against_two_states() -> None:
    rng = np.random.default_rng(0)
    log_decay, kk, a = (x.reshape(12, 3, 4) for x in random_factors(36, 4, 1))  # 12 tokens, 3 heads
    g = metrics.transitions(log_decay, kk, a)
    key, value = rng.standard_normal((2, 3, 4))
    found = metrics.impulse_response(g, key, value)
    assert found.shape == (13, 3)
    for h in range(3):
        s = np.outer(value[h], key[h])
        for t in range(13):
            assert found[t, h] == pytest.approx(math.sqrt((s * s).sum()), rel=METRIC)
            if t < 12:
                s = s @ g[t, h]
    np.testing.assert_allclose(metrics.impulse_response(g, key, np.linalg.norm(value, axis=-1)[0])[:, 0], found[:, 0])


def test_an_impulse_under_decay_alone_halves_at_the_half_life() -> None:
    w = np.exp([[-0.1, -0.1], [-0.03, -0.03]])  # two heads, each of one decay
    key = np.array([[1.0, 2.0], [0.5, 0.1]])
    steps = np.broadcast_to(w, (40, 2, 2))
    found = metrics.impulse_response(steps, key)
    np.testing.assert_allclose(found, metrics.impulse_response(steps[..., None] * np.eye(2), key), rtol=METRIC)
    half = metrics.response_half_life(found)
    assert half == pytest.approx([math.log(2) / 0.1, math.log(2) / 0.03], rel=METRIC)
    assert metrics.response_half_life(found[:20])[1] == math.inf  # longer than was watched


def test_the_removal_shortens_the_life_of_a_write() -> None:
    log_decay, kk = np.full((30, 1, 4), -0.01), np.zeros((30, 1, 4))
    kk[..., 0] = 1
    key = np.array([[1.0, 0.0, 0.0, 0.0]])
    kept = metrics.impulse_response(metrics.transitions(log_decay, kk, np.zeros_like(kk)), key)
    removed = metrics.impulse_response(metrics.transitions(log_decay, kk, np.full_like(kk, 0.3)), key)
    assert metrics.response_half_life(kept)[0] == math.inf
    rate = math.log(math.exp(-0.01) - 0.3)
    assert metrics.response_half_life(removed)[0] == pytest.approx(math.log(2) / -rate, rel=METRIC)


def test_responses_without_a_half_life() -> None:
    x = np.array([[1.0, 0.0, 1.0, 2.0], [0.7, 0.0, np.nan, 0.0]])
    half = metrics.response_half_life(x)
    assert half[0] == math.inf
    assert np.isnan(half[1:3]).all()
    assert half[3] == 1
    with pytest.raises(errors.InputError, match="at least one token"):
        metrics.response_half_life(x[:1])
