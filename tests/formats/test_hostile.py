"""Files made to hurt: each has its own named error in one line and takes no memory out of proportion.

What hurts in checkpoints only (pickles that act, archives that lie, bombs) is in test_hostile_pth.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest
from forge import memory_below, one_line, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery import errors, formats
from rookery.formats.tensor import Tensor

# --- what is no file of ours


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "HDF5"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x80\x04\x95" + bytes(20), "bare pickle"),
        (b"lmgg" + bytes(20), "GGML"),
        (b"\x93NUMPY\1\0", "NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"  <!DOCTYPE html><html>", "web page"),
        (b"hello world\n", "looks like text: 'hello world"),
        (b"abcdefgh{}", "looks like text"),
        (b"\0", "unknown first bytes 00;"),
        (b"\1\2\3\4\5\6\7\x08\x09", "unknown first bytes 01 02 03"),
        (forge.archive({"word/document.xml": b"<x/>"}), "a zip archive"),
        (forge.archive({"a.npy": b""}), r"NumPy \.npz"),
        (forge.archive({"a/data.pkl": b"", "a/constants.pkl": b""}), "TorchScript"),
    ],
)
def test_strangers_are_named(data: bytes, says: str, tmp_path: Path) -> None:
    refused(data, errors.UnknownFormat, says)
    (tmp_path / "model.safetensors").write_bytes(data)  # the name does not decide
    with pytest.raises(errors.UnknownFormat, match=says):
        formats.read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "ggmf"])
def test_the_name_does_not_decide(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.txt").write_bytes(forge.valid()[kind])
    assert formats.detect(tmp_path / "model.txt") == kind
    assert formats.read(tmp_path / "model.txt").format == kind


@pytest.mark.parametrize("reader", [formats.detect, formats.read])
def test_paths_that_are_no_file(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")  # opening one would wait for ever
    (tmp_path / "loop").symlink_to("loop")
    cases: list[tuple[str, type[errors.FileError]]] = [
        ("absent", errors.MissingFile), ("empty/below", errors.MissingFile), ("loop", errors.MissingFile),
        ("x" * 300, errors.MissingFile), ("nul\0", errors.MissingFile), ("empty", errors.EmptyFile),
        (".", errors.NotAFile), ("fifo", errors.NotAFile), ("/dev/zero", errors.NotAFile),
    ]  # fmt: skip
    for name, error in cases:
        with pytest.raises(errors.FileError) as caught:
            reader(tmp_path / name)
        assert type(caught.value) is error, name


def test_no_permission(unprivileged: Path) -> None:
    (unprivileged / "secret.pth").write_bytes(forge.checkpoint())
    (unprivileged / "secret.pth").chmod(0)
    with pytest.raises(errors.NoPermission, match="check its permissions"):
        formats.read(unprivileged / "secret.pth")


# --- safetensors


A = forge.entry(0, 4)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (forge.safetensors(b"{}", length=2**63), errors.TooLarge, str(2**63)),
        (forge.safetensors(b"{}", length=100_000_001), errors.TooLarge, "100000001 bytes; at most 16777216"),
        (forge.safetensors(b"{}", length=3), errors.TruncatedFile, "inside its header"),
        (forge.safetensors(b"{]"), errors.BadHeader, "not valid JSON"),
        (forge.safetensors(b'{"\xff":1}'), errors.BadHeader, "not valid JSON"),
        (forge.safetensors(b'{"\\ud800":1}'), errors.BadHeader, "not valid JSON"),
        (forge.safetensors(b'{"a":NaN}'), errors.BadHeader, "NaN is no number"),
        (forge.safetensors(b'{"a":%s}' % (b"9" * 5000)), errors.BadHeader, "not valid JSON"),
        (forge.safetensors(b'{"a":' + b"[" * 200_000), errors.BadHeader, "not valid JSON"),
        (forge.safetensors(b'{"a":1,"a":2}'), errors.BadHeader, "appears twice"),
        (forge.safetensors({"__metadata__": {"a": 1}}), errors.BadHeader, "text to text"),
        (forge.safetensors({"__metadata__": []}), errors.BadHeader, "text to text"),
        (forge.safetensors({"a": 1}), errors.BadHeader, "lacks dtype"),
        (forge.safetensors({"a": {"dtype": "U8", "shape": [1]}}), errors.BadHeader, "lacks dtype"),
        (forge.safetensors({"a": {**A, "data_offsets": [0]}}), errors.BadHeader, "lacks dtype"),
        (forge.safetensors({"a": {**A, "dtype": "F4"}}, bytes(4)), errors.UnsupportedType, "'a' is 'F4'"),
        (forge.safetensors({"a": {**A, "dtype": []}}, bytes(4)), errors.UnsupportedType, "'a' is"),
        (forge.safetensors({"a": forge.entry(0, 4, shape=[-4])}, bytes(4)), errors.BadHeader, "impossible shape"),
        (forge.safetensors({"a": forge.entry(0, 4, shape=[-2, -2])}, bytes(4)), errors.BadHeader, "impossible shape"),
        (forge.safetensors({"a": forge.entry(0, 1, shape=[True])}, bytes(1)), errors.BadHeader, "impossible shape"),
        (forge.safetensors({"a": forge.entry(0, 4, shape="4")}, bytes(4)), errors.BadHeader, "impossible shape"),
        (forge.safetensors({"a": forge.entry(0, 4, shape=[4.0])}, bytes(4)), errors.BadHeader, "impossible shape"),
        (forge.safetensors({"a": forge.entry(0, 1, shape=[1] * 17)}, bytes(1)), errors.BadHeader, "impossible shape"),
        (forge.safetensors({"a": forge.entry(0, 4, shape=[2**32, 2**32, 4])}), errors.TooLarge, "'a' claims"),
        (forge.safetensors({"a": forge.entry(0, 0, shape=[0, 2**62, 2**62])}), errors.TooLarge, "'a' claims"),
        (forge.safetensors({"a": forge.entry(0, 4, shape=[2**63 + 4])}), errors.TooLarge, "'a' claims"),
        (forge.safetensors({"a": forge.entry(0, 4, shape=[5])}, bytes(4)), errors.BadHeader, "4 bytes.*take 5"),
        (forge.safetensors({"a": forge.entry(4, 0, shape=[4])}, bytes(4)), errors.BadOffset, "'a' has no valid"),
        (forge.safetensors({"a": forge.entry(-4, 0)}, bytes(4)), errors.BadOffset, "'a' has no valid"),
        (forge.safetensors({"a": A | {"data_offsets": [0, 4.0]}}, bytes(4)), errors.BadOffset, "'a' has no valid"),
        (forge.safetensors({"a": forge.entry(2**62, 2**62 + 4)}, bytes(4)), errors.BadOffset, "'a' starts outside"),
        (forge.safetensors({"a": A, "b": A}, bytes(4)), errors.OverlappingTensors, "'b' starts inside"),
        (forge.safetensors({"b": forge.entry(3, 7), "a": A}, bytes(7)), errors.OverlappingTensors, "'b' starts inside"),
        (forge.safetensors({"a": A, "b": forge.entry(5, 6)}, bytes(6)), errors.BadHeader, "'b' starts behind a hole"),
        (forge.safetensors({"a": A}, bytes(5)), errors.BadHeader, "1 bytes at the end"),
        (forge.safetensors({"a": A}, bytes(3)), errors.TruncatedFile, "has 3 of 4"),
    ],
)  # fmt: skip
def test_safetensors(data: bytes, error: type[errors.FileError], says: str) -> None:
    refused(data, error, says)


# --- ggmf


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (forge.ggmf([]), errors.TruncatedFile, "before its first tensor"),
        (forge.ggmf([], version=102), errors.BadHeader, "version 102"),
        (forge.ggmf([], file_type=4), errors.UnsupportedType, "the file has ggml type 4"),
        (forge.ggmf([(b"a", 12, (256,), bytes(144))]), errors.UnsupportedType, "'a' has ggml type 12"),
        (forge.ggmf([(b"a", 0, (-1,), bytes(4))]), errors.BadHeader, "impossible shape"),
        (forge.ggmf([(b"a", 0, (2**31 - 1,) * 4, bytes(4))]), errors.TooLarge, "'a' claims"),
        (forge.ggmf([(b"a", 0, (2**31 - 1,), bytes(4))]), errors.TruncatedFile, "ends inside a tensor"),
        (forge.ggmf([(b"a", 0, (1,) * 5, bytes(4))]), errors.BadHeader, "5 dimensions"),
        (forge.ggmf([(b"a", 0, (), bytes(4))]), errors.BadHeader, "0 dimensions"),
        (forge.ggmf([(b"", 0, (1,), bytes(4))]), errors.BadHeader, "name of 0 bytes"),
        (forge.ggmf([(b"a" * 1025, 0, (1,), bytes(4))]), errors.BadHeader, "name of 1025 bytes"),
        (forge.ggmf([(b"\xff", 0, (1,), bytes(4))]), errors.BadHeader, "not UTF-8"),
        (forge.ggmf([(b"a", 8, (31,), bytes(24))]), errors.BadHeader, "multiple of 32"),
        (forge.ggmf([(b"a", 0, (1,), bytes(4))] * 2), errors.BadHeader, "'a' appears twice"),
        (forge.ggmf([(b"a", 0, (1,), bytes(4))]) + b"\1", errors.TruncatedFile, "ends inside a tensor"),
        (forge.ggmf([])[:8] + bytes(16), errors.BadHeader, "0 tokens"),
    ],
)
def test_ggmf(data: bytes, error: type[errors.FileError], says: str) -> None:
    refused(data, error, says)


# --- the real formats, cut and mutated


def cut(data: bytes, step: int = 997) -> int:
    """Parse every prefix whose length is a multiple of `step`; a success must hold a prefix of the tensors."""
    raw = np.frombuffer(data, np.uint8)
    whole = list(formats.parse("whole", raw).tensors.items())
    survived = 0
    for length in range(step, len(data), step):
        try:
            part = formats.parse("cut", raw[:length])
        except errors.DamagedFile as error:
            one_line(error)
        else:
            # ggmf has no count of tensors, so a cut exactly between two of them cannot be seen here.
            assert part.format == "ggmf"
            assert all(name == other[0] for name, other in zip(part.tensors, whole, strict=False))
            survived += 1
    return survived


@pytest.mark.parametrize("name", ["v4", "v5.2", "v7"])
def test_our_fixtures_cut_at_every_997th_byte(name: str, tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "fixtures" / f"{name}.safetensors"
    assert cut(source.read_bytes()) == 0
    formats.write(tmp_path / "x.pth", formats.read(source).tensors)
    assert cut((tmp_path / "x.pth").read_bytes()) == 0


@pytest.mark.parametrize(
    "name",
    [
        "synth-7v0.pth",
        "tiny-rwkv-4v0-660K.pth",
        "tiny-rwkv-5v2-730K-Q5_1.bin",
        "tiny-rwkv-4v0-660K-FP32.bin",
        pytest.param("*", marks=pytest.mark.slow),
    ],
)
def test_shared_fixtures_cut_at_every_997th_byte(shared: Path, name: str) -> None:
    paths = sorted((shared / "fixtures" / "models").glob(name))
    assert paths
    assert sum(cut(path.read_bytes()) for path in paths) < 20


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(forge.valid())),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=9)), min_size=1, max_size=4),
)
def test_random_mutations_only_raise_file_errors(kind: str, edits: list[tuple[float, int, bytes]]) -> None:
    data = bytearray(forge.valid()[kind])
    for place, delete, insert in edits:
        at = int(place * len(data))
        data[at : at + delete] = insert
    try:
        file = forge.parse(bytes(data) or b"\0")
    except errors.FileError as error:
        one_line(error)
    else:
        for tensor in file.tensors.values():
            assert tensor.array().shape == tensor.shape


# --- memory


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_neither_reading_nor_writing_copies_tensors(tmp_path: Path, suffix: str) -> None:
    path, size = tmp_path / f"x.{suffix}", 2**25
    tensors = {"a": Tensor("f32", (size // 4,), np.zeros(size, np.uint8)), "b": Tensor.of(np.float32([1, 2]))}
    with memory_below(2**20):
        formats.write(path, tensors)
    with memory_below(2**20):
        file = formats.read(path)
        assert file.tensors["a"].array()[-1] == 0
    assert path.stat().st_size > size
    with pytest.raises(ValueError, match="read-only"):
        file.tensors["b"].array()[0] = 3
