"""Contrastive vectors and what they do, against a loop, against their nulls, and against a head computed by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import rookery
import tolerances
from rookery import _native, errors
from rookery.lab import pieces, steering

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = ["v4", "v5.2", "v6", "v7"]
PAIRS = [
    (
        f"Once upon a time, there was a little girl named {she}. She was happy.",
        f"Once upon a time, there was a little boy named {he}. He was happy.",
    )
    for she, he in zip(
        ["Lily", "Mia", "Sue", "Anna", "Amy", "Lucy"], ["Tom", "Ben", "Jack", "Sam", "Max", "Tim"], strict=True
    )
]
PROMPT = "One day, the kid saw a bird."


def opened(name: str, **how: str) -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes", **how)


@pytest.fixture(scope="module")
def gosling() -> rookery.Model:
    return rookery.load("gosling", backend="reference")


@pytest.mark.parametrize("name", VERSIONS)
def test_a_contrast_is_the_mean_difference_and_its_null_that_of_swapped_pairs(name: str) -> None:
    model = opened(name, backend="reference")
    pairs = [(b"red", b"blue"), (b"one", b"two!"), (b"up", b"down"), (b"a", b"bc")]
    found = steering.contrast(model, pairs)
    assert list(found.vectors) == [f"layers.{i}.wkv" for i in range(model.config.n_layer)]
    for piece, vector in found.vectors.items():
        after = [[pieces.read(model.forward(list(text))[1], piece) for text in pair] for pair in pairs]
        each = np.stack([a - b for a, b in after])
        np.testing.assert_allclose(vector, each.mean(0), atol=1e-12)
        lengths = [
            np.linalg.norm(np.mean([s * e for s, e in zip(signs, each, strict=True)], axis=0))
            for signs in product((1, -1), repeat=len(pairs))
        ]
        assert np.isclose(found.null[piece][:, None], np.array(lengths)[None], rtol=1e-6).any(1).all()
        assert found.p[piece] >= 1 / (1 + steering.NULLS)
        assert found.ratio(piece) == pytest.approx(np.linalg.norm(vector) / np.median(found.null[piece]))


def test_pairs_that_take_both_sides_have_no_direction() -> None:
    model = opened("v7")
    found = steering.contrast(model, [(b"red", b"blue"), (b"blue", b"red")])
    for name, vector in found.vectors.items():
        assert not vector.any()
        assert found.p[name] == 1
    with pytest.raises(errors.InputError, match="1 pairs"):
        steering.contrast(model, [(b"red", b"blue")])


def test_a_real_contrast_is_longer_than_its_null_and_moves_the_odds_its_way() -> None:
    """On the packaged file as it is, quantised: what reads girls' stories comes to speak of her."""
    gosling = rookery.load("gosling")
    found = steering.contrast(gosling, PAIRS)
    for name, p in found.p.items():
        assert p < 0.1
        assert found.ratio(name) > 1.5
    steered = steering.effect(gosling, PROMPT, found, " She", " He", scales=(-1, 0.5, 1), nulls=6)
    down, half, up = steered.change
    assert down < -2
    assert 1 < half < up
    assert (np.abs(steered.null_change).max(1) < 0.5 * np.abs(steered.change)).all()
    assert steered.null.shape == (3, 6)


def test_log_odds_are_those_of_the_whole_continuations(gosling: rookery.Model) -> None:
    found = steering.contrast(gosling, PAIRS[:2])
    steered = steering.effect(gosling, PROMPT, found, " She ran", " He", scales=(0.0,), nulls=1)
    ids = gosling.tokenizer.encode(PROMPT)
    odds = []
    for text in (" She ran", " He"):
        state, total = gosling.forward(ids)[1], 0.0
        logits = gosling.forward(ids)[0].astype(np.float64)
        for token in gosling.tokenizer.encode(text):
            total += logits[token] - np.log(np.exp(logits).sum())
            logits, state = gosling.forward(token, state)
            logits = logits.astype(np.float64)
        odds.append(total)
    assert steered.base == pytest.approx(odds[0] - odds[1], abs=1e-4)
    assert steered.change == 0
    assert steered.null_change.tolist() == [[0.0]]


def test_steering_adds_what_it_says_and_leaves_the_state_given() -> None:
    model = opened("v7", backend="reference", dtype="float64")
    found = steering.contrast(model, [(b"red", b"blue"), (b"one", b"two!")], "*")
    state = model.forward([1, 2, 3])[1]
    kept = state.vector()
    steered = steering.steer(state, found, -0.5, "layers.1.*")
    assert np.array_equal(state.flat, kept)
    for name in pieces.names(state):
        step = -0.5 * found.vectors[name] if name.startswith("layers.1.") else 0
        np.testing.assert_allclose(pieces.read(steered, name), pieces.read(state, name) + step, atol=1e-12)
    with pytest.raises(errors.InputError, match="no piece is named"):
        steering.steer(opened("v6").forward(1)[1], found)


def test_a_blank_has_the_lengths_and_nothing_else() -> None:
    model = opened("v7")
    found = steering.contrast(model, [(b"red", b"blue"), (b"one", b"two!")])
    blank = found.blank(3)
    for name, vector in blank.vectors.items():
        assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(found.vectors[name]))
        assert not np.allclose(vector, found.vectors[name])
        assert np.array_equal(vector, found.blank(3).vectors[name])


# the residual stream


def test_the_residual_of_the_last_layer_reaches_the_head_with_the_vector() -> None:
    model = opened("v7", backend="reference", dtype="float64")
    last = f"layers.{model.config.n_layer - 1}.resid"
    found = steering.contrast_residual(model, [(b"red", b"blue"), (b"one", b"two!")], [model.config.n_layer - 1])
    assert list(found.vectors) == [last]
    with model.trace(last) as plain:
        undisturbed = model.forward([5, 6, 7], every=True)[0]
    with steering.steering_residual(model, found, 0.7), model.trace(last) as heard:
        logits = model.forward([5, 6, 7], every=True)[0]
    x = plain[last] + 0.7 * found.vectors[last]
    np.testing.assert_allclose(heard[last], x, atol=1e-12)
    tensors = {n: t.float32().astype(np.float64) for n, t in model.weights.tensors.items()}
    d = x - x.mean(-1, keepdims=True)
    normal = d / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5) * tensors["ln_out.weight"] + tensors["ln_out.bias"]
    np.testing.assert_allclose(logits, normal @ tensors["head.weight"].T, atol=tolerances.LOGITS_FLOAT64)
    assert np.array_equal(model.forward([5, 6, 7], every=True)[0], undisturbed)


@pytest.mark.parametrize("name", VERSIONS)
def test_torch_is_steered_like_the_reference(name: str) -> None:
    pytest.importorskip("torch")
    reference, torch = (opened(name, backend=b, dtype="float64") for b in ("reference", "torch"))
    found = steering.contrast_residual(reference, [(b"red", b"blue"), (b"one", b"two!")])
    both = []
    for model in (reference, torch):
        with steering.steering_residual(model, found, 2.0):
            both.append(model.forward(list(b"The goose"), every=True)[0])
    np.testing.assert_allclose(both[0], both[1], atol=tolerances.LOGITS_FLOAT64)
    assert not np.allclose(both[0], reference.forward(list(b"The goose"), every=True)[0])


def test_a_residual_contrast_moves_the_odds_too(gosling: rookery.Model) -> None:
    found = steering.contrast_residual(gosling, PAIRS, [1, 2])
    steered = steering.effect(gosling, PROMPT, found, " She", " He", scales=(1.0,), nulls=4)
    assert steered.change[0] > 2
    assert np.abs(steered.null_change).max() < 0.5 * steered.change[0]


@pytest.mark.skipif(not _native.available(), reason="the native core is not built")
def test_the_native_back_end_only_listens(gosling: rookery.Model) -> None:
    found = steering.contrast_residual(gosling, PAIRS[:2], [0])
    with (
        pytest.raises(errors.BackendError, match="native back end cannot change the residual stream"),
        steering.steering_residual(rookery.load("gosling", backend="native"), found),
    ):
        pass


def test_steering_is_off_after_an_error_and_never_doubled(gosling: rookery.Model) -> None:
    found = steering.contrast_residual(gosling, PAIRS[:2], [0])
    with pytest.raises(ZeroDivisionError), steering.steering_residual(gosling, found):
        raise ZeroDivisionError
    assert gosling.runner.listener is None
    with (
        steering.steering_residual(gosling, found),
        pytest.raises(errors.BackendError, match="another listener"),
        steering.steering_residual(gosling, found),
    ):
        pass
    assert gosling.runner.listener is None
    with pytest.raises(errors.InputError, match="at least 2 tokens"):
        steering.effect(gosling, [1], found, [2], [3])
    with pytest.raises(errors.InputError, match="an empty text"):
        steering.effect(gosling, [1, 2], found, "", [3])
