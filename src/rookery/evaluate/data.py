"""Data files: JSON lines, plain or gzip, each line checked for the fields that a task needs."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, BinaryIO, cast

from rookery.errors import DamagedFile, InputError, MissingFile
from rookery.formats.raw import map_file

Path = str | os.PathLike[str]
LONGEST = 64 << 20  # bytes of one line, unpacked
SAID = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def rows(path: Path, wanted: Mapping[str, type] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 1, object) of each line that is not blank; `wanted` fields are there and of their type.

    Raises FileError subclasses; of a line that is wrong, DamagedFile with its number.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", None) or type(error).__name__
            raise DamagedFile(path, f"line {number}: is no JSON ({why}); wanted one object a line") from None
        if not isinstance(row, dict):
            raise DamagedFile(path, f"line {number}: is no object; wanted one with {_names(wanted or {})}")
        for name, kind in (wanted or {}).items():
            field(path, number, row, name, kind)
        yield number, row


def field(path: Path, number: int, row: Mapping[str, Any], name: str, kind: type) -> Any:
    """row[name], if it is a `kind`. Raises DamagedFile."""
    if name not in row:
        has = f"it has {_names(row)}" if row else "it has none"
        raise DamagedFile(path, f"line {number}: no field {name!r}, wanted {SAID[kind]}; {has}")
    value = row[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DamagedFile(path, f"line {number}: {name!r} is {_brief(value)}; wanted {SAID[kind]}")
    if isinstance(value, str):
        whole(path, number, name, value)
    return value


def whole(path: Path, number: int, name: str, text: str) -> str:
    """`text`, if it is one. Raises DamagedFile for half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DamagedFile(path, f"line {number}: {name!r} has half a surrogate pair, which is no character") from None
    return text


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text file, plain or gzip, in UTF-8."""
    number = 0
    with opened(path) as file:
        try:
            while line := file.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    raise DamagedFile(path, f"line {number}: over {LONGEST >> 20} MB in one line")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DamagedFile(path, f"line {number}: is no UTF-8 (byte {error.start}); save it as UTF-8") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedFile(path, f"cannot be unpacked after line {number} ({error}); was it cut off?") from None


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked if it is gzip. Raises FileError subclasses."""
    packed = bytes(map_file(path)[:2]) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if packed else open(path, "rb")


def digest(path: Path) -> str:
    """sha256 of the file as it lies there, hex. Raises FileError subclasses."""
    return sha256(map_file(path).data).hexdigest()


def find(path: Path, names: Sequence[str], task: str) -> str:
    """The file itself, or the first of `names` in the folder; `NAME.gz` counts too. Raises MissingFile."""
    if not os.path.isdir(path):
        return os.fspath(path)
    candidates = [os.path.join(path, name + end) for name in names for end in ("", ".gz")]
    found = next(filter(os.path.isfile, candidates), None)
    if found is None:
        raise MissingFile(path, f"holds no data for {task}; wanted {' or '.join(names)} (or .gz), or name the file")
    return found


def needed(task: str, path: Path | None, names: Sequence[str], source: str) -> str:
    """The data file of a task that cannot do without. Raises InputError that says where to get it."""
    if path is None:
        raise InputError(f"{task} needs its data: give --data FILE ({' or '.join(names)}); {source}")
    return find(path, names, task)


def _names(row: Mapping[str, Any]) -> str:
    shown = [repr(str(name)[:30]) for name in list(row)[:8]]
    return ", ".join(shown) or "fields"


def _brief(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else said[:37] + "..."
