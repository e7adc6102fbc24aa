"""Token files as RWKV-LM and Megatron keep them: PREFIX.bin, raw little-endian ids, and PREFIX.idx, where items lie.

The index: 9 bytes `MMIDIDX\\0\\0`; u64 version 1; u8 dtype code; u64 items n; u64 m; then n i32 sizes in tokens, n i64
offsets in bytes, and m i64, the items that documents begin at: 0 .. n where an item is a document, so m = n + 1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rookery import errors
from rookery.formats.atomic import atomic_write
from rookery.formats.raw import map_file

MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
# 6 and 7 are both float64, which holds no ids.
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LARGEST_ITEM = 2**31 - 1

Ids = npt.NDArray[Any]


def paths(prefix: str | os.PathLike[str]) -> tuple[Path, Path]:
    """PREFIX.bin and PREFIX.idx, from the prefix or from either file's name."""
    text = os.fspath(prefix)
    stem = text[:-4] if text.endswith((".bin", ".idx")) else text
    return Path(f"{stem}.bin"), Path(f"{stem}.idx")


def exists(prefix: str | os.PathLike[str]) -> bool:
    """Whether both files are there."""
    return all(path.is_file() for path in paths(prefix))


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token file, mapped: nothing is read before it is touched.

    tokens [n tokens]; begins [items], the first token of each item, and sizes [items]; documents [m], items.
    """

    path: str
    tokens: Ids
    begins: Ids
    sizes: Ids
    documents: Ids

    def item(self, index: int) -> Ids:
        begin = int(self.begins[index])
        return self.tokens[begin : begin + int(self.sizes[index])]

    def __len__(self) -> int:
        return len(self.sizes)


def read(prefix: str | os.PathLike[str]) -> TokenFile:
    """Open PREFIX.bin and PREFIX.idx, every count and offset of the index checked against both files' sizes.

    Raises FileError and, of DamagedFile, UnknownFormat, BadHeader, UnsupportedType, TruncatedFile, BadOffset.
    """
    bin_path, idx_path = paths(prefix)
    index = map_file(idx_path)
    dtype, n, m = _header(idx_path, index)
    sizes = np.frombuffer(index, "<i4", n, _HEADER.size).astype(np.int64)
    offsets = np.frombuffer(index, "<i8", n, _HEADER.size + 4 * n)
    documents = np.frombuffer(index, "<i8", m, _HEADER.size + 12 * n)
    raw = map_file(bin_path)
    if raw.size % dtype.itemsize:
        raise errors.TruncatedFile(bin_path, f"has {raw.size} bytes, no whole number of {dtype.name} tokens")
    tokens = raw.view(dtype)
    _check_items(bin_path, idx_path, sizes, offsets, tokens)
    if m and (documents[0] < 0 or documents[-1] > n or (np.diff(documents) < 0).any()):
        raise errors.BadHeader(idx_path, f"its documents do not begin at rising items from 0 to {n}")
    return TokenFile(os.fspath(bin_path), tokens, offsets // dtype.itemsize, sizes, documents)


def _header(path: Path, index: Ids) -> tuple[np.dtype[Any], int, int]:
    """The dtype, the items and the document count, which fill the file exactly."""
    if index[: len(MAGIC)].tobytes() != MAGIC[: index.size]:
        raise errors.UnknownFormat(path, "is no binidx index: it does not begin with MMIDIDX")
    if index.size < _HEADER.size:
        raise errors.TruncatedFile(path, f"has {index.size} bytes; the header of a binidx index has {_HEADER.size}")
    _, version, code, n, m = _HEADER.unpack(index[: _HEADER.size].tobytes())
    if version != 1:
        raise errors.BadHeader(path, f"is of version {version}; only version 1 is known")
    if code not in _DTYPES:
        kind = "float64, which holds no token ids" if code in (6, 7) else "unknown"
        raise errors.UnsupportedType(path, f"dtype code {code} is {kind}; wanted one of {sorted(_DTYPES)}")
    wanted = _HEADER.size + 12 * n + 8 * m
    if index.size < wanted:
        raise errors.TruncatedFile(
            path, f"has {index.size} bytes; {n} items and {m} document marks take {wanted}; was the copy cut off?"
        )
    if index.size > wanted:
        raise errors.BadHeader(path, f"has {index.size - wanted} bytes after its {n} items and {m} document marks")
    return np.dtype(_DTYPES[code]), n, m


def _check_items(bin_path: Path, idx_path: Path, sizes: Ids, offsets: Ids, tokens: Ids) -> None:
    width, total = tokens.dtype.itemsize, len(tokens)
    if (sizes < 0).any():
        raise errors.BadHeader(idx_path, f"item {int((sizes < 0).argmax())} has a negative size")
    wrong = (offsets < 0) | (offsets % width != 0)
    if wrong.any():
        at = int(wrong.argmax())
        raise errors.BadOffset(idx_path, f"item {at} begins at byte {offsets[at]}, where no token does")
    # Offsets of up to 2^63 - 1 stay in range when the size is taken from the other side.
    beyond = offsets // width > total - sizes
    if beyond.any():
        at = int(beyond.argmax())
        raise errors.TruncatedFile(
            bin_path, f"has {total} tokens; item {at} is {sizes[at]} from token {offsets[at] // width} on"
        )


class Writer:
    """What `writing` hands out."""

    def __init__(self, file: BinaryIO, vocab_size: int) -> None:
        self.tokens = 0
        self._file, self._vocab_size = file, vocab_size
        self._code = 8 if vocab_size <= 65_536 else 4
        self._dtype = np.dtype(_DTYPES[self._code])
        self._sizes: list[int] = []
        self._size = 0

    @property
    def items(self) -> int:
        return len(self._sizes)

    def add(self, ids: Sequence[int] | Ids, ends: bool = True) -> None:
        """More of an item, the last of it where it `ends`. Raises TokenError for an id not below `vocab_size`."""
        some = ids if isinstance(ids, np.ndarray) else np.array(ids, np.int64)
        if some.size and not 0 <= some.min() <= some.max() < self._vocab_size:
            wrong = some[(some < 0) | (some >= self._vocab_size)][0]
            raise errors.TokenError(f"token {wrong} of document {self.items} is none of {self._vocab_size} ids")
        self._file.write(some.astype(self._dtype).tobytes())
        self.tokens += some.size
        self._size += some.size
        if self._size > _LARGEST_ITEM:
            raise errors.InputError(f"document {self.items} has more tokens than a binidx item can: {_LARGEST_ITEM}")
        if ends:
            self._sizes.append(self._size)
            self._size = 0

    def index(self) -> bytes:
        """The .idx file, each item a document."""
        n = len(self._sizes)
        sizes = np.array(self._sizes, "<i4")
        offsets = np.zeros(n, "<i8")
        np.cumsum(sizes[:-1], dtype=np.int64, out=offsets[1:])
        offsets *= self._dtype.itemsize
        parts = (sizes, offsets, np.arange(n + 1, dtype="<i8"))
        return _HEADER.pack(MAGIC, 1, self._code, n, n + 1) + b"".join(part.tobytes() for part in parts)


@contextmanager
def writing(prefix: str | os.PathLike[str], vocab_size: int = 65_536) -> Iterator[Writer]:
    """A Writer of PREFIX.bin and PREFIX.idx, which appear, both whole, when the block ends without an exception.

    Ids are stored as u16 where `vocab_size` is at most 65,536, else as i32. Raises CannotWrite.
    """
    bin_path, idx_path = paths(prefix)
    with atomic_write(idx_path) as index, atomic_write(bin_path) as tokens:
        writer = Writer(tokens, vocab_size)
        yield writer
        index.write(writer.index())
        index.flush()
        # The tokens are renamed first. A stop between the two must not leave them with the index of others.
        idx_path.unlink(missing_ok=True)
