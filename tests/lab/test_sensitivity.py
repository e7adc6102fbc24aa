"""What a disturbance does, against what must come out: exponents of known decays, the square law of KL, the floor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rookery
import tolerances
from rookery import Sampling, _native, errors
from rookery.lab import exponents, metrics, sensitivity
from rookery.lab.substrates import make
from rookery.lab.substrates.rwkv import RWKV

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TEXT = list(b"The goose crossed the river at night, and nobody saw it swim.")
native = pytest.mark.skipif(not _native.available(), reason="the native core is not built")


def opened(name: str, **how: str) -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes", **how)


@pytest.fixture(scope="module")
def gosling() -> rookery.Model:
    """Nothing rounded: the packaged file's own arithmetic moves in steps."""
    return rookery.load("gosling", dtype="float32")


@pytest.fixture(scope="module")
def ids(gosling: rookery.Model) -> list[int]:
    """Running text, some of it of a kind that gosling was trained on."""
    return gosling.tokenizer.encode(
        "User: Where does the goose live?\n\nAssistant: The goose lives by the river, with her friends. One day a "
        "small boy came and asked her to swim with him. They swam until the evening, and then they slept.\n\n"
        "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows "
        "of outrageous fortune, or to take arms against a sea of troubles. In 1899 it was 3.14 degrees: ÄÖÜ, 鹅, )({."
    )


# exponents


@pytest.mark.parametrize("name", ["v4", "v5.0", "v5.1", "v5.2", "v6"])
@pytest.mark.parametrize("backend", ["reference", "native", "torch"])
def test_qr_exponents_are_the_mean_log_decay(name: str, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    if backend == "native" and not _native.available():
        pytest.skip("the native core is not built")
    model = opened(name, backend=backend)
    for i, found in exponents.exponents(model, TEXT).items():
        np.testing.assert_allclose(found.qr, found.mean_log_decay, rtol=0, atol=tolerances.EXPONENT_EQUAL, err_msg=i)
        assert found.qr.max() <= 0


@pytest.mark.parametrize("name", ["v4", "v5.0", "v5.2"])
def test_static_decays_are_those_of_the_weights(name: str) -> None:
    model = opened(name)
    for i, found in exponents.exponents(model, TEXT[:5]).items():
        weights = metrics.static_log_decay(model)[f"{i}.att.w"]
        each = np.broadcast_to(weights.reshape(len(found.qr), -1), found.qr.shape)
        np.testing.assert_allclose(found.qr, -np.sort(-each, axis=-1), rtol=tolerances.STATE)


@pytest.mark.parametrize("name", ["v5.2", "v6", "v7"])
def test_a_disturbance_of_the_wkv_state_goes_the_way_of_the_products(name: str) -> None:
    """The matrices are the state's own Jacobian: a difference D of two states becomes A_T ... A_1 D. In layer 0, which
    sees nothing of its own state, exactly; the model itself is the truth here."""
    model = opened(name, backend="reference", dtype="float64")
    state = model.forward(TEXT[:9])[1]
    moved = state.copy()
    push = np.random.default_rng(1).standard_normal(state.layer(0).wkv.shape)
    moved.layer(0).wkv[...] += push
    (_, heard, log_decay), *_ = exponents._heard(model, TEXT[9:20], state, None)
    for step in exponents._columns(model, 0, heard, log_decay):
        push = step @ push
    after = [model.forward(TEXT[9:20], s)[1].layer(0).wkv for s in (state, moved)]
    np.testing.assert_allclose(after[1] - after[0], push, atol=tolerances.STATE_FLOAT64)


def test_v7s_bounds_hold_on_real_weights_over_real_text(gosling: rookery.Model, ids: list[int]) -> None:
    found = exponents.bounds(gosling, ids)
    assert list(found) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    for i, bound in found.items():
        assert bound.hold, (i, bound)
        assert bound.lowest < -0.01  # it does remove keys, so that the bound is put to the test
        assert bound.negative == 1
        assert 1.001 < bound.norm < 2 / np.sqrt(3)


def test_v7s_exponents_lie_below_its_decays_and_below_its_growth(gosling: rookery.Model, ids: list[int]) -> None:
    """The removal only takes away, and what T tokens grow by is all that an exponent over them can show."""
    found = exponents.exponents(gosling, ids[:60])
    for f in found.values():
        assert f.qr.sum() < f.mean_log_decay.sum()
        assert (f.qr[:, 0] <= np.log(f.growth.largest) / 60 + tolerances.EXPONENT_EQUAL).all()
        assert f.drift.shape == f.qr.shape
    assert max(f.growth.largest.max() for f in found.values()) > 1.01


def test_layers_can_be_chosen(gosling: rookery.Model) -> None:
    found = exponents.exponents(gosling, [5, 6, 7], layers=[2])
    assert list(found) == ["layers.2"]
    assert found["layers.2"].qr.shape == (3, 64)
    with pytest.raises(errors.InputError, match="has 0 to 3"):
        exponents.exponents(gosling, [5, 6, 7], layers=[4])


# the next token


def test_kl_grows_with_the_square_of_a_push(gosling: rookery.Model, ids: list[int]) -> None:
    rwkv = RWKV(gosling, prefix=ids[:30])
    before = rwkv.snapshot()
    (effect,) = sensitivity.next_token_effect(rwkv, ids[30:31], "layers.3.wkv", directions=2)
    assert effect.used == 2
    assert effect.kl > 1e-4
    assert np.array_equal(rwkv.state.flat, before.state.flat)
    assert rwkv.tick == before.tick
    sizes, found = np.array([0.003, 0.01, 0.03]), []
    rwkv.step(ids[30])
    undisturbed = rwkv.logits()
    for size in sizes:
        kl = []
        for i in range(2):
            for sign in (1, -1):
                rwkv.restore(before)
                direction = sensitivity.stream(0, "layers.3.wkv", i).standard_normal((3, 64, 64))
                rwkv.perturb("layers.3.wkv", direction, sign * size)
                rwkv.step(ids[30])
                kl.append(float(metrics.kl(undisturbed, rwkv.logits())))
        found.append(np.mean(kl))
    np.testing.assert_allclose(found, effect.kl * sizes**2, rtol=0.1)
    assert effect.kl_of_one_percent == pytest.approx(found[1], rel=0.1)


@native
def test_an_arithmetic_that_rounds_by_steps_has_no_sensitivity(ids: list[int]) -> None:
    rwkv = RWKV(rookery.load("gosling"), prefix=ids[:30])
    with pytest.warns(UserWarning, match='1 of 1 pushes had no range of sizes .*dtype="float32"'):
        (effect,) = sensitivity.next_token_effect(rwkv, ids[30:31], "layers.3.wkv", directions=1)
    assert np.isnan(effect.kl)


@pytest.mark.parametrize("name", ["v4", "v5.2", "v6", "v7"])
def test_every_version_has_an_effect_in_float64(name: str) -> None:
    rwkv = RWKV(opened(name, backend="reference", dtype="float64"), prefix=TEXT[:10])
    effects = sensitivity.next_token_effect(rwkv, TEXT[10:11], ["*.wkv", "layers.0.att_shift"], directions=1)
    assert [e.component for e in effects][:2] == ["layers.0.att_shift", "layers.0.wkv"]
    assert all(e.kl > 0 for e in effects)


def test_what_has_no_next_token_is_refused() -> None:
    physics = make("physics", n=24)
    with pytest.raises(errors.InputError, match="physics has no logits"):
        sensitivity.next_token_effect(physics, [1])
    with pytest.raises(errors.InputError, match="no tokens"):
        sensitivity.next_token_effect(RWKV(opened("v7")), [])
    with pytest.raises(errors.InputError, match="nearest are layers"):
        sensitivity.next_token_effect(RWKV(opened("v7")), [1], "layer.0.wkv")


# recovery


def test_a_static_decay_forgets_at_its_own_rate() -> None:
    """A push into one channel of v5's first layer, which nothing else reaches, halves with that channel's decay."""
    model = opened("v5.2", backend="reference", dtype="float64")
    rwkv = RWKV(model, prefix=TEXT)
    found = sensitivity.recovery(rwkv, TEXT[:24], "layers.0.wkv", 0.1, seed=2)
    direction = sensitivity.stream(2, "layers.0.wkv").standard_normal(model.state().layer(0).wkv.shape)
    w = metrics.static_log_decay(model)["layers.0.att.w"]
    plain, sizes = [RWKV(model, prefix=TEXT)], []
    for t in range(25):
        left = np.linalg.norm(direction * np.exp(t * w)[..., None]) / np.linalg.norm(direction)
        sizes.append(left / np.linalg.norm(plain[0].components()["layers.0.wkv"]))
        if t < 24:
            plain[0].step(TEXT[t])
    np.testing.assert_allclose(found.curves["layers.0.wkv"], 0.1 * np.array(sizes) / sizes[0], rtol=1e-9)
    assert len(found.kl) == 24
    assert found.kl[0] > 0
    assert found.curves["layers.0.att_shift"].max() == 0  # layer 0's shifts see tokens alone
    assert "layers.0.att_shift" not in found.fits
    assert found.nonfinite == 0


def test_recovery_leaves_the_substrate_as_it_was_and_takes_any() -> None:
    physics = make("physics", n=24)
    for _ in range(20):
        physics.step()
    before = physics.components()
    found = sensitivity.recovery(physics, [None] * 60, next(iter(before)), 0.5)
    assert all(np.array_equal(x, before[n]) for n, x in physics.components().items())
    curve = found.curves[next(iter(before))]
    assert curve[0] == pytest.approx(0.5)
    assert curve[-1] < curve[0]
    assert found.kl.size == 0
    with pytest.raises(errors.InputError, match="at least 3"):
        sensitivity.recovery(physics, [None, None], next(iter(before)))


def test_what_is_not_finite_is_counted() -> None:
    rwkv = RWKV(opened("v7"), prefix=TEXT[:5])
    damaged = rwkv.state
    damaged.layer(0).wkv[0, 0, 0] = np.nan
    rwkv.state = damaged
    found = sensitivity.recovery(rwkv, TEXT[:4], "layers.2.ffn_shift", 0.1)
    assert found.nonfinite >= 10


# free running


def test_texts_part_after_a_large_push_and_not_after_none(gosling: rookery.Model, ids: list[int]) -> None:
    rwkv = RWKV(gosling, prefix=ids[:20])
    none = sensitivity.divergence(rwkv, "layers.1.wkv", 0.0, tokens=24, seeds=[0, 1])
    assert none.first == [metrics.Event(24, False)] * 2
    assert none.edits == [0, 0]
    large = sensitivity.divergence(rwkv, "layers.1.wkv", 3.0, tokens=24, seeds=[0, 1, 2])
    assert all(1 <= event.time < 24 and event.seen for event in large.first)
    assert min(large.edits) > 0
    assert large.survival.share[-1] == 0
    drawn = [
        sensitivity.divergence(rwkv, "layers.1.wkv", 3.0, 24, [7], Sampling(temperature=1.0)).first for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


# the floor


@native
def test_the_floor_is_nought_by_the_law_of_rows_and_not_between_arithmetics(
    gosling: rookery.Model, ids: list[int]
) -> None:
    ways = [rookery.load("gosling"), rookery.load("gosling", backend="reference")]
    single, stored, reference = sensitivity.noise_floor(gosling, ids[:20], ways)
    assert set(single.pieces.values()) == {0.0}
    assert single.kl == 0
    assert 0 < max(reference.pieces.values()) < 1e-4
    assert 1e-3 < max(stored.pieces.values()) < 0.1
    assert reference.kl < stored.kl
    assert "as stored" in stored.way
