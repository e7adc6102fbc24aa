"""Text on disk: which files a user means, and their documents piece by piece, in constant memory.

Text files are one document each, in pieces cut at line ends; .jsonl files have a document {"text": ...} a line; both
may be packed with gzip. Only UTF-8 is text; a NUL byte means that the file is not.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rookery import errors
from rookery.formats.raw import brief, map_file
from rookery.train import binidx

JSON = (".jsonl", ".ndjson", ".json")
IN_FOLDERS = (".txt", ".jsonl", ".ndjson")  # token files are named one by one: an output may lie beside its inputs
BLOCK = 1 << 20
LONGEST_LINE = 1 << 28


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a document, as they are in its file: all of a line of JSON, or some lines of a text."""

    path: str
    line: int
    data: bytes
    is_json: bool
    ends: bool


def find(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files meant by names of files, folders and binidx prefixes; a token file by its .idx.

    Raises MissingFile, NotAFile, NoPermission, EmptyFile and, for no sources or a folder without texts, InputError.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = [path for path in sorted(source.rglob("*")) if _kind(path) in IN_FOLDERS and path.is_file()]
            if not inside:
                raise errors.InputError(f"{source}: the folder holds no .txt or .jsonl, nor .gz of these")
            found += inside
        elif binidx.exists(source):
            found.append(binidx.paths(source)[1])
        else:
            found.append(source)
    if not found:
        raise errors.InputError("no data: name text files, .jsonl files, folders or binidx prefixes")
    for path in found:
        for half in binidx.paths(path) if path.suffix in (".bin", ".idx") else [path]:
            map_file(half)
    return found


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read(path: Path) -> Iterator[tuple[Piece, int]]:
    """The pieces of a text or .jsonl file, and how many of the file's bytes have been read.

    Raises EmptyFile, TruncatedFile, DamagedFile and TooLarge.
    """
    name, empty = os.fspath(path), True
    try:
        with open(path, "rb") as raw:
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
            for piece in _lines(name, file) if _kind(path) in JSON else _blocks(name, file):
                empty = False
                yield piece, raw.tell()
    except EOFError:
        raise errors.TruncatedFile(path, "ends within its gzip data; was the copy cut off?") from None
    except (OSError, zlib.error) as error:
        raise errors.DamagedFile(path, f"cannot be read ({brief(str(error))})") from None
    if empty:
        raise errors.EmptyFile(path, "has no text in it")


def _lines(name: str, file: IO[bytes]) -> Iterator[Piece]:
    line = 0
    while data := file.readline(LONGEST_LINE + 1):
        line += 1
        if len(data) > LONGEST_LINE:
            raise errors.TooLarge(name, f"line {line} has over {LONGEST_LINE} bytes; wanted one JSON object a line")
        if data.strip():
            yield Piece(name, line, data, is_json=True, ends=True)


def _blocks(name: str, file: IO[bytes]) -> Iterator[Piece]:
    line, held = 1, b""
    while block := file.read(BLOCK):
        held += block
        at = _cut(held)
        if at:
            yield Piece(name, line, held[:at], is_json=False, ends=False)
            line += held.count(b"\n", 0, at)
            held = held[at:]
    if held:
        yield Piece(name, line, held, is_json=False, ends=True)


def _cut(held: bytes) -> int:
    """Where the last line begins that is not blank, so that no run of line ends is divided and something is left."""
    at = held.rstrip(b"\n").rfind(b"\n") + 1
    if at == 0 and len(held) > 4 * BLOCK:  # a text without lines, at a character then
        at = len(held) - 1
        while at > len(held) - 4 and held[at] & 0xC0 == 0x80:
            at -= 1
    return at


def text_of(piece: Piece) -> str:
    """Raises DamagedFile that names the line."""
    try:
        # Some editors put a byte order mark first.
        text = piece.data.decode("utf-8-sig" if piece.line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(piece, error.start, f"is not UTF-8 (byte 0x{piece.data[error.start]:02x}); {_REMEDY}") from None
    if "\0" in text:
        raise _wrong(piece, piece.data.index(b"\0"), f"has a NUL byte, so this is binary data; {_REMEDY}")
    if not piece.is_json:
        return text
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(piece, 0, f'is not JSON ({error}); wanted {{"text": "..."}}') from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        what = 'has no "text"' if isinstance(row, dict) and "text" not in row else "is of another form"
        raise _wrong(piece, 0, f'{what}; wanted {{"text": "..."}}')
    return str(row["text"])


_REMEDY = "convert it to UTF-8 text first"


def _wrong(piece: Piece, at: int, what: str) -> errors.DamagedFile:
    line = piece.line + piece.data.count(b"\n", 0, at)
    return errors.DamagedFile(piece.path, f"line {line} {what}")
