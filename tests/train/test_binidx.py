"""Token files: byte for byte as RWKV-LM and Megatron write them, and hostile ones refused by name."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import errors
from rookery.train import binidx

# Written by hand from the format's description: documents [1, 2, 0] and [258, 0] as u16.
GOLDEN_BIN = bytes.fromhex("0100 0200 0000  0201 0000")
GOLDEN_IDX = bytes.fromhex(
    "4d4d4944494458 0000"  # MMIDIDX
    "0100000000000000"  # version
    "08"  # u16
    "0200000000000000"  # items
    "0300000000000000"  # document marks
    "03000000 02000000"  # sizes in tokens
    "0000000000000000 0600000000000000"  # offsets in bytes
    "0000000000000000 0100000000000000 0200000000000000"  # document marks
)


def put(folder: Path, idx: bytes = GOLDEN_IDX, bin: bytes = GOLDEN_BIN) -> Path:
    (folder / "t.idx").write_bytes(idx)
    (folder / "t.bin").write_bytes(bin)
    return folder / "t"


def index(
    code: int = 8,
    sizes: tuple[int, ...] = (3, 2),
    offsets: tuple[int, ...] = (0, 6),
    documents: tuple[int, ...] = (0, 1, 2),
    version: int = 1,
    n: int | None = None,
    m: int | None = None,
) -> bytes:
    n, m = len(sizes) if n is None else n, len(documents) if m is None else m
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, n, m)
    body = struct.pack(f"<{len(sizes)}i{len(offsets)}q{len(documents)}q", *sizes, *offsets, *documents)
    return head + body


def test_writes_the_golden_bytes(tmp_path: Path) -> None:
    with binidx.writing(tmp_path / "t") as writer:
        writer.add([1, 2], ends=False)
        writer.add([0])
        writer.add(np.array([258, 0]))
        assert (writer.items, writer.tokens) == (2, 5)
    assert (tmp_path / "t.bin").read_bytes() == GOLDEN_BIN
    assert (tmp_path / "t.idx").read_bytes() == GOLDEN_IDX
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.bin", "t.idx"]


@pytest.mark.parametrize("name", ["t", "t.bin", "t.idx"])
def test_reads_the_golden_bytes(tmp_path: Path, name: str) -> None:
    put(tmp_path)
    file = binidx.read(tmp_path / name)
    assert binidx.exists(tmp_path / name)
    assert file.tokens.tolist() == [1, 2, 0, 258, 0]
    assert file.tokens.dtype == np.uint16
    assert [file.item(i).tolist() for i in range(len(file))] == [[1, 2, 0], [258, 0]]
    assert file.documents.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("code", "dtype"), [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_every_dtype_code(tmp_path: Path, code: int, dtype: str) -> None:
    width = np.dtype(dtype).itemsize
    prefix = put(tmp_path, index(code, offsets=(0, 3 * width)), np.array([1, 2, 0, 99, 0], dtype).tobytes())
    file = binidx.read(prefix)
    assert file.item(1).tolist() == [99, 0]
    assert file.tokens.dtype == np.dtype(dtype)


def test_a_large_vocabulary_is_stored_as_i32(tmp_path: Path) -> None:
    with binidx.writing(tmp_path / "t", vocab_size=65_537) as writer:
        writer.add([65_536])
    assert (tmp_path / "t.bin").read_bytes() == bytes.fromhex("00000100")
    assert binidx.read(tmp_path / "t").tokens.dtype == np.int32


@given(documents=st.lists(st.lists(st.integers(0, 65_535), max_size=20), min_size=1, max_size=8))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]) -> None:
    prefix = tmp_path_factory.mktemp("round") / "t"
    if not any(documents):
        documents.append([7])  # a .bin without a byte is refused
    with binidx.writing(prefix) as writer:
        for document in documents:
            writer.add(document)
    file = binidx.read(prefix)
    assert [file.item(i).tolist() for i in range(len(file))] == documents


HOSTILE = {
    "other file": (b"GGUF" + GOLDEN_IDX[4:], errors.UnknownFormat, "MMIDIDX"),
    "only the magic": (GOLDEN_IDX[:9], errors.TruncatedFile, "header"),
    "cut in the magic": (GOLDEN_IDX[:5], errors.TruncatedFile, "header"),
    "cut in the marks": (GOLDEN_IDX[:-1], errors.TruncatedFile, "cut off"),
    "one byte more": (GOLDEN_IDX + b"\0", errors.BadHeader, "1 bytes after"),
    "version 2": (index(version=2), errors.BadHeader, "version 2"),
    "dtype 0": (index(0), errors.UnsupportedType, "code 0"),
    "dtype float64": (index(7), errors.UnsupportedType, "float64"),
    "2^63 items": (index(n=2**63), errors.TruncatedFile, str(2**63)),
    "2^64 - 1 marks": (index(m=2**64 - 1), errors.TruncatedFile, "cut off"),
    "negative size": (index(sizes=(3, -2)), errors.BadHeader, "item 1 has a negative size"),
    "negative offset": (index(offsets=(0, -6)), errors.BadOffset, "item 1 begins at byte -6"),
    "offset within a token": (index(offsets=(0, 5)), errors.BadOffset, "byte 5"),
    "offset behind the end": (index(offsets=(0, 12)), errors.TruncatedFile, "item 1"),
    "largest offset": (index(offsets=(0, 2**63 - 2)), errors.TruncatedFile, "item 1"),
    "size behind the end": (index(sizes=(3, 3)), errors.TruncatedFile, "5 tokens"),
    "largest size": (index(sizes=(3, 2**31 - 1)), errors.TruncatedFile, "item 1"),
    "marks fall": (index(documents=(0, 2, 1)), errors.BadHeader, "documents"),
    "mark behind the items": (index(documents=(0, 1, 3)), errors.BadHeader, "documents"),
    "negative mark": (index(documents=(-1, 1, 2)), errors.BadHeader, "documents"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_indexes(tmp_path: Path, case: str) -> None:
    idx, error, says = HOSTILE[case]
    with pytest.raises(error, match=re.escape(says)) as caught:
        binidx.read(put(tmp_path, idx))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@given(at=st.integers(0, len(GOLDEN_IDX) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_stays_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    prefix = put(tmp_path_factory.mktemp("one"), GOLDEN_IDX[:at] + bytes((byte,)) + GOLDEN_IDX[at + 1 :])
    try:
        file = binidx.read(prefix)
    except errors.FileError:
        return
    assert all(len(file.item(i)) == file.sizes[i] for i in range(len(file)))


def test_a_truncated_bin(tmp_path: Path) -> None:
    with pytest.raises(errors.TruncatedFile, match=r"t\.bin.*item 1 is 2 from token 3"):
        binidx.read(put(tmp_path, bin=GOLDEN_BIN[:-2]))
    with pytest.raises(errors.TruncatedFile, match="no whole number"):
        binidx.read(put(tmp_path, bin=GOLDEN_BIN[:-1]))
    with pytest.raises(errors.EmptyFile):
        binidx.read(put(tmp_path, bin=b""))
    (tmp_path / "t.bin").unlink()
    with pytest.raises(errors.MissingFile, match=r"t\.bin"):
        binidx.read(tmp_path / "t")
    assert not binidx.exists(tmp_path / "t")


def write(prefix: Path, *documents: list[int], stop: type[BaseException] | None = None) -> None:
    with binidx.writing(prefix) as writer:
        for document in documents:
            writer.add(document)
        if stop is not None:
            raise stop


@pytest.mark.parametrize("wrong", [65_536, -1])
def test_a_token_that_does_not_fit(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(errors.TokenError, match=f"token {wrong} of document 1 "):
        write(tmp_path / "t", [1], [1, wrong])
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_the_old_files(tmp_path: Path) -> None:
    prefix = put(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write(prefix, [9], stop=KeyboardInterrupt)
    assert (tmp_path / "t.bin").read_bytes() == GOLDEN_BIN
    assert (tmp_path / "t.idx").read_bytes() == GOLDEN_IDX
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.bin", "t.idx"]


def test_a_stop_between_the_two_renames_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, rename = put(tmp_path), os.replace

    def stop_after_tokens(source: str, target: str) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop_after_tokens)
    with pytest.raises(KeyboardInterrupt):
        write(prefix, [9])
    assert (tmp_path / "t.bin").read_bytes() == bytes.fromhex("0900")
    assert not (tmp_path / "t.idx").exists()


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(errors.CannotWrite, match="none"):
        write(tmp_path / "none" / "t", [1])
