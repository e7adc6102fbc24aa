"""The comparison is worth something: mistakes planted in the oracle, in the package and in its op sets are caught.

Every test first shows that the unplanted cell passes the same check.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matrix import (
    FIXTURES,
    OP_SETS,
    OWN,
    Array,
    OpSet,
    Outcome,
    check,
    check_same,
    of_oracle,
    outcome,
    own,
    tokens,
    truth,
    whole,
)

import rookery
from oracle import PLANTED, Oracle, read_safetensors
from rookery import State
from rookery.architecture import version
from rookery.backends.reference.ops import Ops
from rookery.model import Model

REFERENCE, _, TORCH, _, NATIVE = OP_SETS
CAUGHT = r"apart"  # the message of `check`

VERSION = {name: name.removeprefix("v").removesuffix("-timestate") for name in OWN}
CASES = [(name, error) for name in OWN for error, versions in PLANTED.items() if VERSION[name] in versions]


@pytest.mark.parametrize(("name", "error"), CASES)
@pytest.mark.parametrize("ops", OP_SETS, ids=str)
def test_planted_in_the_oracle(name: str, error: str, ops: OpSet) -> None:
    got = whole(own(name, ops), tokens(name))
    check(got, truth(name), ops.bar)
    planted = of_oracle(Oracle(read_safetensors(FIXTURES / f"{name}.safetensors"), planted=error), tokens(name))
    with pytest.raises(AssertionError, match=CAUGHT):
        check(got, planted, ops.bar)


class Wrong:
    """One module's parameters, some of them replaced."""

    def __init__(self, right: Any, **replaced: Any) -> None:
        self._right = right
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._right, name)


def wrong_params(p: Any, error: str) -> Any:
    """The parameters of one time mixing as a mistaken version file would read them."""
    match error:
        case "eps":
            return Wrong(p, ln_x=SimpleNamespace(weight=p.ln_x.weight, bias=p.ln_x.bias, eps=1e-5))
        case "lerp_order" if hasattr(p, "x_w"):
            return Wrong(p, x_w=p.x_k, x_k=p.x_w)
        case "lerp_order" if hasattr(p, "time_maa_w"):
            return Wrong(p, time_maa_w=p.time_maa_k, time_maa_k=p.time_maa_w)
        case "lerp_order":
            names = [name for name in (f"time_mix_{letter}" for letter in "kvrg") if hasattr(p, name)]
            return Wrong(p, **{name: 1 - getattr(p, name) for name in names})
        case "no_bonus" if hasattr(p, "time_first") and hasattr(p, "ln_x"):  # v5.0, where its exponential is the bonus
            return Wrong(p, time_first=p.time_first - 1e9)
        case "no_bonus":
            held = next(name for name in ("r_k", "time_faaaa", "time_first") if hasattr(p, name))
            return Wrong(p, **{held: getattr(p, held) * 0})
    return Wrong(p)


def plant(monkeypatch: pytest.MonkeyPatch, module: Any, error: str) -> None:
    """Run the version file's time mixing with the mistake `error` ("none": through the same wrapper, unharmed)."""
    right = module.time_mix

    def wrong(o: Any, p: Any, x: Any, state: Any, v_first: Any) -> Any:
        if error == "transposed_state":
            state.wkv = state.wkv.swapaxes(-1, -2)
        return right(o, wrong_params(p, error), x, state, None if error == "no_v_first" else v_first)

    monkeypatch.setattr(module, "time_mix", wrong)


# In a native plan the state is a place, which has no transpose.
IN_THE_VERSION_FILE = [
    pytest.param(ops, *case, id=f"{ops}-{case[0]}-{case[1]}")
    for ops in (REFERENCE, TORCH, NATIVE)
    for case in CASES
    if not (ops is NATIVE and case[1] == "transposed_state")
]


@pytest.mark.parametrize(("ops", "name", "error"), IN_THE_VERSION_FILE)
def test_planted_in_the_version_file(ops: OpSet, name: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = version(own(name, ops).config)
    with monkeypatch.context() as unharmed:
        plant(unharmed, module, "none")
        check(in_halves(fresh(name, ops), tokens(name)), truth(name), ops.bar)
    plant(monkeypatch, module, error)
    planted = fresh(name, ops)
    with pytest.raises(AssertionError, match=CAUGHT):
        check(in_halves(planted, tokens(name)), truth(name), ops.bar)


def fresh(name: str, ops: OpSet) -> Model:
    """A model of its own: a plan is made when a model is loaded, from the version file as it is then."""
    return rookery.load(FIXTURES / f"{name}.safetensors", backend=ops.backend, dtype=ops.dtype)


def in_halves(m: Model, prompt: list[int]) -> Outcome:
    """Fed in two calls: the zero state before the first hides a transposition."""
    first, middle = m.forward(prompt[: len(prompt) // 2], every=True)
    second, end = m.forward(prompt[len(prompt) // 2 :], middle, every=True)
    return outcome(np.concatenate([first, second]), end)


@pytest.mark.parametrize("ops", [REFERENCE, TORCH, NATIVE], ids=str)
def test_time_state_read_untransposed(ops: OpSet, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "v6-timestate"
    m, right = own(name, ops), Model.state

    def wrong(self: Model) -> State:
        state = right(self)
        for i in range(state.config.n_layer):
            wkv = state.layer(i).wkv
            wkv[...] = wkv.swapaxes(1, 2).copy()
        return state

    check(whole(m, tokens(name)), truth(name), ops.bar)
    monkeypatch.setattr(Model, "state", wrong)
    with pytest.raises(AssertionError, match=CAUGHT):
        check(whole(m, tokens(name)), truth(name), ops.bar)


# -- mistakes that only another way of feeding the tokens shows --------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_a_lost_carry_shows_in_a_split(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, prompt, right = own(name, REFERENCE), tokens(name), Ops.token_shift
    monkeypatch.setattr(Ops, "token_shift", lambda self, x, shift: right(self, x, shift * 0))
    at_once = whole(m, prompt)
    check(at_once, truth(name), REFERENCE.bar)
    _, middle = m.forward(prompt[:20])
    with pytest.raises(AssertionError, match="not equal"):
        check_same(outcome(*m.forward(prompt[20:], middle, every=True)), tail(at_once, 20), REFERENCE, REFERENCE.bar)


@pytest.mark.parametrize("name", OWN)
def test_a_leak_between_rows_shows_in_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(self: Ops, x: Array, shift: Array) -> tuple[Array, Array]:
        return np.concatenate([shift[:1], x[:-1]]), x[self.layout.ends]

    m, prompt = own(name, REFERENCE), tokens(name)
    monkeypatch.setattr(Ops, "token_shift", leaky)
    at_once = whole(m, prompt)
    check(at_once, truth(name), REFERENCE.bar)
    _, second = m.forward_batch([prompt[:3], prompt], every=True)
    with pytest.raises(AssertionError, match="not equal"):
        check_same(outcome(*second), at_once, REFERENCE, REFERENCE.bar)


def tail(all_of_it: Outcome, start: int) -> Outcome:
    return Outcome(all_of_it.logits[start:], all_of_it.pieces)


def test_nan_agrees_with_nothing() -> None:
    right = truth("v7")
    for spoiled in (
        Outcome(right.logits * np.nan, right.pieces),
        Outcome(right.logits, [right.pieces[0] * np.nan, *right.pieces[1:]]),
    ):
        with pytest.raises(AssertionError, match=CAUGHT):
            check(spoiled, right, REFERENCE.bar)
