"""Rows of files become documents on disk: a token file and, beside it, which of its tokens are trained.

FOLDER/train and FOLDER/validation, each as .bin and .idx (train/binidx.py) and .mask, a byte a token; FOLDER/rows.json
says of what they were made, and is written last: where it matches, nothing is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from rookery import tokenizer
from rookery.chat.template import Template
from rookery.errors import DamagedFile, InputError, TemplateError
from rookery.formats.atomic import atomic_write
from rookery.formats.raw import map_file
from rookery.tokenizer import Tokenizer
from rookery.train import binidx, texts
from rookery.train.texts import Piece
from rookery.tune.examples import Example

FORM = 2  # of what is written; another number makes it anew

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
Coded = tuple[Array, Array]  # ids [n] and bool [n]


class Writer(Protocol):
    """Makes documents of rows; `mask` tells one that makes others, see `examples.Writer`."""

    tokenizer: Tokenizer
    template: Template
    mask: str

    def of_json(self, row: Any, fields: Sequence[str] = ()) -> list[Example]: ...


@dataclass(frozen=True, slots=True)
class Documents:
    """tokens [n tokens] and trained [n tokens], both mapped; begins and sizes [documents]."""

    tokens: Array
    trained: Array
    begins: Array
    sizes: Array

    @classmethod
    def read(cls, prefix: Path) -> Documents:
        """Raises FileError."""
        if not binidx.paths(prefix)[0].stat().st_size:  # nothing is held out
            none = np.empty(0, np.int64)
            return cls(none, none.astype(np.bool_), none, none)
        file = binidx.read(prefix)
        trained = map_file(_mask(prefix)).view(np.bool_)
        if len(trained) != len(file.tokens):
            raise DamagedFile(_mask(prefix), f"has {len(trained)} marks for {len(file.tokens)} tokens; remove it")
        return cls(file.tokens, trained, file.begins, file.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def prepare(
    folder: Path,
    train: Sequence[str],
    validation: Sequence[str],
    writer: Writer,
    fields: Sequence[str] = (),
    hold_out: float = 0.0,
    progress: Progress | None = None,
) -> tuple[Documents, Documents]:
    """Training and held-out documents of files (see `texts.find`), made in `folder` unless they are there.

    hold_out: the share of the training rows that is held out, chosen by the row's own bytes, so that a row and its
    doubles lie on one side, today and tomorrow. progress: is told the bytes read, and all. Raises InputError and
    FileError, of which DamagedFile names the line.
    """
    if not 0 <= hold_out < 1:
        raise InputError(f"data.hold_out = {hold_out}: a share from 0 to less than 1 is wanted")
    sources = texts.find(train), texts.find(validation) if validation else []
    halves = [folder / "train", folder / "validation"]
    note, of = folder / "rows.json", json.dumps(_of(sources, writer, fields, hold_out))
    if not (note.is_file() and note.read_text("utf-8") == of and all(map(binidx.exists, halves))):
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        _write(halves, _coded(sources, writer, fields, hold_out, progress), writer.tokenizer.vocab_size)
        with atomic_write(note) as file:
            file.write(of.encode())
    return Documents.read(halves[0]), Documents.read(halves[1])


def _mask(prefix: Path) -> Path:
    return prefix.with_suffix(".mask")


def _of(sources: Sequence[Sequence[Path]], writer: Writer, fields: Sequence[str], hold_out: float) -> dict[str, Any]:
    template = writer.template
    files = [[(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths] for paths in sources]
    return {
        "form": FORM,
        "tokenizer": tokenizer.digest(writer.tokenizer),
        "template": [template.name, getattr(template, "source", None) or repr(template)],
        "mask": writer.mask,
        "fields": [*fields],
        "hold_out": hold_out,
        "files": files,
    }


def _write(halves: Sequence[Path], coded: Iterator[tuple[bool, Coded, bool]], vocab_size: int) -> None:
    with ExitStack() as stack:
        masks: list[BinaryIO] = [stack.enter_context(atomic_write(_mask(prefix))) for prefix in halves]
        writers = [stack.enter_context(binidx.writing(prefix, vocab_size)) for prefix in halves]
        for held, (ids, trained), ends in coded:
            writers[held].add(ids, ends)
            masks[held].write(trained.tobytes())


def _coded(
    sources: Sequence[Sequence[Path]],
    writer: Writer,
    fields: Sequence[str],
    hold_out: float,
    progress: Progress | None,
) -> Iterator[tuple[bool, Coded, bool]]:
    """(is it held out, ids and marks, do they end a document) of all sources, training ones first."""
    size, before = sum(path.stat().st_size for paths in sources for path in paths), 0
    for held, paths in enumerate(sources):
        for path in paths:
            if path.suffix == ".idx":
                for item in _items(path, writer.tokenizer):
                    yield bool(held) or _chosen(item[0].tobytes(), hold_out), item, True
            else:
                aside = bool(held)
                for n, (piece, read) in enumerate(texts.read(path)):
                    if piece.is_json or not n:  # the pieces of a text stay together
                        aside = bool(held) or _chosen(piece.data.strip(), hold_out)
                    for found in _documents(piece, writer, fields):
                        yield aside, found, piece.ends
                    if progress is not None:
                        progress(before + read, size)
            before += path.stat().st_size


def _chosen(data: bytes, share: float) -> bool:
    # No checksum, which is linear: rows that are alike would all be held out, or none of them.
    return int.from_bytes(blake2b(data, digest_size=4).digest(), "little") < share * 2**32


def _items(path: Path, known: Tokenizer) -> Iterator[Coded]:
    file = binidx.read(path)
    for n in range(len(file)):
        ids = file.item(n)
        if ids.size and not 0 <= ids.min() <= ids.max() < known.vocab_size:
            raise InputError(
                f"{path}: document {n} holds token {ids.max()}, but the vocabulary has {known.vocab_size}: it was made "
                "with another tokenizer"
            )
        yield ids, np.ones(ids.size, np.bool_)


def _documents(piece: Piece, writer: Writer, fields: Sequence[str]) -> Iterator[Coded]:
    """The documents of a line of JSON, or a part of a text. Raises DamagedFile that names the line."""
    if not piece.is_json:
        ids = writer.tokenizer.encode(texts.text_of(piece))
        end = writer.tokenizer.end
        ids += [] if end is None or not piece.ends else [end]
        yield np.array(ids, np.int64), np.ones(len(ids), np.bool_)
        return
    try:
        examples = writer.of_json(_json(piece), fields)
    except (InputError, TemplateError) as error:
        raise DamagedFile(piece.path, f"line {piece.line} {error}") from None
    for example in examples:
        yield np.array(example.ids, np.int64), np.array(example.trained, np.bool_)


def _json(piece: Piece) -> Any:
    try:
        return json.loads(piece.data.decode("utf-8-sig" if piece.line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 (byte 0x{piece.data[error.start]:02x})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})") from None
