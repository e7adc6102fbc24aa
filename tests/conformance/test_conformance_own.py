"""The committed fixtures: every version x op set x mode x format against the oracle. Needs nothing beside the clone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matrix import FIXTURES, OP_SETS, OWN, Bar, OpSet, check, check_same, model, outcome, own, tokens, truth, whole
from safetensors.numpy import save_file
from written import write_ggmf, write_gguf, write_pth

from oracle import Oracle, read_safetensors
from rookery.model import Array, Model, State
from tolerances import LOGITS_CHUNKED, LOGITS_TEXT, STATE, STATE_CHUNKED, STATE_FLOAT64

FED_DIFFERENTLY = Bar(LOGITS_CHUNKED, STATE_CHUNKED)

all_models = pytest.mark.parametrize("name", OWN)
all_op_sets = pytest.mark.parametrize("ops", OP_SETS, ids=str)


@all_models
@all_op_sets
def test_whole_prompt(name: str, ops: OpSet) -> None:
    check(whole(own(name, ops), tokens(name)), truth(name), ops.bar)


@all_models
@all_op_sets
def test_last_logits_are_those_of_every(name: str, ops: OpSet) -> None:
    logits, state = own(name, ops).forward(tokens(name))
    every = whole(own(name, ops), tokens(name))
    assert logits.shape == (256,)
    assert logits.dtype == ops.dtype
    check_same(outcome(logits, state), outcome(every.logits[-1], state), ops, FED_DIFFERENTLY)


def stepped(model: Model, prompt: list[int]) -> tuple[Array, list[State]]:
    """Logits [T,V] and the state after each token, one token at a time."""
    logits, states = [], [model.state()]
    for token in prompt:
        last, state = model.forward(token, states[-1])
        logits.append(last)
        states.append(state)
    return np.array(logits), states


@all_models
@all_op_sets
def test_one_token_at_a_time_and_split_at_every_point(name: str, ops: OpSet) -> None:
    m, prompt = own(name, ops), tokens(name)
    at_once = whole(m, prompt)
    logits, states = stepped(m, prompt)
    check(outcome(logits, states[-1]), truth(name), ops.bar)
    check_same(outcome(logits, states[-1]), at_once, ops, FED_DIFFERENTLY)
    for cut in range(1, len(prompt)):
        first, middle = m.forward(prompt[:cut], every=True)
        check_same(outcome(first, middle), outcome(logits[:cut], states[cut]), ops, FED_DIFFERENTLY)
        rest, end = m.forward(prompt[cut:], middle, every=True)
        check_same(outcome(np.concatenate([first, rest]), end), at_once, ops, FED_DIFFERENTLY)


@all_models
@all_op_sets
@pytest.mark.parametrize("every", [False, True])
def test_batched_with_others(name: str, ops: OpSet, every: bool) -> None:
    m, prompt = own(name, ops), tokens(name)
    _, warm = m.forward(prompt[3:9])
    rows = [prompt, [7], prompt[5:12], prompt[::-1][:23], [0, 255], prompt[:16]]
    states = [None, warm, None, warm, m.state(), None]
    alone = [outcome(*m.forward(row, state, every)) for row, state in zip(rows, states, strict=True)]
    for order in ([0, 1, 2, 3, 4, 5], [3, 1, 5, 0, 4, 2], [1], [2, 2]):
        together = m.forward_batch([rows[i] for i in order], [states[i] for i in order], every)
        for i, (logits, state) in zip(order, together, strict=True):
            check_same(outcome(logits, state), alone[i], ops, FED_DIFFERENTLY)
    check(outcome(*m.forward_batch(rows, None, True)[0]), truth(name), ops.bar)


@all_models
@all_op_sets
def test_equal_lengths_in_one_batch(name: str, ops: OpSet) -> None:
    """torch takes its chunked form here."""
    m, prompt = own(name, ops), tokens(name)
    _, warm = m.forward(prompt[3:9])
    both = m.forward_batch([prompt, prompt[::-1]], [None, warm], every=True)
    check(outcome(*both[0]), truth(name), ops.bar)
    check_same(outcome(*both[1]), outcome(*m.forward(prompt[::-1], warm, every=True)), ops, FED_DIFFERENTLY)


@all_models
@all_op_sets
def test_a_passed_state_is_never_changed(name: str, ops: OpSet) -> None:
    m, prompt = own(name, ops), tokens(name)
    _, state = m.forward(prompt[:5])
    before = state.vector()
    _, one = m.forward(prompt, state)
    first, second = m.forward_batch([prompt, prompt], [state, state])
    np.testing.assert_array_equal(state.vector(), before)
    for after in (one, first[1], second[1]):
        assert not np.shares_memory(after.layer(0).wkv, state.layer(0).wkv)
    assert not np.shares_memory(first[1].layer(0).wkv, second[1].layer(0).wkv)


@all_models
@pytest.mark.parametrize("ops", [ops for ops in OP_SETS if ops.exact], ids=str)
def test_the_chunks_of_a_long_prompt_leave_no_trace(name: str, ops: OpSet, monkeypatch: pytest.MonkeyPatch) -> None:
    m, prompt = own(name, ops), tokens(name)
    at_once = whole(m, prompt)
    for chunk in (1, 7, 16, 39, 40):
        monkeypatch.setattr("rookery.model.CHUNK", chunk)
        check_same(whole(m, prompt), at_once, ops, FED_DIFFERENTLY)


# -- formats -----------------------------------------------------------------------------------------------------------


@all_models
@all_op_sets
def test_from_pth(name: str, ops: OpSet, tmp_path: Path) -> None:
    write_pth(FIXTURES / f"{name}.safetensors", tmp_path / "model.pth")
    check_same(
        whole(model(tmp_path / "model.pth", ops), tokens(name)), whole(own(name, ops), tokens(name)), ops, ops.bar
    )


@pytest.mark.parametrize("name", ["v4", "v5.0", "v5.2", "v6", "v7"])  # what rwkv.cpp knows
@all_op_sets
def test_from_ggmf(name: str, ops: OpSet, tmp_path: Path) -> None:
    write_ggmf(FIXTURES / f"{name}.safetensors", tmp_path / "model.bin", name[1:])
    # the file keeps v4's and v5's decays through an exponential in float32, so that is the bar for float64 too
    check(whole(model(tmp_path / "model.bin", ops), tokens(name)), truth(name), Bar(LOGITS_TEXT, STATE))


@pytest.mark.parametrize("name", ["v6", "v7"])  # what llama.cpp knows
@all_op_sets
def test_from_gguf(name: str, ops: OpSet, tmp_path: Path) -> None:
    write_gguf(FIXTURES / f"{name}.safetensors", tmp_path / "model.gguf", name[1:])
    check_same(
        whole(model(tmp_path / "model.gguf", ops), tokens(name)), whole(own(name, ops), tokens(name)), ops, ops.bar
    )


# -- the initial state -------------------------------------------------------------------------------------------------


@all_models
@all_op_sets
def test_initial_state(name: str, ops: OpSet) -> None:
    oracle = Oracle(read_safetensors(FIXTURES / f"{name}.safetensors"))
    state = own(name, ops).state()
    for i, layer in enumerate(oracle.state()):
        for piece, value in layer.items():
            np.testing.assert_array_equal(getattr(state.layer(i), piece), value.astype(ops.dtype), strict=True)


@all_models
def test_orders_and_layouts_of_the_state(name: str) -> None:
    """`vector` is layer-major: att_shift, ffn_shift, wkv; `to_reference` is the `rwkv` package's list."""
    m = own(name, OP_SETS[1])
    _, state = m.forward(tokens(name))
    oracle = Oracle(read_safetensors(FIXTURES / f"{name}.safetensors"))
    oracle.run(tokens(name))
    vector, listed = [], []
    for layer in oracle.layers:
        vector += [layer["att_shift"], layer["ffn_shift"], layer["wkv"].reshape(-1)]
        wkv = [layer["wkv"].transpose(0, 2, 1) if name == "v7" else layer["wkv"]]
        listed += [layer["att_shift"], *(layer["wkv"] if name == "v4" else wkv), layer["ffn_shift"]]
    np.testing.assert_allclose(state.vector(), np.concatenate(vector), rtol=0, atol=STATE_FLOAT64)
    assert len(state.to_reference()) == len(listed)
    for mine, theirs in zip(state.to_reference(), listed, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=STATE_FLOAT64, strict=True)
    np.testing.assert_array_equal(State.from_reference(state.to_reference(), m).vector(), state.vector())


@pytest.mark.parametrize("name", ["v5.0", "v5.1", "v5.2", "v6", "v7"])
@all_op_sets
def test_time_state_in_every_headed_version(name: str, ops: OpSet, tmp_path: Path) -> None:
    tensors = read_safetensors(FIXTURES / f"{name}.safetensors")
    heads, rng = Oracle(tensors).heads, np.random.default_rng(7)
    size = tensors["emb.weight"].shape[1] // heads
    for i in range(Oracle(tensors).n_layer):
        tensors[f"blocks.{i}.att.time_state"] = rng.standard_normal((heads, size, size)).astype(np.float32)
    save_file(tensors, tmp_path / "tuned.safetensors")
    oracle, prompt = Oracle(tensors), tokens(name)
    m = model(tmp_path / "tuned.safetensors", ops)
    wanted = oracle.run(prompt)
    assert np.abs(m.forward(prompt, every=True)[0] - wanted).max() <= ops.bar.logits
    zero = m.state()
    for i in range(oracle.n_layer):
        zero.layer(i).wkv[...] = 0
    plain = truth(name)
    check(outcome(*m.forward(prompt, zero, every=True)), plain, ops.bar)
    assert np.abs(wanted - plain.logits).max() > 10 * LOGITS_TEXT
