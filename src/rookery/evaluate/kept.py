"""The folder of a run: its manifest, its rows, its figures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rookery.errors import CannotWrite, DamagedFile, InputError
from rookery.evaluate.text import dumps
from rookery.formats.atomic import atomic_write
from rookery.formats.hold import hold

MANIFEST, RESULTS = "manifest.json", "results.json"


class Rows:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(json.loads(dumps(row)))  # as it would come back from a file

    def first(self, n: int) -> Sequence[dict[str, Any]]:
        return self._rows[:n]

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass


class KeptRows(Rows):
    """Rows of a file too, each written when it is added. What a torn last line held is asked again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = _opened(path)
        try:
            self._rows += self._whole()
        except BaseException:
            self._file.close()
            raise

    def _whole(self) -> Iterator[dict[str, Any]]:
        """The rows up to the first that is torn, where the file is cut."""
        end = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or row.get("item") != number:
                raise DamagedFile(self._path, f"line {number + 1}: is no row of this run; choose another --out")
            yield row
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def add(self, row: dict[str, Any]) -> None:
        line = dumps(row)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise CannotWrite(self._path, f"cannot be written ({error.strerror or error})") from error
        self._rows.append(json.loads(line))

    def __exit__(self, *raised: Any) -> None:
        with suppress(OSError):  # a full disk was told of when the row was added
            self._file.close()


class Kept:
    """The folder, made if need be, locked against another run. Raises InputError where it holds another run's."""

    def __init__(self, out: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
        self.folder, self._manifest = Path(out), manifest

    def __enter__(self) -> Kept:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(self.folder, f"cannot be made a folder ({error.strerror or error})") from error
        self._lock = _locked(self.folder)
        try:
            self._begin(self.folder / MANIFEST)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        self._lock.close()

    def _begin(self, path: Path) -> None:
        """Compare with the manifest that is there, or write it."""
        if not path.exists():
            found = next(self.folder.glob("*.jsonl"), None)
            if found:
                raise InputError(f"{self.folder}: holds {found.name} but no {MANIFEST}; choose another --out")
            return _write(path, self._manifest)
        try:
            old = json.loads(path.read_bytes())
        except (ValueError, OSError):
            old = None
        if not isinstance(old, dict):
            raise DamagedFile(path, "is no manifest of a run; choose another --out")
        if differs := next(_differences(old, json.loads(dumps(self._manifest))), None):
            raise InputError(f"{self.folder}: is of another run ({differs}); choose another --out or the same settings")

    def rows(self, task: str) -> Rows:
        return KeptRows(self.folder / f"{task}.jsonl")

    def write(self, results: dict[str, Any]) -> None:
        _write(self.folder / RESULTS, results)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield f"{name} was {_brief(old)}, is {_brief(new)}"


def _brief(value: Any) -> str:
    said = "not there" if value is None else json.dumps(value)
    return said if len(said) <= 40 else said[:37] + "..."


def _write(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write(dumps(value, indent=1).encode() + b"\n")


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "r+b" if path.exists() else "x+b", buffering=1 << 16)
    except OSError as error:
        raise CannotWrite(path, f"cannot be written ({error.strerror or error})") from error


def _locked(folder: Path) -> BinaryIO:
    """A file that this process holds. Raises InputError where another run does."""
    file = open(folder / ".lock", "ab")  # noqa: SIM115, open as long as the run
    if not hold(file.fileno()):
        file.close()
        raise InputError(f"{folder}: another run is writing there; wait for it, or choose another --out")
    return file
