"""The state as a thing: views, distances, mixtures, files, and whose it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import State, errors, formats
from rookery.formats.tensor import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]


@pytest.fixture(scope="module", params=VERSIONS)
def model(request: pytest.FixtureRequest) -> rookery.Model:
    return rookery.load(FIXTURES / f"{request.param}.safetensors")


@pytest.fixture
def state(model: rookery.Model) -> State:
    return model.forward([1, 2, 3])[1]


def test_the_vector_is_layer_major_in_the_order_of_the_pieces(model: rookery.Model, state: State) -> None:
    parts = []
    for i in range(model.config.n_layer):
        layer = state.layer(i)
        parts += [layer.att_shift, layer.ffn_shift, layer.wkv.reshape(-1)]
    assert np.array_equal(np.concatenate(parts), state.vector())
    assert state.vector().dtype == np.float32
    assert state.vector().size == model.state_size


def test_a_layer_is_a_view_and_a_vector_is_a_copy(state: State) -> None:
    vector = state.vector()
    state.layer(1).wkv[...] = 7
    assert (state.layer(1).wkv == 7).all()
    assert not np.array_equal(vector, state.vector())


def test_delta_is_the_l2_distance_over_root_n(model: rookery.Model, state: State) -> None:
    _, other = model.forward([4], state)
    a, b = state.vector().astype(float), other.vector().astype(float)
    assert state.delta(other) == pytest.approx(np.linalg.norm(a - b) / np.sqrt(a.size))
    mixed = state.copy()
    mixed.layer(1).wkv[...] = other.layer(1).wkv
    layers = state.delta_by_layer(mixed)
    assert layers.nonzero()[0].tolist() == [1]
    assert np.sqrt((layers**2).mean()) == pytest.approx(state.delta(mixed))
    assert state.delta(state.copy()) == 0
    pieces = state.diff(other)
    assert set(pieces) == {
        f"layers.{i}.{p}" for i in range(model.config.n_layer) for p in ("att_shift", "ffn_shift", "wkv")
    }
    assert pieces["layers.0.att_shift"] == pytest.approx(
        np.linalg.norm(state.layer(0).att_shift - other.layer(0).att_shift) / np.sqrt(model.config.n_embd), rel=1e-6
    )


def test_mix_of_a_state_with_itself_is_itself(state: State) -> None:
    np.testing.assert_allclose(state.mix(state, 0.3).vector(), state.vector(), rtol=1e-5, atol=1e-7)


def test_mix_ends_at_either_state(model: rookery.Model, state: State) -> None:
    _, other = model.forward([9, 8], state)
    for share, end in ((0.0, state), (1.0, other)):
        ours, theirs = (model.forward(5, s)[0] for s in (state.mix(other, share), end))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_v4_mix_adds_sums_not_exponents() -> None:
    model = rookery.load(FIXTURES / "v4.safetensors")
    (_, a), (_, b) = model.forward([1, 2]), model.forward([3])
    mixed = a.mix(b, 0.25).layer(0).wkv.astype(float)
    for row in (0, 1):
        sums = [s.layer(0).wkv[row] * np.exp(s.layer(0).wkv[2].astype(float)) for s in (a, b)]
        np.testing.assert_allclose(mixed[row] * np.exp(mixed[2]), 0.75 * sums[0] + 0.25 * sums[1], rtol=1e-5)


def test_blinkdls_layout_and_back(model: rookery.Model, state: State) -> None:
    arrays = state.to_reference()
    assert len(arrays) == model.config.n_layer * (5 if model.config.version == "4" else 3)
    assert np.array_equal(State.from_reference(arrays, model).vector(), state.vector())
    if model.config.version == "7":
        assert np.array_equal(arrays[1], state.layer(0).wkv.swapaxes(1, 2))
    with pytest.raises(errors.StateError, match="arrays where"):
        State.from_reference(arrays[1:], model)
    with pytest.raises(errors.StateError, match="shape"):
        State.from_reference([np.zeros(3), *arrays[1:]], model)


def test_saved_and_loaded_goes_on_to_the_bit(model: rookery.Model, state: State, tmp_path: Path) -> None:
    path = tmp_path / "talk.safetensors"
    state.save(path)
    loaded = State.load(path, model)
    assert np.array_equal(loaded.vector(), state.vector())
    assert np.array_equal(model.forward([5, 6], loaded)[0], model.forward([5, 6], state)[0])
    assert State.load(path).origin.fingerprint == model.weights.fingerprint


def test_another_opening_of_the_same_model_takes_the_state(model: rookery.Model, state: State) -> None:
    again = rookery.load(model.weights.path)
    assert np.array_equal(again.forward(5, state)[0], model.forward(5, state)[0])


def changed_copy(source: Path, target: Path, metadata: dict[str, str]) -> Path:
    """The same model with one number moved, as another quantisation has them."""
    tensors = dict(formats.read(source).tensors)
    values = tensors["head.weight"].float32().copy()
    values[0, 0] += 1
    tensors["head.weight"] = Tensor.of(values)
    formats.write(target, tensors, metadata)
    return target


def test_a_state_of_another_model_is_refused(model: rookery.Model, state: State, tmp_path: Path) -> None:
    other = rookery.load(changed_copy(Path(model.weights.path), tmp_path / "m.safetensors", {}))
    state.save(tmp_path / "s.safetensors")
    with pytest.raises(errors.StateError, match="another model"):
        other.forward(1, state)
    with pytest.raises(errors.StateError, match="another model"):
        State.load(tmp_path / "s.safetensors", other, allow_lineage=True)


def test_a_state_of_the_same_lineage_wants_permission(model: rookery.Model, state: State, tmp_path: Path) -> None:
    lineage = {"rookery.lineage": model.weights.fingerprint}
    other = rookery.load(changed_copy(Path(model.weights.path), tmp_path / "m.safetensors", lineage))
    state.save(tmp_path / "s.safetensors")
    with pytest.raises(errors.StateError, match="allow_lineage"):
        State.load(tmp_path / "s.safetensors", other)
    allowed = State.load(tmp_path / "s.safetensors", other, allow_lineage=True)
    assert np.isfinite(other.forward(1, allowed)[0]).all()


def test_a_state_of_another_size_is_refused() -> None:
    v6, v7 = (rookery.load(FIXTURES / f"{v}.safetensors") for v in ("v6", "v7"))
    with pytest.raises(errors.StateError, match="another size"):
        v7.forward(1, v6.state())
    with pytest.raises(errors.StateError, match="two models"):
        v7.state().delta(v6.state())


def test_files_that_are_no_states(model: rookery.Model, state: State, tmp_path: Path) -> None:
    with pytest.raises(errors.StateError, match="not a state file"):
        State.load(model.weights.path)
    state.save(tmp_path / "s.safetensors")
    with pytest.raises(errors.UnknownArchitecture, match=r"State\.load"):
        rookery.load(tmp_path / "s.safetensors")
    good = formats.read(tmp_path / "s.safetensors")
    hostile = [
        (good.tensors, good.metadata | {"rookery.config": "[]"}, "damaged"),
        (good.tensors, good.metadata | {"rookery.config": '{"version": "9"}'}, "damaged"),
        (good.tensors, {"rookery.kind": "state"}, "damaged"),
        (dict(list(good.tensors.items())[1:]), good.metadata, "layers"),
        (good.tensors | {"layers.0.wkv": good.tensors["layers.0.att_shift"]}, good.metadata, "its tensors are not"),
    ]
    for tensors, metadata, words in hostile:
        formats.write(tmp_path / "bad.safetensors", tensors, metadata)
        with pytest.raises(errors.StateError, match=words):
            State.load(tmp_path / "bad.safetensors")


def test_the_tuned_initial_state_is_where_reading_begins() -> None:
    model = rookery.load(FIXTURES / "v6-timestate.safetensors")
    tuned = model.weights.tensors["blocks.0.att.time_state"].float32()
    assert np.array_equal(model.state().layer(0).wkv, tuned.swapaxes(1, 2))
    assert np.array_equal(model.forward(3)[0], model.forward(3, model.state())[0])
