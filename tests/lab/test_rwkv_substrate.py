"""An RWKV as a substrate: the carried state, perturbed and restored, in every version and in quantised files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import Sampling, _native, errors
from rookery.lab.metrics import kl
from rookery.lab.substrates import Substrate, make
from rookery.lab.substrates.rwkv import RWKV
from rookery.weights.quantise import Plan, quantise

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]
BACKENDS = ["reference", "native", "torch"]
TEXT = list(b"The goose swims.")
WILD = Sampling(temperature=1.2, top_p=0.9, presence=0.3, frequency=0.2)


def opened(name: str, backend: str) -> rookery.Model:
    if backend == "torch":
        pytest.importorskip("torch")
    if backend == "native" and not _native.available():
        pytest.skip("the native core is not built")
    return rookery.load(FIXTURES / f"{name}.safetensors", backend=backend, tokenizer="bytes")


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_restored_run_goes_on_to_the_bit(name: str, backend: str) -> None:
    rwkv = RWKV(opened(name, backend), WILD)
    rwkv.reset(5)
    for token in TEXT[:4]:
        rwkv.step(token)
    rwkv.step()
    snapshot = rwkv.snapshot()
    runs = []
    for _ in range(2):
        rwkv.restore(snapshot)
        drawn = []
        for _ in range(6):
            rwkv.step()
            drawn.append(rwkv.last)
        runs.append((drawn, rwkv.tick, rwkv.state.flat, rwkv.logits()))
    (drawn, tick, flat, logits), again = runs
    assert drawn == again[0]
    assert tick == again[1] == 11
    assert np.array_equal(flat, again[2])
    assert np.array_equal(logits, again[3])


@pytest.mark.parametrize("name", VERSIONS)
def test_a_teacher_forced_run_is_the_models_own(name: str) -> None:
    model = opened(name, "reference")
    rwkv = make("rwkv", model=model, prefix=(9, 8))
    assert isinstance(rwkv, Substrate)
    for token in TEXT:
        rwkv.step(token)
    logits, state = model.forward([9, 8, *TEXT])
    assert np.array_equal(rwkv.logits(), logits)
    assert rwkv.tick == len(TEXT)
    for i, part in ((0, "att_shift"), (1, "ffn_shift")):
        assert np.array_equal(rwkv.components()[f"layers.{i}.{part}"], getattr(state.layer(i), part))


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), WILD], ids=["greedy", "drawn and penalised"])
def test_a_free_run_is_what_the_model_would_write(sampling: Sampling) -> None:
    model = rookery.load("gosling")
    prompt = model.tokenizer.encode("Once upon a time")
    rwkv = RWKV(model, sampling, prompt)
    rwkv.reset(3)
    written = []
    for _ in range(40):
        rwkv.step()
        written.append(rwkv.last)
    stream = model.stream(prompt, 40, sampling, seed=3)
    assert "".join(stream)
    assert written == stream.tokens


def test_seeds_reproduce_and_differ() -> None:
    rwkv = RWKV(opened("v7", "reference"), WILD)
    texts = []
    for seed in (1, 1, 2):
        rwkv.reset(seed)
        texts.append([rwkv.step() or rwkv.last for _ in range(20)])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("name", VERSIONS)
def test_components_are_copies_and_a_push_has_the_size_it_was_given(name: str) -> None:
    rwkv = RWKV(opened(name, "reference"), prefix=TEXT)
    before = rwkv.components()
    assert {c.rsplit(".", 1)[1] for c in before} == {"att_shift", "ffn_shift", "wkv"}
    for values in rwkv.components().values():
        values[...] = 7
    for component, old in before.items():
        assert np.array_equal(rwkv.components()[component], old)
        direction = np.random.default_rng(0).standard_normal(old.shape)
        rwkv.perturb(component, direction, 0.5)
        push = rwkv.components()[component] - old
        np.testing.assert_allclose(
            push, 0.5 * np.linalg.norm(old) * direction / np.linalg.norm(direction), atol=1e-5 * np.abs(old).max()
        )
    with pytest.raises(errors.InputError, match=r"component 'layers\.0\.nothing'"):
        rwkv.perturb("layers.0.nothing", np.ones(1), 0.1)


QUANTISED = ("q8_0", "q4_0", "q5_1")


@pytest.fixture(scope="module", params=["gosling", *QUANTISED])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> rookery.Model:
    """gosling as it is packaged (Q8_0) and in other types."""
    if request.param == "gosling":
        return rookery.load("gosling")
    path = tmp_path_factory.mktemp("quantised") / f"{request.param}.gguf"
    quantise("gosling", path, Plan(request.param))
    return rookery.load(path)


@pytest.mark.parametrize("piece", ["wkv", "att_shift", "ffn_shift"])
def test_a_push_into_a_quantised_models_state_moves_the_logits(quantised: rookery.Model, piece: str) -> None:
    assert any(t.dtype.startswith("q") for t in quantised.weights.tensors.values())
    text = quantised.tokenizer.encode("User: Where does the goose live?\n\nAssistant:")
    rwkv = RWKV(quantised, prefix=text)
    snapshot = rwkv.snapshot()
    rwkv.step()
    undisturbed = rwkv.logits()
    for layer in range(quantised.config.n_layer):
        rwkv.restore(snapshot)
        name = f"layers.{layer}.{piece}"
        rwkv.perturb(name, np.random.default_rng(layer).standard_normal(rwkv.components()[name].shape), 0.5)
        rwkv.step()
        assert kl(undisturbed, rwkv.logits()) > 1e-5, name
        rwkv.restore(snapshot)
        rwkv.step()
        assert np.array_equal(rwkv.logits(), undisturbed), name


def test_an_operated_state_can_be_put_in(quantised: rookery.Model) -> None:
    rwkv = RWKV(quantised)
    rwkv.step(5)
    kept = rwkv.state
    rwkv.state.flat[:] = 0  # a copy was given
    assert np.array_equal(rwkv.state.flat, kept.flat)
    assert kept.flat.any()
    rwkv.state = quantised.state()
    assert not rwkv.state.flat.any()
    rwkv.state = kept
    kept.flat[:] = 0  # a copy was taken
    assert rwkv.state.flat.any()
    with pytest.raises(errors.StateError):
        rwkv.state = opened("v7", "reference").state()


def test_misuse_is_said() -> None:
    rwkv = RWKV(opened("v7", "reference"), prefix=())
    assert rwkv.logits() is None
    with pytest.raises(errors.InputError, match="nothing was read yet"):
        rwkv.step()
    with pytest.raises(errors.StateError, match="not a snapshot of an RWKV"):
        rwkv.restore({"tick": 3})
    with pytest.raises(errors.StateError, match="another size"):
        rwkv.restore(RWKV(opened("v6", "reference")).snapshot())
    with pytest.raises(errors.TokenError):
        rwkv.step(999)
    rwkv.step(1)
    assert rwkv.tick == 1


def test_a_model_of_no_known_tokenizer_draws_token_ids() -> None:
    rwkv = RWKV(FIXTURES / "v7.safetensors")
    rwkv.step()
    assert rwkv.tick == 1
