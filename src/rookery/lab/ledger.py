"""Results as they come, one line each, so that an experiment that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rookery.errors import CannotWrite, DamagedFile, MissingFile
from rookery.formats.differ import difference

Key: TypeAlias = tuple[str, int, int]  # substrate, prompt, seed
Record: TypeAlias = dict[str, Any]

NAME = "results.jsonl"
FORMAT = "rookery.lab.results.1"


class Ledger:
    """`folder/results.jsonl`: what the results depend on, then a line for each (substrate, prompt, seed).

    Opening a folder that has one goes on with it. Raises CannotWrite where that was another experiment, or the folder
    holds other things, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
        self.path = Path(folder) / NAME
        self.records: dict[Key, Record] = {}
        header = json.loads(json.dumps(header))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and b"\n" in self.path.read_bytes():
                self._go_on(header)
            elif {path.name for path in self.path.parent.iterdir()} - {NAME}:
                raise CannotWrite(folder, f"is not empty and holds no {NAME}; give a new folder")
            else:
                self.path.write_bytes(b"")  # a first line that was torn by a kill goes
                self._append({"format": FORMAT, "header": header})
        except OSError as error:
            raise CannotWrite(folder, f"cannot be written ({error.strerror or error})") from None

    def add(self, key: Key, record: Record) -> None:
        """Keep a result; it is on the disk when this returns."""
        self._append({"key": list(key), **record})
        self.records[key] = record

    def _go_on(self, header: Mapping[str, Any]) -> None:
        old, self.records, whole = _read(self.path)
        if different := difference(old, header):
            raise CannotWrite(
                self.path.parent, f"holds another experiment ({different}); give another folder, or the same settings"
            )
        if whole < self.path.stat().st_size:  # the last line was torn by a kill: its result is made anew
            os.truncate(self.path, whole)

    def _append(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[Key, Record]]:
    """Header and results of a folder. Raises MissingFile and DamagedFile."""
    path = Path(folder) / NAME
    if not path.is_file():
        raise MissingFile(path, "no such file; `rookery lab compare --out` makes such a folder")
    header, records, _ = _read(path)
    return header, records


def _read(path: Path) -> tuple[dict[str, Any], dict[Key, Record], int]:
    """Header, results, and how many bytes are whole lines."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    try:
        first, *lines = (json.loads(line) for line in data[:whole].splitlines())
        if first["format"] != FORMAT:
            raise ValueError("another format")
        records: dict[Key, Record] = {}
        for line in lines:
            name, prompt, seed = line.pop("key")
            records[name, prompt, seed] = line
        return first["header"], records, whole
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(path, f"not the results of an experiment of the lab ({error})") from None
