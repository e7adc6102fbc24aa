"""Checkpoints made to hurt: nothing of a pickle is run, archives that lie are found out, bombs do not go off."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import pytest
from forge import memory_below, refused

from rookery import errors

# --- pickles that want to act


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_calls_os_system_runs_nothing(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    evil = pickle.dumps({"x": Evil(os.system, f"touch {marker}")}, protocol)
    refused(forge.checkpoint(evil), errors.UnsafePickle, r"'(posix|nt)\.system'")
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists(), "the pickle was harmless, so this test showed nothing"


COMMAND = text("touch marker") + b"\x85R."
IMPORTED = {
    "eval": pickle.dumps(Evil(eval, "1"), 3),
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + COMMAND,
    "memo": b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x94" + b"00h\x00h\x01\x93" + COMMAND,
    "dotted": b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + COMMAND,
    "space": b"\x80\x04" + text("torch._utils _rebuild_tensor_v2 os") + text("system") + b"\x93" + COMMAND,
    "nested": b"\x80\x02ctorch._utils\n_import_dotted_name\n" + COMMAND,
    "load": b"\x80\x02ctorch\nload\n" + COMMAND,
    "storage": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + COMMAND,
    "behind the tensors": forge.PICKLE[:-1] + b"cos\nsystem\n" + COMMAND,
    "in a wrapper": b"\x80\x02}(X\5\0\0\0model" + forge.OPEN[2:] + forge.TENSOR + b"ucos\nsystem\n" + COMMAND,
}  # fmt: skip


@pytest.mark.parametrize("trick", list(IMPORTED))
def test_other_ways_to_a_global(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: str) -> None:
    monkeypatch.chdir(tmp_path)
    name = {"eval": "builtins.eval", "nested": "_import_dotted_name", "load": "torch.load", "storage": "_load_from"}
    refused(forge.checkpoint(IMPORTED[trick]), errors.UnsafePickle, name.get(trick, "system"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pickled", "error", "says"),
    [
        (b"\x80\x02(ios\nsystem\n.", errors.UnsafePickle, "opcode b'i'"),
        (b"\x80\x02(cos\nsystem\no.", errors.UnsafePickle, "os.system"),
        (b"\x80\x02\x82\x01.", errors.UnsafePickle, "opcode"),  # EXT1
        (b"\x80\x02Pname\n.", errors.UnsafePickle, "opcode b'P'"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", errors.UnsafePickle, "opcode"),  # NEWOBJ
        (b"\x80\x02ccollections\nOrderedDict\nX\1\0\0\0a\x85R.", errors.BadHeader, "strange arguments"),
        (b"\x80\x02X\1\0\0\0a)R.", errors.BadHeader, "no function"),
        (b"\x80\x02X\1\0\0\0aQ.", errors.BadHeader, "no storage"),
        (b"\x80\x02}}b}b" + b"X\1\0\0\0a}bb.", errors.BadHeader, "dict wanted"),
        (b"\x80\x06}.", errors.BadHeader, "protocol 6"),
        (b"\x80\x00}.", errors.BadHeader, "protocol 0"),
        (b"\x80\x02.", errors.BadHeader, "nothing on the stack"),
        (b"\x80\x02}(.", errors.BadHeader, "nothing on the stack"),
        (b"\x80\x02t.", errors.BadHeader, "no mark"),
        (b"\x80\x02h\5.", errors.BadHeader, "before it is made"),
        (b"\x80\x02}}K\1s.", errors.BadHeader, "neither text nor number"),
        (b"\x80\x02}(K\1u.", errors.BadHeader, "has no value"),
        (b"\x80\x02X\xff\xff\xff\xffa.", errors.TruncatedFile, "ends too early"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", errors.TruncatedFile, "ends too early"),
        (b"\x80\x02X\1\0\0\0\xff.", errors.BadHeader, "not UTF-8"),
        (b"\x80\x02}", errors.TruncatedFile, "ends too early"),
        (b"\x80\x02c" + b"a" * 999, errors.BadHeader, "does not end"),
        (b"\x80\x02)" + b"\x85" * 200_000 + b".", errors.BadHeader, "holds a tuple"),
        (b"\x80\x02" + b")" * 1_000_000 + b".", errors.TooLarge, "1000000 steps"),
        (b"\x80\x02})" + b"\x85" * 200_000 + b"K\1s.", errors.BadHeader, "neither text nor number"),
        (b"\x80\x02]q\0h\0a.", errors.BadHeader, "holds a list"),  # a list inside itself
        (b"\x80\x02}q\0X\5\0\0\0modelh\0s.", errors.BadHeader, "no tensor"),  # a dict inside itself
        (b"\x80\x02)" + b"2\x86" * 1000 + b".", errors.BadHeader, "holds a tuple"),  # 2 ** 1000 leaves
    ],
)
def test_pickles_that_are_wrong(pickled: bytes, error: type[errors.FileError], says: str) -> None:
    refused(forge.checkpoint(pickled), error, says)


def changed(old: bytes, new: bytes) -> bytes:
    assert old in forge.PICKLE
    return forge.checkpoint(forge.PICKLE.replace(old, new))


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (changed(b"K\x00K\x03\x85", b"K\x00K\x04\x85"), errors.BadOffset, "'x' reaches outside"),
        (changed(b"K\x00K\x03\x85", b"K\x01K\x03\x85"), errors.BadOffset, "'x' reaches outside"),
        (changed(b"K\x01\x85", b"K\x02\x85"), errors.BadOffset, "'x' reaches outside"),
        (changed(b"K\x01\x85", b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"), errors.BadOffset, "'x' reaches outside"),
        (changed(b"K\x00K\x03\x85", b"J\xff\xff\xff\xffK\x03\x85"), errors.BadHeader, "impossible strides"),
        (changed(b"K\x01\x85", b"J\xff\xff\xff\xff\x85"), errors.BadHeader, "impossible strides"),
        (changed(b"K\x01\x85", b"K\x01K\x01\x86"), errors.BadHeader, "impossible strides"),
        (changed(b"K\x01\x85", b"N\x85"), errors.BadHeader, "impossible strides"),
        (changed(b"K\x00K\x03\x85", b"K\x00J\xfd\xff\xff\xff\x85"), errors.BadHeader, "impossible shape"),
        (changed(b"K\x00K\x03\x85", b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), errors.TooLarge, "'x' claims"),
        (changed(b"K\x03tQ", b"K\x02tQ"), errors.BadOffset, "'x' reaches outside"),
        (changed(b"K\x03tQ", b"K\x04tQ"), errors.BadHeader, "storage of 'x' is not of the size"),
        (changed(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"), errors.BadHeader, "lacks its record 'data/9'"),
        (changed(b"FloatStorage", b"EvilStorage"), errors.UnsupportedType, "torch.EvilStorage"),
        (forge.archive({"a/data.pkl": forge.PICKLE, "a/byteorder": b"big"}), errors.UnsupportedType, "big-endian"),
        (forge.archive({"a/data.pkl": b"", "b/data.pkl": b""}), errors.UnknownFormat, "no torch checkpoint"),
        # An element repeated 2 ** 40 times by a stride of zero.
        (changed(b"K\x00K\x03\x85K\x01\x85", b"K\x00\x8a\x06\0\0\0\0\0\1\x85K\x00\x85"), errors.TooLarge, "unpack"),
    ],
)
def test_tensors_outside_their_storage(data: bytes, error: type[errors.FileError], says: str) -> None:
    with memory_below(2**24):
        refused(data, error, says)


# --- archives


def patched(field: int, code: str, value: int, data: bytes | None = None) -> bytes:
    """A checkpoint with one field of the last directory entry (that of storage 0) changed."""
    out = bytearray(data or forge.checkpoint())
    struct.pack_into("<" + code, out, out.rindex(b"PK\1\2") + field, value)
    return bytes(out)


def end(field: int, code: str, value: int) -> bytes:
    out = bytearray(forge.checkpoint())
    struct.pack_into("<" + code, out, out.rindex(b"PK\5\6") + field, value)
    return bytes(out)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (patched(8, "H", 1), errors.BadHeader, "encrypted"),
        (patched(10, "H", 12), errors.BadHeader, "packed in an unknown way"),
        (patched(20, "I", 11), errors.BadHeader, "two sizes"),
        (patched(20, "Q", 2**31 << 32 | 2**31), errors.BadOffset, "reaches beyond"),
        (patched(20, "I", 2**32 - 1), errors.BadHeader, "lacks its 64-bit sizes"),
        (patched(42, "I", 0), errors.BadHeader, "disagree"),
        (patched(42, "I", 2**31), errors.BadOffset, "outside the archive's data"),
        (patched(46, "B", ord("b")), errors.BadHeader, "disagree"),
        (patched(46, "B", 0xFF), errors.BadHeader, "not UTF-8"),
        (patched(0, "I", 0), errors.BadHeader, "no entry"),
        (patched(32, "H", 1), errors.BadHeader, "no entry"),
        (end(8, "I", 2 << 16 | 2), errors.BadHeader, "longer than its entries"),
        (end(8, "I", 4 << 16 | 4), errors.BadHeader, "shorter than its entries"),
        (end(8, "H", 2), errors.BadHeader, "contradicts itself"),
        (end(4, "H", 1), errors.BadHeader, "contradicts itself"),
        (end(16, "I", 0), errors.BadOffset, "zip directory is said to lie at 0"),
        (end(12, "I", 2**32 - 1), errors.BadOffset, "zip directory"),
        (forge.checkpoint() + b"tail", errors.BadHeader, "contradicts itself"),
        (forge.checkpoint()[:-22] + b"PK\6\7" + bytes(16) + forge.checkpoint()[-22:], errors.BadOffset, "zip64"),
        (forge.checkpoint()[:-23], errors.TruncatedFile, "no zip directory"),
        (forge.checkpoint()[:-1], errors.TruncatedFile, "no zip directory"),
        (b"PK\3\4LO%\1PK\5\6\0\0\0\0", errors.TruncatedFile, "no zip directory"),  # found by atheris
    ],
)
def test_archives_that_contradict_themselves(data: bytes, error: type[errors.FileError], says: str) -> None:
    refused(data, error, says)


def test_entries_that_overlap() -> None:
    """The header of one record lies inside the data of another: one byte, two tensors."""
    inner = forge.checkpoint()
    first = inner.index(b"PK\3\4", inner.index(b"byteorder"))
    (size,) = struct.unpack_from("<I", inner, first + 18)
    out = bytearray(inner)
    at = out.index(b"PK\1\2", out.index(b"PK\1\2") + 1)  # the byteorder entry grows over storage 0
    struct.pack_into("<2I", out, at + 20, size + 20, size + 20)
    refused(bytes(out), errors.OverlappingTensors, "'a/data/0' starts inside another")


def test_twice_the_same_name() -> None:
    data = forge.archive({"a/data.pkl": forge.PICKLE, "b/data.pkl": b"other"})
    refused(data.replace(b"b/data.pkl", b"a/data.pkl"), errors.BadHeader, "archived twice")


def test_too_many_entries() -> None:
    data = end(8, "I", 0xFFFFFFFF)
    at = data.rindex(b"PK\5\6")
    begin, size = struct.unpack_from("<I", data, at + 16)[0], struct.unpack_from("<I", data, at + 12)[0]
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, size, begin)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    refused(data[:at] + record + locator + data[at:], errors.TooLarge, "1099511627776 archived files")


def bomb(count: int) -> bytes:
    pickled = forge.PICKLE.replace(b"K\x03tQ", b"J" + struct.pack("<i", count) + b"tQ")
    return forge.checkpoint(pickled, zipfile.ZIP_DEFLATED, _0=bytes(4 * count))


def test_zip_bomb_in_a_storage() -> None:
    data = bomb(20_000_000)  # 80 MB from 80 kB
    assert len(data) < 100_000
    with memory_below(2**20):
        refused(data, errors.TooLarge, "out of all proportion")


def test_zip_bomb_that_lies_about_its_size() -> None:
    honest = bomb(1_000_000)
    pickled = forge.PICKLE  # claims three elements, as does the directory
    data = patched(24, "I", 12, forge.checkpoint(pickled, zipfile.ZIP_DEFLATED, _0=bytes(4_000_000)))
    with memory_below(2**20):
        refused(data, errors.TooLarge, "more than it claims")
    refused(patched(24, "I", 4_000_001, honest), errors.BadHeader, "not of the size")


def test_zip_bomb_in_the_pickle() -> None:
    data = forge.checkpoint(bytes(2**26 + 1), zipfile.ZIP_DEFLATED)
    with memory_below(2**20):
        refused(data, errors.TooLarge, "at most 67108864")


def test_deflated_bytes_that_are_damaged_or_short() -> None:
    data = forge.checkpoint(method=zipfile.ZIP_DEFLATED)
    at = data.index(b"a/data/0") + 8
    refused(data[:at] + b"\xff" + data[at + 1 :], errors.BadHeader, "cannot be unpacked")
    packed = struct.unpack_from("<I", data, data.rindex(b"PK\1\2") + 20)[0]
    refused(patched(20, "I", packed - 2, data), errors.TruncatedFile, "less than it claims")
