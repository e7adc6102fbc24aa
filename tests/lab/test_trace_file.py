"""Traces in a file: readable while they grow, whole up to the last record after any end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import errors
from rookery.lab.trace import read

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOKENS = np.random.default_rng(0).integers(0, 256, 40)
POINTS = ("state.layers.*.wkv", "layers.1.resid", "layers.0.att.w")


def open_(name: str = "v7") -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with open_().trace("state.*", every=4, file=tmp_path / "a.trace") as t:
        t.model.forward(TOKENS)
    return tmp_path / "a.trace"


@pytest.mark.parametrize("dtype", [None, "float16", "float64"])
@pytest.mark.parametrize("name", ["v4", "v5.2", "v7"])
def test_a_file_has_what_memory_has(name: str, dtype: str | None, tmp_path: Path) -> None:
    model = open_(name)
    whole = model.trace(*POINTS, every=3, dtype=dtype)
    file = model.trace(*POINTS, every=3, dtype=dtype, file=tmp_path / "a.trace")
    with whole, file:
        _, state = model.forward(TOKENS)
        model.forward_batch([TOKENS, TOKENS[:7]], [None, state])
    again = read(tmp_path / "a.trace")
    for t in (file, again):
        assert len(t) == len(whole) == 13 + 13 + 2
        assert sorted(t.names) == sorted(whole.names)
        assert t.tokens.tolist() == whole.tokens.tolist()
        assert t.sequence.tolist() == whole.sequence.tolist()
        for point in whole.names:
            assert t[point].dtype == whole[point].dtype
            assert np.array_equal(t[point], whole[point]), point
    assert again.about["every"] == 3
    assert again.about["fingerprint"] == model.weights.fingerprint


def test_it_is_read_while_it_is_written(tmp_path: Path) -> None:
    model, path = open_("v4"), tmp_path / "a.trace"
    with model.trace("*", file=path, last=3) as t:  # its header waits for the decay
        assert t["state.layers.0.wkv"].shape == (0, 3, 12)
        assert t.tokens.tolist() == []
        with pytest.raises(errors.EmptyFile, match="nothing was captured yet"):
            read(path)
        state = None
        for n in range(1, 6):
            _, state = model.forward([n], state)
            assert read(path).tokens.tolist() == list(range(1, n + 1))
            assert t.tokens.tolist() == list(range(1, n + 1))[-3:]
            assert np.array_equal(t["state.layers.1.wkv"][-1], state.layer(1).wkv)
    assert len(read(path)) == 5
    assert read(path, last=2).tokens.tolist() == [4, 5]


def test_a_record_cut_short_is_left_out(written: Path) -> None:
    whole = read(written)
    data = written.read_bytes()
    begin = data.index(b"\n") + 1
    size = (len(data) - begin) // 10
    for end in (len(data) - 1, len(data) - size + 1, len(data) - size):
        written.write_bytes(data[:end])
        assert read(written).tokens.tolist() == whole.tokens.tolist()[:9]
    written.write_bytes(data[:begin])
    assert len(read(written)) == 0
    assert read(written)["state.layers.0.wkv"].shape == (0, 2, 6, 6)


CHILD = """
import sys, rookery
model = rookery.load(sys.argv[1], tokenizer="bytes")
state, token = None, 0
with model.trace("state.*", file=sys.argv[2]):
    while True:
        _, state = model.forward(token, state)
        token = (token + 1) % 256
        print(token, flush=True)
"""


def test_a_killed_process_leaves_every_record_that_was_told_of(tmp_path: Path) -> None:
    model, path = FIXTURES / "v7.safetensors", tmp_path / "a.trace"
    with subprocess.Popen([sys.executable, "-c", CHILD, model, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(50):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = 50 + sum(line.endswith("\n") for line in child.stdout)
    t = read(path)
    assert len(t) in (told, told + 1)
    loaded = open_()
    with loaded.trace("state.*") as truth:
        loaded.forward(np.arange(len(t)) % 256)
    for point in truth.names:
        assert np.array_equal(t[point], truth[point])


def test_a_full_disk_keeps_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = open_(), tmp_path / "a.trace"
    write, calls = os.write, 0

    def full(file: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        return write(file, data if calls < 5 else data[:100])

    t = model.trace("state.*", file=path)

    def run() -> None:
        with t:
            monkeypatch.setattr(os, "write", full)
            model.forward(TOKENS)

    with pytest.raises(errors.CannotWrite, match=r"no space left on the disk.*what was captured before is whole"):
        run()
    monkeypatch.undo()
    assert model.traces is None
    assert read(path).tokens.tolist() == [1, 2, 3, 4]
    assert path.read_bytes()[-1:] == read(path)._rows.tobytes()[-1:]  # nothing of the fifth is left
    model.forward(TOKENS)


def test_what_is_not_finite_is_counted_when_read(tmp_path: Path) -> None:
    model = open_()
    state = model.state()
    state.layer(0).wkv[0, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="NaN or infinite"), model.trace("state.*", file=tmp_path / "a") as t:
        model.forward([1, 2], state)
    assert read(tmp_path / "a").nonfinite == t.nonfinite != {}


# -- places and files that will not do ---------------------------------------------------------------------------------


def test_an_old_file_is_never_written_over(written: Path) -> None:
    before = written.read_bytes()
    model = open_()
    with pytest.raises(errors.CannotWrite, match="exists already"), model.trace("state.*", file=written):
        pass
    assert model.traces is None
    assert written.read_bytes() == before


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(errors.CannotWrite, match="No such file"), open_().trace("state.*", file=tmp_path / "no" / "a"):
        pass


def changed(header: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(header) | fields).encode() + b"\n"


def test_files_that_are_no_traces(written: Path, tmp_path: Path) -> None:
    header, _ = written.read_bytes().split(b"\n", 1)
    cases: list[tuple[bytes, type[errors.FileError]]] = [
        (b"", errors.EmptyFile),
        (b"PK\x03\x04" + bytes(100), errors.UnknownFormat),
        (header[:50], errors.UnknownFormat),
        (b"[]\n", errors.UnknownFormat),
        (b"[" * 100_000 + b"\n", errors.UnknownFormat),
        (b'{"format": "other"}\n', errors.UnknownFormat),
        (changed(header, version=2), errors.NewerFile),
        (changed(header, dtype="object"), errors.BadHeader),
        (changed(header, dtype="nonsense"), errors.BadHeader),
        (changed(header, points=7), errors.BadHeader),
        (changed(header, points=[["a", [-1]]]), errors.BadHeader),
        (changed(header, points=[["a", [1 << 40]]]), errors.BadHeader),
        (changed(header, points=[["a", [1.5]]]), errors.BadHeader),
        (changed(header, points=[["a"]]), errors.BadHeader),
        (changed(header, constants=[["w", [3], "float32", "!"]]), errors.BadHeader),
        (changed(header, constants=[["w", [3], "float32", "AAAA"]]), errors.BadHeader),
        (changed(header, constants=[["w", [3], "object", "AAAA"]]), errors.BadHeader),
    ]
    for data, error in cases:
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(error) as caught:
            read(tmp_path / "b")
        assert caught.type is error, data[:200]
        assert "\n" not in str(caught.value)
    with pytest.raises(errors.MissingFile):
        read(tmp_path / "none")
    with pytest.raises(errors.NotAFile):
        read(tmp_path)


def test_a_name_that_is_not_in_the_file(written: Path) -> None:
    with pytest.raises(
        errors.InputError, match=r"'layers.0.resid' was not captured; there are state.layers.0.att_shift"
    ):
        read(written)["layers.0.resid"]
