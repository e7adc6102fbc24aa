"""GGUF files that lie: each lie has its own error, and none costs memory or time."""

from __future__ import annotations

import struct
from pathlib import Path

import forge
import pytest
from forge import gguf, gguf_array, gguf_text, memory_below, refused

from rookery import errors, formats, weights
from rookery.formats import gguf as room

A = (b"a", (4,), 0, 0)
ROW = bytes(16)
HUGE = 2**62


def value(code: int, data: bytes, key: bytes = b"k") -> bytes:
    return gguf([(key, code, data)])


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        # the head
        (b"GGUF", errors.TruncatedFile, "ends inside its header"),
        (gguf()[:12], errors.TruncatedFile, "ends inside its header"),
        (gguf(version=1), errors.BadHeader, "GGUF version 1; wanted 2 or 3"),
        (gguf(version=4), errors.BadHeader, "GGUF version 4"),
        (gguf(version=3 << 24), errors.UnsupportedType, "big-endian"),
        (gguf(version=2 << 24), errors.UnsupportedType, "big-endian"),
        (gguf(counts=(HUGE, 0)), errors.TooLarge, f"claims {HUGE} tensors"),
        (gguf(counts=(0, HUGE)), errors.TooLarge, f"claims {HUGE} metadata keys"),
        (gguf(counts=(2**64 - 1, 2**64 - 1)), errors.TooLarge, "metadata keys; at most"),
        (gguf(counts=(9, 0)), errors.TruncatedFile, "no room for the 9 tensors"),
        (gguf(counts=(0, 9)), errors.TruncatedFile, "no room for the 9 metadata keys"),
        # metadata
        (value(13, b""), errors.BadHeader, "'k' has the unknown type 13"),
        (value(4, b"\0")[:-28], errors.TruncatedFile, "no room"),
        (value(7, b"\2"), errors.BadHeader, "'k' is neither true nor false"),
        (value(8, struct.pack("<Q", HUGE)), errors.TooLarge, f"'k' claims {HUGE} bytes"),
        (value(8, struct.pack("<Q", 2**20)), errors.TruncatedFile, "ends inside metadata 'k'"),
        (value(8, gguf_text(b"\xff")), errors.BadHeader, "'k' is not UTF-8"),
        (value(9, gguf_array(4, HUGE, b"")), errors.TruncatedFile, "ends inside metadata 'k'"),
        (value(9, gguf_array(8, HUGE, b"")), errors.TooLarge, f"'k' claims {HUGE} strings"),
        (value(9, gguf_array(8, 9, b"")), errors.TooLarge, "'k' claims 9 strings"),
        (value(9, gguf_array(8, 2, gguf_text(b"x") + struct.pack("<Q", HUGE))), errors.TruncatedFile, "strings claim"),
        (value(9, gguf_array(8, 2, gguf_text(b"x" * 39))), errors.TruncatedFile, "ends inside metadata 'k'"),
        (value(9, gguf_array(9, 1, gguf_array(4, 0, b""))), errors.BadHeader, "an array of arrays"),
        (value(9, gguf_array(13, 1, b"")), errors.BadHeader, "an array of the unknown type 13"),
        (value(9, gguf_array(7, 2, b"\0\2")), errors.BadHeader, "neither true nor false"),
        (value(0, b"\0", b"\xff"), errors.BadHeader, "a name is not UTF-8"),
        (value(0, b"\0", b"k" * 1025), errors.TooLarge, "a metadata key claims 1025 bytes"),
        (gguf([(b"k", 0, b"\0")] * 2), errors.BadHeader, "metadata key 'k' appears twice"),
        (value(4, struct.pack("<I", 0), b"general.alignment"), errors.BadHeader, "an alignment of '0'"),
        (value(4, struct.pack("<I", 48), b"general.alignment"), errors.BadHeader, "an alignment of '48'"),
        (value(10, struct.pack("<Q", HUGE), b"general.alignment"), errors.BadHeader, "an alignment of"),
        (value(8, gguf_text(b"32"), b"general.alignment"), errors.BadHeader, "an alignment of '32'"),
        # tensors
        (gguf((), [(b"a", (1,) * 5, 0, 0)], ROW), errors.BadHeader, "'a' claims 5 dimensions"),
        (gguf((), [(b"a", (256,), 10, 0)], bytes(84)), errors.UnsupportedType, "'a' is q2_k; known"),
        (gguf((), [(b"a", (1,), 4, 0)], ROW), errors.UnsupportedType, "'a' is of ggml type 4"),
        (gguf((), [(b"a", (1,), 2**31, 0)], ROW), errors.UnsupportedType, "'a' is of ggml type 2147483648"),
        (gguf((), [(b"a", (HUGE, HUGE), 0, 0)], ROW), errors.TooLarge, "'a' claims more elements"),
        (gguf((), [(b"a", (2**32, 2**32, 4), 0, 0)], ROW), errors.TooLarge, "'a' claims more elements"),
        (gguf((), [(b"a", (0, HUGE), 0, 0)], ROW), errors.TooLarge, "'a' claims more elements"),
        (gguf((), [(b"a", (31,), 8, 0)], bytes(34)), errors.BadHeader, "multiple of 32"),
        (gguf((), [(b"a", (128,), 12, 0)], bytes(144)), errors.BadHeader, "multiple of 256"),
        (gguf((), [(b"a", (), 8, 0)], bytes(34)), errors.BadHeader, "multiple of 32"),
        (gguf((), [(b"\xff", (4,), 0, 0)], ROW), errors.BadHeader, "not UTF-8"),
        (gguf((), [(b"a" * 1025, (4,), 0, 0)], ROW), errors.TooLarge, "name claims 1025 bytes"),
        (gguf((), [A, (b"a", (4,), 0, 32)], bytes(48)), errors.BadHeader, "tensor 'a' appears twice"),
        (gguf((), [(b"a", (4,), 0, 8)], bytes(64)), errors.BadOffset, "'a' is misaligned: offset 8"),
        (gguf((), [(b"a", (4,), 0, 2**63)], ROW), errors.BadOffset, "'a' lies at 9223372036854775808"),
        (gguf((), [A, (b"b", (4,), 0, 64)], bytes(96)), errors.BadOffset, "'b' lies at 64, not.*at 32"),
        (gguf((), [A, (b"b", (4,), 0, 0)], bytes(48)), errors.OverlappingTensors, "'b' starts inside"),
        (gguf((), [(b"a", (9,), 0, 0), (b"b", (4,), 0, 32)], bytes(96)), errors.OverlappingTensors, "'b' starts"),
        (gguf((), [A], ROW[:-1]), errors.TruncatedFile, "has 15 of 16 bytes of tensor 'a'"),
        (gguf((), [(b"a", (2**40,), 0, 0)], ROW), errors.TruncatedFile, "has 16 of"),
        (gguf((), [A, (b"b", (4,), 0, 32)], bytes(20)), errors.TruncatedFile, "has 0 of 16 bytes of tensor 'b'"),
    ],
)  # fmt: skip
def test_lies(data: bytes, error: type[errors.FileError], says: str) -> None:
    with memory_below(2**18):
        refused(data, error, says)


def test_too_many_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    data = value(9, gguf_array(8, 3, gguf_text(b"") * 3))
    assert [*forge.parse(data).metadata["k"]] == [""] * 3
    monkeypatch.setattr(room, "MAX_STRINGS", 2)
    refused(data, errors.TooLarge, "'k' claims 3 strings")


def test_odd_and_right(tmp_path: Path) -> None:
    """An empty file of tensors, an empty tensor, a scalar, and bytes behind the last tensor."""
    assert forge.parse(gguf()).tensors == {}
    file = forge.parse(gguf((), [(b"e", (0, 4), 0, 0), (b"s", (), 0, 0), (b"a", (4,), 0, 32)], bytes(99)))
    assert [t.shape for t in file.tensors.values()] == [(4, 0), (), (4,)]


@pytest.mark.parametrize("name", ["v4", "v6", "v7"])
def test_cut_at_every_997th_byte(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    weights.convert(Path(__file__).parents[1] / "fixtures" / f"{name}.safetensors", path)
    data = path.read_bytes()
    for length in range(997, len(data), 997):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(errors.TruncatedFile) as caught:
            formats.read(tmp_path / "cut")
        forge.one_line(caught.value)


def test_a_header_cut_at_every_byte() -> None:
    data = forge.valid()["gguf"]
    for length in range(4, len(data)):
        with pytest.raises(errors.DamagedFile) as caught:
            forge.parse(data[:length])
        forge.one_line(caught.value)
