"""The folder of a sweep: its settings, and a line for each point as it is measured, so that a sweep can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rookery.bench.context.settings import Point
from rookery.errors import CannotWrite, DamagedFile
from rookery.formats.atomic import atomic_write
from rookery.formats.differ import difference
from rookery.formats.hold import hold

Row: TypeAlias = dict[str, Any]

SETTINGS, POINTS = "settings.json", "points.jsonl"


class Store:
    """`rows` by point, those of an earlier run first. One process at a time has the folder.

    `about`: what the rows depend on, JSON-ready. Raises CannotWrite where the folder holds points of something else,
    holds other files, is in use or cannot be written; DamagedFile.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.rows: dict[Point, Row] = {}
        about = json.loads(json.dumps(about))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._same(about)
            self._file = open(self.folder / POINTS, "a+b")  # noqa: SIM115, open as long as the store is
        except OSError as error:
            raise CannotWrite(folder, f"cannot be written ({error.strerror or error})") from None
        try:
            _hold(self._file.fileno(), self.folder)
            self._read()
        except BaseException:
            self.close()
            raise

    def add(self, row: Row) -> None:
        """Keep a row; a kill after this does not lose it."""
        try:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise CannotWrite(self._file.name, f"cannot be written ({error.strerror or error})") from None
        self.rows[_point(row)] = row

    def close(self) -> None:
        self._file.close()

    def _same(self, about: Mapping[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if any(self.folder.iterdir()):
                raise CannotWrite(self.folder, f"is not empty and holds no {SETTINGS}; give a new folder")
            with atomic_write(path) as file:
                file.write(json.dumps(about, indent=1).encode() + b"\n")
            return
        try:
            old = json.loads(path.read_bytes())
            assert isinstance(old, dict)
        except (ValueError, AssertionError, RecursionError):
            raise DamagedFile(path, "is no JSON object; give a new folder") from None
        if different := difference(old, about):
            raise CannotWrite(
                self.folder, f"holds points of another sweep ({different}); give another folder, or the same settings"
            )

    def _read(self) -> None:
        """What was torn by a kill goes: its point is measured anew."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                self.rows[_point(row)] = row
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DamagedFile(self._file.name, f"line {number} is no point: {line[:40]!r}; remove it") from None


def _point(row: Mapping[str, Any]) -> Point:
    return Point(row["phase"], row["kind"], int(row["length"]))


def _hold(file: int, folder: Path) -> None:
    """Keep other sweeps out, where the system can: two at once would also slow each other."""
    if not hold(file):
        raise CannotWrite(folder, "another sweep is writing there; wait for it, or give another folder")
