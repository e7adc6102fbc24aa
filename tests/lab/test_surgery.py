"""Operations on a state: new states, exact where they say so, and a checkpoint that begins from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
import tolerances
from rookery import State, errors
from rookery.backends.reference import runner
from rookery.backends.reference.ops import Ops
from rookery.lab import pieces, surgery

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]
TOKENS = list(b"a goose by the river")
AT = 7


@pytest.fixture(scope="module", params=VERSIONS)
def model(request: pytest.FixtureRequest) -> rookery.Model:
    return rookery.load(FIXTURES / f"{request.param}.safetensors", backend="reference", dtype="float64")


@pytest.fixture(scope="module")
def goose() -> rookery.Model:
    return rookery.load(FIXTURES / "v7.safetensors", backend="reference", dtype="float64")


@pytest.fixture
def state(model: rookery.Model) -> State:
    return model.forward(TOKENS)[1]


@pytest.fixture
def goose_state(goose: rookery.Model) -> State:
    return goose.forward(TOKENS)[1]


OPERATIONS = {
    "set": lambda s: surgery.set(s, "layers.1.*shift", 2.0),
    "add": lambda s: surgery.add(s, "layers.1.wkv", 1.0, 0.5),
    "scale": lambda s: surgery.scale(s, "layers.1.wkv", 3),
    "zero": lambda s: surgery.zero(s, "layers.1.*"),
    "mix": lambda s: surgery.mix(s, surgery.zero(s, "*"), 0.5, "layers.1.att_shift"),
    "patch": lambda s: surgery.patch(s, surgery.zero(s, "*"), "layers.1.wkv"),
    "noise": lambda s: surgery.noise(s, "layers.1.*", 0.1, 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_named_changes_and_nothing_else_and_never_the_state_given(name: str, state: State) -> None:
    before = state.vector()
    after = OPERATIONS[name](state)
    assert np.array_equal(state.flat, before)
    changed = {piece for piece, d in state.diff(after).items() if d}
    assert changed
    assert all(piece.startswith("layers.1.") for piece in changed)
    assert after.flat.dtype == state.flat.dtype


def test_what_each_operation_does(state: State) -> None:
    old = pieces.read(state, "layers.1.wkv")
    for after, wanted in (
        (surgery.set(state, "layers.1.wkv", old[::-1]), old[::-1]),
        (surgery.add(state, "layers.1.wkv", old, 0.5), 1.5 * old),
        (surgery.scale(state, "layers.1.wkv", -2), -2 * old),
        (surgery.zero(state, "layers.1.wkv"), 0 * old),
    ):
        np.testing.assert_allclose(pieces.read(after, "layers.1.wkv"), wanted, rtol=1e-12, atol=1e-300)
    drift = pieces.read(surgery.noise(state, "layers.1.wkv", 0.25, 3), "layers.1.wkv") - old
    assert np.linalg.norm(drift) == pytest.approx(0.25 * np.linalg.norm(old))


def test_noise_is_that_of_its_seed(goose_state: State) -> None:
    one, again, other = (surgery.noise(goose_state, "*", 0.1, seed).flat for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_zero_is_a_state_that_has_read_nothing(model: rookery.Model, state: State) -> None:
    blank = State.start(model.config, model.weights, state.flat.dtype)
    assert np.array_equal(surgery.zero(state, "*").flat, blank.flat)


def test_patch_takes_the_other_run_to_the_bit(model: rookery.Model, state: State) -> None:
    other = model.forward([5, 6])[1]
    patched = surgery.patch(state, other, ["layers.0.*", "*.ffn_shift"])
    for name in pieces.names(state):
        source = other if name.startswith("layers.0.") or name.endswith("ffn_shift") else state
        assert np.array_equal(pieces.raw(patched, name), pieces.raw(source, name)), name
    assert np.array_equal(surgery.patch(state, other, "*").flat, other.flat)


def test_v4s_sums_are_seen_as_the_value_they_stand_for() -> None:
    raven = rookery.load(FIXTURES / "v4.safetensors", backend="reference", dtype="float64")
    _, state = raven.forward(TOKENS)
    shifted = state.copy()
    shifted.layer(0).wkv[:2] *= 2
    shifted.layer(0).wkv[2] -= np.log(2)  # the same sums under another exponent
    assert np.array_equal(pieces.read(shifted, "layers.0.wkv"), pieces.read(state, "layers.0.wkv"))
    after = surgery.scale(state, "layers.0.wkv", 2.0)
    assert np.array_equal(after.layer(0).wkv[1:], state.layer(0).wkv[1:])
    assert not np.allclose(raven.forward(1, after)[0], raven.forward(1, state)[0])
    with pytest.raises(errors.StateError, match="read nothing"):
        surgery.set(raven.state(), "layers.0.wkv", 1.0)


def test_truncation_leaves_the_best_matrix_of_that_rank(goose_state: State) -> None:
    old = goose_state.layer(2).wkv
    s = np.linalg.svd(old, compute_uv=False)
    cut = surgery.rank_truncate(goose_state, 2, "layers.2.wkv", head=1).layer(2).wkv
    assert np.array_equal(cut[0], old[0])
    assert np.linalg.matrix_rank(cut[1]) == 2
    assert np.linalg.norm(cut[1] - old[1]) == pytest.approx(np.linalg.norm(s[1, 2:]))
    whole = surgery.rank_truncate(goose_state, old.shape[-1])
    np.testing.assert_allclose(whole.flat, goose_state.flat, atol=1e-12)


def test_a_head_knocked_out_reads_nothing(goose: rookery.Model, goose_state: State) -> None:
    out = surgery.knock_out_head(goose_state, 1, 0)
    assert not out.layer(1).wkv[0].any()
    assert np.array_equal(out.layer(1).wkv[1], goose_state.layer(1).wkv[1])
    assert not np.allclose(goose.forward(1, out)[0], goose.forward(1, goose_state)[0])


def test_what_cannot_be_done_is_said(goose_state: State, state: State) -> None:
    for words, call in {
        r"no piece is named 'layer\.0\.wkv'; the nearest are layers\.0\.wkv": lambda s: surgery.zero(s, "layer.0.wkv"),
        r"values of shape \[3\] for a piece of \[12\]": lambda s: surgery.add(s, "*.att_shift", [1, 2, 3]),
        "head 2: layers.0.wkv has 0 to 1": lambda s: surgery.knock_out_head(s, 0, 2),
        "has no heads": lambda s: surgery.rank_truncate(s, 1, "*.att_shift"),
        "rank -1": lambda s: surgery.rank_truncate(s, -1),
    }.items():
        with pytest.raises(errors.InputError, match=words):
            call(goose_state)
    damaged = goose_state.copy()
    damaged.layer(1).wkv[0, 0, 0] = np.nan
    with pytest.raises(errors.StateError, match=r"layers\.1\.wkv holds 1 numbers that are not finite"):
        surgery.rank_truncate(damaged, 1)
    if state.config != goose_state.config:
        with pytest.raises(errors.StateError, match="two models"):
            surgery.patch(goose_state, state, "*")


# one token's write


class Skipping(Ops):
    """The reference's operations, token by token, that leave one token's write out as `lab.skip` says."""

    skipped: tuple[set[int], slice]

    def _keeps(self, t: int) -> Any:
        """[H or C, 1, 1]: 0 where token t's write is left out."""
        layers, heads = self.skipped
        keep = np.ones((self.n_head or 1, 1, 1))
        if t == AT and self.layer in layers:
            keep[heads] = 0
        return keep

    def wkv4(self, k: Any, v: Any, log_decay: Any, bonus: Any, state: Any) -> Any:
        a, b, m = state[0]
        a, b, y = a * np.exp(m), b * np.exp(m), np.empty_like(v)  # no exponent: float64 has the room
        for t in range(len(k)):
            now, keep = np.exp(k[t] + bonus), self._keeps(t)[0, 0]
            y[t] = (a + now * v[t]) / (b + now)
            a = np.exp(log_decay) * a + keep * np.exp(k[t]) * v[t]
            b = np.exp(log_decay) * b + keep * np.exp(k[t])
        return y, np.stack([a, b, 0 * a])[None]

    def wkv6(self, r: Any, k: Any, v: Any, log_decay: Any, bonus: Any, state: Any) -> Any:
        s, y = state[0], np.empty_like(v)
        for t in range(len(k)):
            kv = k[t][:, :, None] * v[t][:, None, :]
            y[t] = (r[t][:, None, :] @ (s + bonus[..., None] * kv))[:, 0]
            s = np.exp(log_decay[t])[..., None] * s + self._keeps(t) * kv
        return y, s[None]

    def wkv7(self, r: Any, log_decay: Any, k: Any, v: Any, a: Any, b: Any, state: Any) -> Any:
        s, y = state[0], np.empty_like(v)
        for t in range(len(k)):
            kv = k[t][:, :, None] * v[t][:, None, :]
            s = np.exp(log_decay[t])[..., None] * s + b[t][..., None] * (a[t][:, None, :] @ s)
            y[t] = (r[t][:, None, :] @ (s + kv))[:, 0]
            s = s + self._keeps(t) * kv
        return y, s[None]


@pytest.mark.parametrize(("layers", "head"), [("layers.*", None), ("layers.1", None), ("layers.0", 1)])
def test_a_write_left_out_is_that_term_and_nothing_else(
    model: rookery.Model, layers: str, head: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if head is not None and model.config.version == "4":
        with pytest.raises(errors.InputError, match="head 1: RWKV-4 Dove of this size has 0"):
            surgery.skip_write(model, TOKENS, AT, head=head)
        return
    both = surgery.skip_write(model, TOKENS, AT, layers=layers, head=head)
    which = set(range(model.config.n_layer)) if layers == "layers.*" else {int(layers[-1])}
    monkeypatch.setattr(Skipping, "skipped", (which, slice(None) if head is None else head), raising=False)
    monkeypatch.setattr(runner, "Ops", Skipping)
    logits, state = model.forward(TOKENS, every=True)
    bound = tolerances.LOGITS_FLOAT64
    np.testing.assert_allclose(both.without, logits, rtol=0, atol=bound)
    for name in pieces.names(state):
        np.testing.assert_allclose(
            pieces.read(both.state_without, name), pieces.read(state, name), rtol=0, atol=bound, err_msg=name
        )
    assert np.array_equal(both.with_it[: AT + 1], both.without[: AT + 1])
    assert np.abs(both.with_it - both.without)[AT + 1 :].max() > 1000 * bound


@pytest.mark.parametrize("at", [0, len(TOKENS) - 1])
def test_the_first_and_the_last_write_can_be_left_out(model: rookery.Model, at: int) -> None:
    both = surgery.skip_write(model, TOKENS, at)
    logits, state = model.forward(TOKENS, every=True)
    np.testing.assert_allclose(both.with_it, logits, rtol=0, atol=tolerances.LOGITS_FLOAT64)
    assert np.array_equal(both.state_with.flat, state.flat)
    assert both.state_without.delta(state) > 0


def test_a_write_is_left_out_of_a_quantised_model_too() -> None:
    gosling = rookery.load("gosling")
    ids = gosling.tokenizer.encode("User: Where does the goose swim?\n\nAssistant: In the")
    both = surgery.skip_write(gosling, ids, 3)
    assert np.array_equal(both.with_it, gosling.forward(ids, every=True)[0])
    assert np.abs(both.with_it - both.without)[4:].max() > 0.01
    for words, call in {
        "token 99 of": {"at": 99},
        "head 3: RWKV-7": {"at": 1, "head": 3},
        "no layer is named 'layers.9'": {"at": 1, "layers": "layers.9"},
    }.items():
        with pytest.raises(errors.InputError, match=words):
            surgery.skip_write(gosling, ids, **call)


# a checkpoint that begins from a state


def bare(model: rookery.Model, state: State) -> State:
    return surgery.zero(state, "*shift")


@pytest.mark.parametrize("name", VERSIONS[1:])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "gguf"])
def test_a_baked_model_from_its_start_is_the_model_from_that_state(name: str, suffix: str, tmp_path: Path) -> None:
    model = rookery.load(FIXTURES / f"{name}.safetensors", backend="reference")
    state = bare(model, model.forward(TOKENS)[1])
    surgery.bake(model, state, tmp_path / f"baked.{suffix}")
    baked = rookery.load(tmp_path / f"baked.{suffix}", backend="reference")
    assert np.array_equal(baked.state().flat, state.flat)
    assert np.array_equal(baked.forward(TOKENS)[0], model.forward(TOKENS, state)[0])
    assert not np.array_equal(baked.forward(TOKENS)[0], model.forward(TOKENS)[0])
    assert baked.weights.lineage == model.weights.lineage


def test_a_tuned_models_own_start_bakes_to_the_same_tensors(tmp_path: Path) -> None:
    path = FIXTURES / "v6-timestate.safetensors"
    model = rookery.load(path)
    surgery.bake(path, model.state(), tmp_path / "again.safetensors")
    again = rookery.load(tmp_path / "again.safetensors")
    assert again.weights.fingerprint == model.weights.fingerprint


def test_what_cannot_be_baked_is_said(goose: rookery.Model, goose_state: State, tmp_path: Path) -> None:
    raven = rookery.load(FIXTURES / "v4.safetensors")
    with pytest.raises(errors.StateError, match="RWKV-4 has no"):
        surgery.bake(raven, raven.state(), tmp_path / "a.safetensors")
    finch = rookery.load(FIXTURES / "v6.safetensors")
    with pytest.raises(errors.StateError, match="another model"):
        surgery.bake(finch, goose_state, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="token shifts of the state are lost"):
        surgery.bake(goose, goose_state, tmp_path / "a.safetensors")
    with pytest.raises(errors.CannotWrite, match="exists already"):
        surgery.bake(goose, bare(goose, goose_state), tmp_path / "a.safetensors")
