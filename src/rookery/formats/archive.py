"""The zip archives that torch writes: a strict directory reader over mapped bytes, and a deterministic writer.

Stricter than the zip format and than `zipfile`: the directory must end where the end record starts, entries must not
overlap, names are unique, local and central names agree. So there is one reading of an archive, and no bomb in it.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from rookery import errors
from rookery.formats.raw import brief, check_name
from rookery.formats.tensor import Array

MAX_ENTRIES = 100_000
ALIGNMENT = 64

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One archived file: `packed` bytes at `start` of the archive, `size` unpacked; its header lies at `header`."""

    name: str
    header: int
    start: int
    packed: int
    size: int
    stored: bool


class Budget:
    """Bytes that reading one file may allocate beyond its mapping."""

    def __init__(self, path: str, file_size: int) -> None:
        self.path = path
        self.left = 2**26 + 8 * file_size

    def spend(self, what: str, count: int) -> None:
        """Raises TooLarge when the file asks for far more memory than its own size."""
        self.left -= count
        if self.left < 0:
            raise errors.TooLarge(self.path, f"{what} would unpack to {count} bytes, out of all proportion to the file")


def directory(path: str, raw: Array) -> dict[str, Entry]:
    """Name -> entry, in the directory's order. Raises subclasses of DamagedFile."""
    begin, end, count = _find_directory(path, raw)
    if count > MAX_ENTRIES:
        raise errors.TooLarge(path, f"claims {count} archived files; at most {MAX_ENTRIES} are allowed")
    text = raw[begin:end].tobytes()
    entries: dict[str, Entry] = {}
    position = 0
    for _ in range(count):
        entry, position = _entry(path, raw, text, position, begin)
        if entry.name in entries:
            raise errors.BadHeader(path, f"{brief(entry.name)} is archived twice")
        entries[entry.name] = entry
    if position != len(text):
        raise errors.BadHeader(path, "the zip directory is longer than its entries")
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < position:
            raise errors.OverlappingTensors(path, f"archived file {brief(entry.name)} starts inside another one")
        position = entry.start + entry.packed
    return entries


def content(path: str, raw: Array, entry: Entry, budget: Budget) -> Array:
    """The unpacked bytes: a view where the entry is stored, a new array where it is compressed."""
    packed = raw[entry.start : entry.start + entry.packed]
    if entry.stored:
        return packed
    budget.spend(f"archived file {brief(entry.name)}", entry.size)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(packed.data, entry.size + 1)
    except zlib.error as error:
        raise errors.BadHeader(path, f"archived file {brief(entry.name)} cannot be unpacked ({error})") from None
    if len(data) > entry.size:
        raise errors.TooLarge(path, f"archived file {brief(entry.name)} unpacks to more than it claims")
    if len(data) < entry.size or not inflater.eof:
        raise errors.TruncatedFile(path, f"archived file {brief(entry.name)} unpacks to less than it claims")
    return np.frombuffer(data, np.uint8)


def _find_directory(path: str, raw: Array) -> tuple[int, int, int]:
    """Where the central directory begins and ends, and its number of entries."""
    tail_start = max(0, len(raw) - _END.size - 0xFFFF)
    tail = raw[tail_start:].tobytes()
    found = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if found < 0:
        raise errors.TruncatedFile(path, "has no zip directory at its end; the download was cut off, get it again")
    _, disk, first_disk, here, count, size, begin, comment = _END.unpack_from(tail, found)
    end = tail_start + found
    if found + _END.size + comment != len(tail) or disk or first_disk or here != count:
        raise errors.BadHeader(path, "the zip end record contradicts itself")
    if end >= _LOCATOR.size and raw[end - _LOCATOR.size :][:4].tobytes() == b"PK\6\7":
        short = (count, size, begin)
        end, (count, size, begin) = _directory64(path, raw, end - _LOCATOR.size)
        for ours, theirs, unset in zip(short, (count, size, begin), (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True):
            if ours not in (unset, theirs):
                raise errors.BadHeader(path, "the two zip end records disagree")
    if begin + size != end:
        raise errors.BadOffset(path, f"the zip directory is said to lie at {begin}, not before the end record at {end}")
    return begin, end, count


def _directory64(path: str, raw: Array, locator: int) -> tuple[int, tuple[int, int, int]]:
    """The zip64 end record: its place, then count, size and begin of the directory."""
    _, disk, place, _ = _LOCATOR.unpack(raw[locator : locator + _LOCATOR.size].tobytes())
    if disk or place + _END64.size != locator:
        raise errors.BadOffset(path, "the zip64 end record is not where it is said to be")
    magic, size, _, _, disk, first_disk, here, count, length, begin = _END64.unpack(raw[place:locator].tobytes())
    if magic != b"PK\6\6" or size != _END64.size - 12 or disk or first_disk or here != count:
        raise errors.BadHeader(path, "the zip64 end record contradicts itself")
    return place, (count, length, begin)


def _entry(path: str, raw: Array, text: bytes, position: int, limit: int) -> tuple[Entry, int]:
    """The directory entry at `position` of `text`, and the position of the next one; data must end before `limit`."""
    if position + _CENTRAL.size > len(text):
        raise errors.BadHeader(path, "the zip directory is shorter than its entries")
    fields = _CENTRAL.unpack_from(text, position)
    magic, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment, disk, _, _, header = fields
    name_at = position + _CENTRAL.size
    after = name_at + n_name + n_extra + n_comment
    if magic != b"PK\1\2" or after > len(text):
        raise errors.BadHeader(path, "the zip directory holds something that is no entry")
    key = text[name_at : name_at + n_name]
    name = check_name(path, key)
    extra = text[name_at + n_name : name_at + n_name + n_extra]
    size, packed, header = _widen(path, name, extra, size, packed, header)
    if flags & 1 or method not in (_STORED, _DEFLATED) or disk:
        raise errors.BadHeader(path, f"archived file {brief(name)} is encrypted, split or packed in an unknown way")
    if method == _STORED and packed != size:
        raise errors.BadHeader(path, f"archived file {brief(name)} is stored, yet has two sizes")
    start = _data_start(path, raw, name, key, header, limit)
    if start + packed > limit:
        raise errors.BadOffset(path, f"archived file {brief(name)} reaches beyond the archive's data")
    return Entry(name, header, start, packed, size, method == _STORED), after


def _widen(path: str, name: str, extra: bytes, *sizes: int) -> tuple[int, ...]:
    """Replace the 32-bit fields that are all ones by those of the zip64 extra field, which come in this order."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    missing = sum(size == 0xFFFFFFFF for size in sizes)
    if len(wide) < 8 * missing:
        raise errors.BadHeader(path, f"archived file {brief(name)} lacks its 64-bit sizes")
    values = iter(struct.unpack_from(f"<{missing}Q", wide))
    return tuple(next(values) if size == 0xFFFFFFFF else size for size in sizes)


def _data_start(path: str, raw: Array, name: str, key: bytes, header: int, limit: int) -> int:
    if header + _LOCAL.size > limit:
        raise errors.BadOffset(path, f"archived file {brief(name)} is said to lie outside the archive's data")
    magic, *_, n_name, n_extra = _LOCAL.unpack(raw[header : header + _LOCAL.size].tobytes())
    start = header + _LOCAL.size
    if magic != b"PK\3\4" or raw[start : start + n_name].tobytes() != key:
        raise errors.BadHeader(path, f"the zip directory and the header of {brief(name)} disagree")
    return int(start + n_name + n_extra)


def write_archive(file: BinaryIO, records: Iterable[tuple[str, bytes | memoryview]]) -> None:
    """Store the records uncompressed, each starting at a multiple of 64; equal records give equal bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records:
            size = memoryview(data).nbytes
            wide = size >= zipfile.ZIP64_LIMIT
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 0
            unpadded = file.tell() + _LOCAL.size + len(name) + (20 if wide else 0) + 4
            padding = -unpadded % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(info, "w", force_zip64=wide) as record:
                record.write(data)
