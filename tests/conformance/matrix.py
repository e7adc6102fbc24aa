"""The axes of the conformance matrix, and the one comparison that every cell goes through.

A cell is a model (version), an op set, a mode (how the tokens are fed) and a format (where the weights come from).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import rookery
from oracle import Oracle, read_safetensors
from rookery import Model, State, _native
from tolerances import LOGITS_FLOAT64, LOGITS_TEXT, STATE, STATE_FLOAT64

Array = npt.NDArray[Any]

FIXTURES = Path(__file__).parent.parent / "fixtures"
OWN = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")


@dataclass(frozen=True)
class OpSet:
    """A back end in a precision. `exact`: rows are bit-equal however they are fed (the law of rows)."""

    backend: str
    dtype: str

    @property
    def exact(self) -> bool:
        return self.backend in ("reference", "native")

    @property
    def bar(self) -> Bar:
        return Bar(LOGITS_FLOAT64, STATE_FLOAT64) if self.dtype == "float64" else Bar(LOGITS_TEXT, STATE)

    def __str__(self) -> str:
        return f"{self.backend}-{self.dtype}"


@dataclass(frozen=True)
class Bar:
    """`logits`: largest absolute difference; `state`: relative to the largest element of each piece."""

    logits: float
    state: float


@dataclass(frozen=True)
class Outcome:
    """Logits [T,V] (or [V]) and the state after the last token, piece by piece."""

    logits: Array
    pieces: list[Array]


OP_SETS = [
    OpSet("reference", "float32"),
    OpSet("reference", "float64"),
    OpSet("torch", "float32"),
    OpSet("torch", "float64"),
    OpSet("native", "float32"),
]


@lru_cache(maxsize=64)
def model(path: Path, ops: OpSet, eps: float | None = None) -> Model:
    if ops.backend == "native" and not _native.available():
        pytest.skip("the native core is not built")
    return rookery.load(path, backend=ops.backend, dtype=ops.dtype, group_norm_eps=eps)


def own(name: str, ops: OpSet) -> Model:
    return model(FIXTURES / f"{name}.safetensors", ops)


@lru_cache
def tokens(name: str) -> list[int]:
    with np.load(FIXTURES / f"{name}.npz") as golden:
        return [int(token) for token in golden["tokens"]]


@lru_cache
def truth(name: str) -> Outcome:
    """What the oracle says of a fixture's whole prompt."""
    return of_oracle(Oracle(read_safetensors(FIXTURES / f"{name}.safetensors")), tokens(name))


def of_oracle(oracle: Oracle, prompt: list[int]) -> Outcome:
    logits = oracle.run(prompt)
    pieces = []
    for layer in oracle.layers:
        pieces += _layer(layer["att_shift"], layer["ffn_shift"], layer["wkv"])
    return Outcome(logits, pieces)


def outcome(logits: Array, state: State) -> Outcome:
    pieces = []
    for i in range(state.config.n_layer):
        layer = state.layer(i)
        pieces += _layer(layer.att_shift, layer.ffn_shift, layer.wkv)
    return Outcome(logits, pieces)


def whole(model: Model, prompt: list[int]) -> Outcome:
    return outcome(*model.forward(prompt, every=True))


def _layer(att_shift: Array, ffn_shift: Array, wkv: Array) -> list[Array]:
    # v4's numerator, denominator and exponent have scales of their own
    return [att_shift, ffn_shift, *(wkv if wkv.ndim == 2 else [wkv])]


def check(got: Outcome, wanted: Outcome, bar: Bar) -> None:
    """AssertionError unless logits and every piece of the state agree. NaN agrees with nothing."""
    assert got.logits.shape == wanted.logits.shape
    assert [p.shape for p in got.pieces] == [p.shape for p in wanted.pieces]
    distance = np.abs(got.logits - wanted.logits).max()
    assert distance <= bar.logits, f"logits are {distance:.3g} apart, {bar.logits:g} is allowed"
    for i, (mine, theirs) in enumerate(zip(got.pieces, wanted.pieces, strict=True)):
        distance = np.abs(mine - theirs).max() / np.abs(theirs).max()
        assert distance <= bar.state, f"state piece {i} is {distance:.3g} of its largest element apart"


def check_same(got: Outcome, wanted: Outcome, ops: OpSet, bar: Bar) -> None:
    """The same model fed in two ways: to the bit where the op set promises it, else within `bar`."""
    if ops.exact:
        np.testing.assert_array_equal(got.logits, wanted.logits, strict=True)
        for mine, theirs in zip(got.pieces, wanted.pieces, strict=True):
            np.testing.assert_array_equal(mine, theirs, strict=True)
    else:
        check(got, wanted, bar)
