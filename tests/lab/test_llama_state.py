"""llama.cpp's saved states: real ones of two small models, and what is no such thing.

tests/fixtures/llama holds what llama.cpp (llama-cpp-python 0.3.36) saved after reading `READ` with fixtures/v6 and
with `goose` below, both as float32 GGUFs.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rookery
import tolerances
from rookery import errors, formats
from rookery.architecture import Config, version
from rookery.formats.tensor import Tensor
from rookery.lab import llama_state
from rookery.state import layers

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
LLAMA = FIXTURES / "llama"
READ = list(b"Hello, world")


@pytest.fixture(scope="module")
def finch() -> rookery.Model:
    return rookery.load(FIXTURES / "v6.safetensors", backend="reference")


@pytest.fixture(scope="module")
def goose(tmp_path_factory: pytest.TempPathFactory) -> rookery.Model:
    """Random weights and heads of 64, the size that llama.cpp's v7 needs; made of raw bits, which no NumPy changes."""
    c = Config("7", 2, 64, 256, 64, n_head=1, ranks={"w": 4, "a": 4, "v": 4, "g": 4})
    bits, tensors = np.random.PCG64(7), {}
    for p in version(c).params(c):
        if not p.optional:
            one = p.name.endswith(".weight") and ".ln" in f".{p.name}"
            u = (bits.random_raw(int(np.prod(p.file_shape))) >> 11) * 2.0**-53 - 0.5
            tensors[p.name] = Tensor.of((one + 0.7 * u).astype(np.float32).reshape(p.file_shape))
    path = tmp_path_factory.mktemp("goose") / "goose.safetensors"
    formats.write(path, tensors)
    return rookery.load(path, backend="reference")


def same(ours: rookery.State, theirs: rookery.State) -> None:
    for mine, other in zip(layers(ours.config, ours.flat), layers(theirs.config, theirs.flat), strict=True):
        for name, piece in mine.items():
            bound = tolerances.STATE * np.abs(piece).max()
            np.testing.assert_allclose(other[name], piece, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("wrapping", ["sequence", "slot", "whole", "session"])
def test_a_finch_of_llama_is_our_finch(finch: rookery.Model, wrapping: str) -> None:
    path = LLAMA / f"v6.{wrapping}"
    same(finch.forward(READ)[1], llama_state.import_llama(path, finch))
    saved = llama_state.read(path)
    assert saved.position == len(READ) - 1
    assert saved.tokens == (tuple(READ) if wrapping in ("slot", "session") else None)
    assert saved.architecture == ("rwkv6" if wrapping in ("whole", "session") else None)


def test_a_goose_of_llama_is_our_goose(goose: rookery.Model) -> None:
    """Its axes lie the other way, which a symmetric state would not show."""
    theirs = llama_state.import_llama(LLAMA / "v7.sequence", goose)
    same(goose.forward(READ)[1], theirs)
    wkv = theirs.layer(1).wkv
    assert np.abs(wkv - wkv.swapaxes(1, 2)).max() > 0.1 * np.abs(wkv).max()


@pytest.mark.parametrize("name", ["v6", "v7"])
def test_what_we_write_is_what_llama_wrote(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue({"v6": "finch", "v7": "goose"}[name])
    blob = (LLAMA / f"{name}.sequence").read_bytes()
    assert llama_state.to_bytes(llama_state.import_llama(LLAMA / f"{name}.sequence", model), len(READ)) == blob


def test_there_and_back_is_bit_exact_and_goes_on(goose: rookery.Model, tmp_path: Path) -> None:
    _, state = goose.forward(READ)
    (tmp_path / "blob").write_bytes(llama_state.to_bytes(state, len(READ)))
    back = llama_state.import_llama(tmp_path / "blob", goose)
    assert np.array_equal(back.flat, state.flat)
    assert np.array_equal(goose.forward(7, back)[0], goose.forward(7, state)[0])


GOOD = (LLAMA / "v6.sequence").read_bytes()
SESSION = (LLAMA / "v6.session").read_bytes()


def patched(at: int, code: str, value: int, of: bytes = GOOD) -> bytes:
    return of[:at] + struct.pack(f"<{code}", value) + of[at + struct.calcsize(code) :]


HOSTILE = {
    "first bytes": (b"\xff" * 64, errors.BadHeader, "no state that llama.cpp writes"),
    "an unprintable name": (struct.pack("<I", 4) + b"\x1b[2J" + GOOD[8:], errors.BadHeader, "no state that llama.cpp"),
    "three bytes": (GOOD[:3], errors.TruncatedFile, "magic number"),
    "no cell": (patched(8, "I", 0)[:12], errors.BadHeader, "before the first token"),
    "two cells": (patched(8, "I", 2), errors.BadHeader, "2 cells"),
    "a negative position": (patched(12, "i", -1), errors.BadHeader, "position -1"),
    "many ids": (patched(16, "I", 2**31), errors.BadHeader, "2147483648 sequence ids"),
    "transposed": (patched(20, "I", 1), errors.BadHeader, "transposed rows is 1"),
    "no layers": (patched(24, "I", 0), errors.BadHeader, "claims 0 layers"),
    "too many layers": (patched(24, "I", 2**32 - 1), errors.BadHeader, "claims 4294967295 layers"),
    "float16 rows": (patched(28, "i", 1), errors.UnsupportedType, "token shift of layer 0 is of type float16"),
    "an unknown type": (patched(28, "i", -7), errors.UnsupportedType, "type -7"),
    "a row beyond the end": (patched(32, "Q", 2**63), errors.TruncatedFile, "token shift of layer 0"),
    "a row of no bytes": (patched(32, "Q", 0), errors.BadHeader, "claims 0 bytes"),
    "a row of odd bytes": (patched(32, "Q", 95), errors.BadHeader, "claims 95 bytes"),
    "cut": (GOOD[:-1], errors.TruncatedFile, "WKV state of layer 1"),
    "a tail": (GOOD + b"\0", errors.BadHeader, "1 bytes after the last row"),
    "an old session": (patched(4, "I", 9, SESSION), errors.DamagedFile, "version 9 of llama.cpp's session"),
    "a newer session": (patched(4, "I", 11, SESSION), errors.NewerFile, "version 11"),
    "endless tokens": (patched(8, "I", 2**32 - 1, SESSION), errors.TruncatedFile, "4294967295 tokens"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_in_a_line(case: str, finch: rookery.Model, tmp_path: Path) -> None:
    data, kind, words = HOSTILE[case]
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(kind, match=words) as caught:
        llama_state.import_llama(tmp_path / "bad", finch)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "bad"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SESSION) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.data())
def test_flipped_bytes_are_read_or_refused(flips: list[tuple[int, int]], data: st.DataObject) -> None:
    """Nothing but a named error comes of any bytes, and no more memory is taken than the file has."""
    raw = bytearray(data.draw(st.sampled_from([GOOD, SESSION])))
    for at, value in flips:
        raw[at % len(raw)] = value
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))]
    try:
        saved = llama_state.parse("flipped", np.frombuffer(bytes(raw), np.uint8))
    except (errors.DamagedFile, errors.NewerFile):
        return
    assert sum(row.nbytes for row in [*saved.shifts, *saved.wkv]) < len(raw)


def test_another_models_state_is_refused(finch: rookery.Model, goose: rookery.Model) -> None:
    with pytest.raises(errors.StateError, match="of another model"):
        llama_state.import_llama(LLAMA / "v6.sequence", goose)
    with pytest.raises(errors.StateError, match="state of 'rwkv6', not of RWKV-7"):
        llama_state.import_llama(LLAMA / "v6.session", goose)
    eagle = rookery.load(FIXTURES / "v5.2.safetensors")
    with pytest.raises(errors.StateError, match=r"no states of an RWKV-5\.2"):
        llama_state.import_llama(LLAMA / "v6.sequence", eagle)
    with pytest.raises(errors.StateError, match=r"no states of an RWKV-5\.2"):
        llama_state.to_bytes(eagle.forward(1)[1], 1)


def test_numbers_that_are_not_finite_are_said_and_kept(finch: rookery.Model) -> None:
    damaged = patched(40, "I", 0x7FC00000)  # NaN
    saved = llama_state.parse("damaged", np.frombuffer(damaged, np.uint8))
    with pytest.warns(UserWarning, match="1 of its 192 numbers are not finite"):
        state = llama_state.to_state(saved, finch)
    assert np.isnan(state.layer(0).att_shift[0])


def test_a_state_before_the_first_token_cannot_be_written(finch: rookery.Model) -> None:
    with pytest.raises(errors.InputError, match="after 0 tokens"):
        llama_state.to_bytes(finch.state(), 0)
