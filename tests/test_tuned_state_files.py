"""Tuned states in the form of RWKV-LM, RWKV-PEFT and the pip package rwkv: blocks.i.att.time_state [H, value, key]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import State, errors, formats, tuned_state
from rookery.formats.tensor import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
TUNED = FIXTURES / "v6-timestate.safetensors"
TOKENS = [79, 110, 99, 101, 32, 117]


def load(name: str) -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors")


@pytest.fixture(scope="module")
def model() -> rookery.Model:
    return load("v7")


def tuned(model: rookery.Model, seed: int = 9) -> State:
    """A state whose WKV is drawn and whose shifts are zero."""
    state = model.state()
    for i in range(model.config.n_layer):
        wkv = state.layer(i).wkv
        wkv[...] = np.random.default_rng(seed + i).standard_normal(wkv.shape)
    return state


def rewrite(path: Path, to: Path, change: Callable[[str, Tensor], tuple[str, Tensor]]) -> Path:
    """The file's tensors, changed, without what we leave in its metadata."""
    formats.write(to, dict(change(name, t) for name, t in formats.read(path).tensors.items()))
    return to


def save(state: State, path: Path) -> Path:
    formats.write(path, *tuned_state.tensors(state))
    return path


@pytest.mark.parametrize("name", ["v5.0", "v5.1", "v5.2", "v6", "v7"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_to_the_bit(name: str, suffix: str, tmp_path: Path) -> None:
    model = load(name)
    state = tuned(model)
    path = save(state, tmp_path / f"s{suffix}")
    found = State.load(path, model)
    np.testing.assert_array_equal(found.flat, state.flat, strict=True)
    heads = formats.read(path).tensors["blocks.1.att.time_state"].array()
    np.testing.assert_array_equal(heads, state.layer(1).wkv.swapaxes(1, 2))


def test_a_models_own_time_state_given_as_a_file_makes_the_same_logits(tmp_path: Path) -> None:
    held = formats.read(TUNED)
    state = {n: t for n, t in held.tensors.items() if n.endswith("time_state")}
    rest = {n: t for n, t in held.tensors.items() if n not in state}
    formats.write(tmp_path / "state.pth", state)
    formats.write(tmp_path / "model.pth", rest)
    stripped = rookery.load(tmp_path / "model.pth")
    wanted, _ = rookery.load(TUNED).forward(TOKENS, every=True)
    found, _ = stripped.forward(TOKENS, State.load(tmp_path / "state.pth", stripped), every=True)
    np.testing.assert_array_equal(found, wanted, strict=True)
    assert not np.array_equal(stripped.forward(TOKENS, every=True)[0], wanted)


def test_as_torch_saves_it_in_bf16_and_under_a_wrappers_name(model: rookery.Model, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = tuned(model)
    names = {
        f"model.blocks.{i}.att.time_state": torch.from_numpy(state.layer(i).wkv.swapaxes(1, 2).copy()).bfloat16()
        for i in range(model.config.n_layer)
    }
    torch.save(names, tmp_path / "rwkv-3.pth")
    found = State.load(tmp_path / "rwkv-3.pth", model)
    for i in range(model.config.n_layer):
        wanted = names[f"model.blocks.{i}.att.time_state"].float().numpy()
        np.testing.assert_array_equal(found.layer(i).wkv, wanted.swapaxes(1, 2))
        assert not found.layer(i).att_shift.any()


def test_torch_opens_ours(model: rookery.Model, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = tuned(model)
    found = torch.load(save(state, tmp_path / "s.pth"), weights_only=True)
    assert set(found) == {f"blocks.{i}.att.time_state" for i in range(model.config.n_layer)}
    np.testing.assert_array_equal(found["blocks.0.att.time_state"].mT.numpy(), state.layer(0).wkv)


def test_it_has_no_place_for_token_shifts(model: rookery.Model) -> None:
    _, state = model.forward(TOKENS)
    with pytest.raises(errors.StateError, match="token shifts"):
        tuned_state.tensors(state)
    tensors, _ = tuned_state.tensors(state, force=True)
    np.testing.assert_array_equal(tensors["blocks.0.att.time_state"].array().swapaxes(1, 2), state.layer(0).wkv)


def test_a_v4_has_none(model: rookery.Model, tmp_path: Path) -> None:
    old = load("v4")
    with pytest.raises(errors.StateError, match="no heads"):
        tuned_state.tensors(old.state())
    with pytest.raises(errors.StateError, match="no heads"):
        State.load(save(tuned(model), tmp_path / "s.pth"), old)


def test_of_another_model(model: rookery.Model, tmp_path: Path) -> None:
    """Ours say whose they are; of others' the shapes must do."""
    bare = rewrite(FIXTURES / "v7.safetensors", tmp_path / "kin.pth", lambda n, t: (n, Tensor.of(t.float32() * 2)))
    kin, other = rookery.load(bare), load("v6")
    ours = save(tuned(model), tmp_path / "ours.pth")
    theirs = rewrite(ours, tmp_path / "theirs.pth", lambda n, t: (n, t))
    with pytest.raises(errors.StateError, match="made by another model"):
        State.load(ours, kin)
    assert State.load(theirs, kin).config == kin.config
    with pytest.raises(errors.StateError, match="a tuned state of 3 layers"):
        State.load(theirs, other)
    cut = rewrite(ours, tmp_path / "cut.pth", lambda n, t: (n, Tensor.of(t.float32()[:1])))
    with pytest.raises(errors.StateError, match=r"time_state of layer 0 has shape .* wants"):
        State.load(cut, model)
    with pytest.raises(errors.StateError, match="which does not say of which model"):
        State.load(theirs)


def test_a_wrong_file_is_refused(model: rookery.Model, tmp_path: Path) -> None:
    good = formats.read(save(tuned(model), tmp_path / "good.pth")).tensors
    first, second = (good[f"blocks.{i}.att.time_state"] for i in (0, 1))
    nan = Tensor.of(second.float32() * np.nan)
    cases = {
        "a tuned state of 1 layers": {"blocks.0.att.time_state": first},
        "twice": good | {"model.blocks.0.att.time_state": first},
        "not finite": good | {"blocks.1.att.time_state": nan},
        "the rest as an adapter": good | {"blocks.0.att.x_r": Tensor.of(np.zeros((1, 1, 4)))},
        "not a state file": {"blocks.0.att.x_r": first},
    }
    for i, (match, tensors) in enumerate(cases.items()):
        formats.write(tmp_path / f"{i}.pth", tensors)
        with pytest.raises(errors.StateError, match=match):
            State.load(tmp_path / f"{i}.pth", model)
    with pytest.raises(errors.StateError, match="not a state file"):
        State.load(TUNED, model)  # a model that has a time_state is no state
