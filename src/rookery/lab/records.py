"""Captures as rows of equal width: held in memory (all, or the last ones) or appended to a file that can be read while
it grows.

K captures of one call, W numbers of a capture, all its points side by side.
"""

from __future__ import annotations

import base64
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rookery.errors import BadHeader, CannotWrite, EmptyFile, InputError, NewerFile, UnknownFormat
from rookery.formats.raw import map_file

Array = npt.NDArray[Any]

FORMAT, VERSION = "rookery.trace", 1
BLOCK = 8 << 20  # bytes of captures that are allocated at once
ALIGNMENT = 64  # of the first record in a file
MOST_HEADER = 1 << 14, 1 << 26  # bytes, of most and of all


class Columns:
    """Which numbers of a capture are whose: every point's `shapes` and `places` by its name, in order."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes, self.places, self.width = dict(shapes), dict[str, slice](), 0
        for name, shape in shapes.items():
            self.places[name] = slice(self.width, self.width + prod(shape))
            self.width += prod(shape)


class Sink(Protocol):
    """Where captures go."""

    def add(self, sequence: int, tokens: Sequence[int], parts: Sequence[Array]) -> None:
        """K captures of one sequence, made after these numbers of tokens: side by side, the parts [K, ..] make [K, W].
        They are views of what will change, to be copied."""


class Memory:
    """All captures, or the last `last` of them, in blocks: fresh memory costs many times what copying to it does, and
    blocks that are large (huge pages) or used again do not pay that at each capture."""

    def __init__(self, columns: Columns, dtype: Any, last: int | None = None) -> None:
        self.columns, self.dtype, self.last = columns, np.dtype(dtype), last
        rows = max(1, BLOCK // max(1, columns.width * self.dtype.itemsize))
        self._rows = rows if last is None else min(rows, last)  # of a block
        self._blocks: deque[tuple[Array, Array]] = deque()  # [rows, 2] of sequence and tokens, [rows, W]
        self._used = self._rows  # of the newest block

    def add(self, sequence: int, tokens: Sequence[int], parts: Sequence[Array]) -> None:
        done = 0
        while done < len(tokens):
            if self._used == self._rows:
                self._blocks.append(self._next())
                self._used = 0
            index, block = self._blocks[-1]
            begin, n = self._used, min(len(tokens) - done, self._rows - self._used)
            index[begin : begin + n, 0] = sequence
            index[begin : begin + n, 1] = tokens[done : done + n]
            np.concatenate([part[done : done + n] for part in parts], axis=1, out=block[begin : begin + n])
            self._used += n
            done += n

    def _next(self) -> tuple[Array, Array]:
        """An empty block; the oldest one where those after it hold enough."""
        if self.last is not None and (len(self._blocks) - 1) * self._rows >= self.last:
            return self._blocks.popleft()
        return np.empty((self._rows, 2), np.int64), np.empty((self._rows, self.columns.width), self.dtype)

    def sequence(self) -> Array:
        return self._column(0, slice(0, 1))[:, 0]

    def tokens(self) -> Array:
        return self._column(0, slice(1, 2))[:, 0]

    def column(self, name: str) -> Array:
        """[captures, ...], a copy."""
        return self._column(1, self.columns.places[name]).reshape(-1, *self.columns.shapes[name])

    def _column(self, which: int, place: slice) -> Array:
        parts = [pair[which][:, place] for pair in self._blocks]
        if not parts:
            return np.empty((0, place.stop - place.start), (np.dtype(np.int64), self.dtype)[which])
        parts[-1] = parts[-1][: self._used]
        whole = np.concatenate(parts)
        return whole if self.last is None else whole[-self.last :]


class File:
    """A file of captures: one line of JSON, then records of one size, each written by one call of the system.

    So what a killed process leaves is whole up to the last record; a part of one at the end is not read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns,
        dtype: Any,
        about: Mapping[str, Any],
        last: int | None = None,
    ) -> None:
        self.path, self.columns, self.dtype = os.fspath(path), columns, np.dtype(dtype)
        self.about, self.last = about, last
        self._record = record(columns, self.dtype)
        self._end = 0  # bytes written; 0 until the header is
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        except FileExistsError:
            raise CannotWrite(path, "exists already; give another name, a trace is never added to an old one") from None
        except OSError as error:
            raise CannotWrite(path, f"cannot be written ({error.strerror})") from None

    def begin(self, constants: Mapping[str, Array]) -> None:
        """Write the header, with the points that are made of parameters alone."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype.name,
            "points": [[name, list(shape)] for name, shape in self.columns.shapes.items()],
            "constants": [[name, list(x.shape), x.dtype.name, _text(x)] for name, x in constants.items()],
            **self.about,
        }
        line = json.dumps(header).encode()
        line += b" " * (-(len(line) + 1) % ALIGNMENT) + b"\n"
        self._write(line)

    @property
    def begun(self) -> bool:
        return self._end > 0

    def add(self, sequence: int, tokens: Sequence[int], parts: Sequence[Array]) -> None:
        rows = np.empty(len(tokens), self._record)
        rows["sequence"], rows["token"] = sequence, tokens
        np.concatenate(parts, axis=1, out=rows["values"])
        for row in rows:  # a record, a write
            self._write(row.tobytes())

    def read(self) -> Recorded | None:
        """What was written so far, None before the header."""
        return read(self.path, self.last) if self.begun else None

    def sequence(self) -> Array:
        found = self.read()
        return found.sequence if found else np.empty(0, np.int64)

    def tokens(self) -> Array:
        found = self.read()
        return found.tokens if found else np.empty(0, np.int64)

    def column(self, name: str) -> Array:
        found = self.read()
        return found[name] if found else np.empty((0, *self.columns.shapes[name]), self.dtype)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        append(self.path, self._file, self._end, data)
        self._end += len(data)


def append(path: str, file: int, end: int, data: bytes) -> None:
    """All of `data` behind the `end` bytes of a file, or nothing and CannotWrite: the next record must begin where this
    one should end.
    """
    try:
        if os.write(file, data) == len(data):
            return
        problem = "no space left on the disk"
    except OSError as error:
        problem = str(error.strerror)
    with suppress(OSError):
        os.ftruncate(file, end)
    raise CannotWrite(path, f"cannot be written ({problem}); what was captured before is whole")


class Recorded:
    """A trace read from its file: `names`, `tokens`, `sequence`, `about` and [name] as of a Trace."""

    def __init__(self, rows: Array, columns: Columns, constants: Mapping[str, Array], about: Mapping[str, Any]) -> None:
        self._rows, self._columns, self.constants, self.about = rows, columns, constants, about

    @property
    def names(self) -> list[str]:
        return [*self._columns.shapes, *self.constants]

    @property
    def tokens(self) -> Array:
        return self._rows["token"].astype(np.int64)

    @property
    def sequence(self) -> Array:
        return self._rows["sequence"].astype(np.int64)

    @property
    def nonfinite(self) -> dict[str, int]:
        """NaN and infinite numbers of each point that has any; reads the whole file."""
        counts = {name: int(np.count_nonzero(~np.isfinite(self[name]))) for name in self.names}
        return {name: count for name, count in counts.items() if count}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> Array:
        """[captures, ...], a view of the file."""
        if name in self.constants:
            return self.constants[name][None]
        if name not in self._columns.shapes:
            raise InputError(f"{name!r} was not captured; there are {', '.join(self.names[:8])} ...")
        return self._rows["values"][:, self._columns.places[name]].reshape(-1, *self._columns.shapes[name])


def read(path: str | os.PathLike[str], last: int | None = None) -> Recorded:
    """Open a trace's file, which may still be growing: its captures until now, or the last `last`. A record that was
    not written to its end is left out. Raises FileError subclasses."""
    try:
        raw = map_file(path)
    except EmptyFile:
        raise EmptyFile(path, "nothing was captured yet") from None
    begin = next((at + 1 for n in MOST_HEADER if (at := raw[:n].tobytes().find(b"\n")) >= 0), 0)
    columns, dtype, constants, about = _header(path, raw[:begin].tobytes())
    shape = record(columns, dtype)
    count = (len(raw) - begin) // shape.itemsize
    first = 0 if last is None else max(0, count - last)
    rows = raw[begin + first * shape.itemsize : begin + count * shape.itemsize].view(shape)
    return Recorded(rows, columns, constants, about)


def record(columns: Columns, dtype: Any) -> np.dtype[Any]:
    """One record of a file: little endian, packed."""
    values = np.dtype(dtype).newbyteorder("<")
    return np.dtype([("sequence", "<i8"), ("token", "<i8"), ("values", values, (columns.width,))])


def _header(
    path: str | os.PathLike[str], line: bytes
) -> tuple[Columns, np.dtype[Any], dict[str, Array], dict[str, Any]]:
    try:
        header = json.loads(line)
        if not isinstance(header, dict) or header.pop("format") != FORMAT:
            raise KeyError
    except (ValueError, KeyError, RecursionError):
        raise UnknownFormat(path, "is no trace of Rookery") from None
    if header.pop("version", 0) != VERSION:
        raise NewerFile(path, "a trace written by a newer Rookery; a newer one reads it")
    try:
        dtype = np.dtype(header.pop("dtype"))
        columns = Columns({str(name): _shape(shape) for name, shape in header.pop("points")})
        constants = {
            str(name): np.frombuffer(base64.b64decode(text), np.dtype(kind)).reshape(_shape(shape))
            for name, shape, kind, text in header.pop("constants")
        }
        if dtype.kind != "f" or any(x.dtype.kind != "f" for x in constants.values()):
            raise ValueError("a dtype that is no number")
        record(columns, dtype)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadHeader(path, f"a trace with a damaged first line ({error})") from None
    return columns, dtype, constants, header


def _shape(shape: Any) -> tuple[int, ...]:
    if not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"a shape {shape}")
    return tuple(shape)


def _text(x: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()
