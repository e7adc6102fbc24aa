"""The monitor's log: a line of JSON for every capture, appended by one call of the system each, for years if need be.

The first line says whose log it is, a line of kind "run" begins each opening, those of kind "capture" are what was
measured. A line that a killed process left unfinished is skipped, and a UserWarning says so.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from rookery.errors import BadHeader, CannotWrite, MissingFile, NewerFile, UnknownFormat
from rookery.formats.hold import hold
from rookery.lab.records import append

Row: TypeAlias = dict[str, Any]

FORMAT, VERSION = "rookery.monitor", 1
BLOCK = 1 << 16  # bytes read first from the end
MOST_LINE = 1 << 24


class Journal:
    """A log opened to go on with, or begun. `about`: its first line, which an old one's must equal.

    `rows`: its last captures, `last` at most. `runs`: openings, this one included. Raises CannotWrite (the log of
    another model, or another process writes it), UnknownFormat (no log at all), NewerFile, BadHeader.
    """

    def __init__(
        self, path: str | os.PathLike[str], about: Mapping[str, Any], run: Mapping[str, Any], last: int
    ) -> None:
        self.path = os.fspath(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise CannotWrite(path, f"cannot be written ({error.strerror})") from None
        try:
            _hold(self._file, path)
            self._end = os.fstat(self._file).st_size
            begin = self._check(about) if self._end else 0
            if not begin:
                self.append({"kind": "log", "format": FORMAT, "version": VERSION, **about})
            found, torn = _tail(self.path, begin or self._end, self._end, last)
            if torn:
                _say_torn(path, torn)
                self._end -= torn
                os.ftruncate(self._file, self._end)
            self.rows = [row for row in found if row["kind"] == "capture"][-last:]
            self.runs = 1 + max((row["run"] for row in found), default=0)
            self.append({"kind": "run", "run": self.runs, **run})
        except BaseException:
            self.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line, or nothing and raise CannotWrite."""
        data = json.dumps(row, allow_nan=False).encode() + b"\n"
        append(self.path, self._file, self._end, data)
        self._end += len(data)

    def close(self) -> None:
        os.close(self._file)

    def _check(self, about: Mapping[str, Any]) -> int:
        """The length of the first line, if it is this model's."""
        header, begin = _header(self.path)
        for key, value in about.items():
            if header.get(key) != value:
                raise CannotWrite(
                    self.path,
                    f"is the log of another model: its {key} is {str(header.get(key))[:80]}, not {str(value)[:80]}; "
                    "give the log another name",
                )
        return begin


def read(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The captures of a log, one by one. Raises FileError subclasses; of a damaged line too, with its number."""
    begin = _header(path)[1]
    with open(path, "rb") as file:
        file.seek(begin)
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                _say_torn(path, len(line))
            elif (row := _row(path, line, f"line {number}"))["kind"] == "capture":
                yield row


def _header(path: str | os.PathLike[str]) -> tuple[Row, int]:
    try:
        with open(path, "rb") as file:
            line = file.readline(MOST_LINE)
    except OSError as error:
        raise MissingFile(path, f"cannot be opened ({error.strerror}); check the path") from None
    try:
        header = json.loads(line)
        if not line.endswith(b"\n") or not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError
    except (ValueError, RecursionError):
        raise UnknownFormat(path, "is no log of the monitor") from None
    if header.get("version") != VERSION:
        raise NewerFile(path, "a log written by a newer Rookery; a newer one reads it")
    return header, len(line)


def _tail(path: str, begin: int, end: int, wanted: int) -> tuple[list[Row], int]:
    """The last rows, with at least `wanted` captures if there are so many, the rest of the log being left unread; and
    the bytes of a line without its end after them."""
    size = BLOCK
    while True:
        start = max(begin, end - size)
        with open(path, "rb") as file:
            file.seek(start)
            *lines, torn = file.read(end - start).split(b"\n")
        rows = [_row(path, line, "a line near the end") for line in (lines if start == begin else lines[1:])]
        if start == begin or sum(row["kind"] == "capture" for row in rows) >= wanted:
            return rows, len(torn)
        size *= 4


def _row(path: str | os.PathLike[str], line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
        if (
            isinstance(row, dict)
            and row["kind"] in ("log", "run", "capture")
            and (row["kind"] == "log" or row["run"] > 0)
        ):
            return row
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise BadHeader(path, f"{where} is damaged: {line[:40]!r}")


def _hold(file: int, path: str | os.PathLike[str]) -> None:
    """Keep other monitors out, where the system can."""
    if not hold(file):
        raise CannotWrite(path, "another monitor is writing it; give the log another name")


def _say_torn(path: str | os.PathLike[str], size: int) -> None:
    warnings.warn(
        f"{os.fspath(path)}: the last line was cut short and is left out ({size:,} bytes)", UserWarning, stacklevel=3
    )
