"""Texts become a token file: text, JSON lines and token files, from files and folders, by all cores, in their order.

A document is a text file, a line of JSON or an item of a token file. The tokenizer's end of text follows each of the
first two; a tokenizer without one (bytes, utf16le) joins documents by nothing, so the stream does not tell where one
ends. What was tokenised is decoded again and compared with the text.
"""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from rookery import errors, tokenizer
from rookery.tokenizer import Tokenizer
from rookery.train import binidx, texts
from rookery.train.texts import Piece

BATCH = 1 << 18  # bytes of text that a process gets at a time
WORTH_IT = 1 << 26  # bytes of files below which starting processes takes longer than the work

Progress = Callable[[int, int], None]
Names = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Built:
    """What was written. Texts without a character are left out and counted as empty.

    `text_bytes`, in UTF-8, and `text_tokens` are those of what was tokenised, once, ends of text among the tokens.
    """

    documents: int
    tokens: int
    empty: int
    text_bytes: int
    text_tokens: int


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Pieces as tokens; or the path of a file and what is wrong with it, for an exception of two arguments cannot be
    sent from one process to another.

    ids: all ids as i32, ends of text among them; sizes: per piece its ids, its bytes of text, whether it ends a
    document.
    """

    ids: bytes
    sizes: list[tuple[int, int, bool]]
    wrong: tuple[str, str] | None = None


def build(
    sources: Iterable[Names],
    prefix: Names,
    vocabulary: Names | Tokenizer,
    *,
    repeat: int = 1,
    seed: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Built:
    """Write PREFIX.bin and PREFIX.idx from text files, .jsonl files, folders and binidx prefixes.

    vocabulary: what `rookery.tokenizer.load` takes, or a Tokenizer, which cannot go to other processes and so works
    alone. With `repeat` above 1 or a `seed` the documents are shuffled, each time anew (without a seed: 0).
    workers: processes, 0 for all cores where that pays. progress: is told the bytes read, and all.

    Raises FileError (DamagedFile names the line), TokenizerError, TokenError and InputError.
    """
    found = texts.find(sources)
    name = vocabulary if isinstance(vocabulary, str | os.PathLike) else None
    tok = tokenizer.load(vocabulary) if isinstance(vocabulary, str | os.PathLike) else vocabulary
    size = sum(os.path.getsize(path) for path in found)
    workers = workers or (_cores() if size > WORTH_IT else 1)
    jobs = _jobs(found, size, progress)

    def write(writer: binidx.Writer) -> Built:
        if workers == 1 or name is None:
            return _write(writer, (job if isinstance(job, Path) else _encode(tok, job) for job in jobs))
        with ProcessPoolExecutor(workers, get_context("spawn"), _start, (name,)) as pool:
            try:
                return _write(writer, _ahead(pool, jobs, 3 * workers))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    if repeat == 1 and seed is None:
        with binidx.writing(prefix, tok.vocab_size) as writer:
            return write(writer)
    target, _ = binidx.paths(prefix)
    once = target.with_name(f".{target.stem}.{os.getpid()}.once")
    try:
        with binidx.writing(once, tok.vocab_size) as writer:
            built = write(writer)
        with binidx.writing(prefix, tok.vocab_size) as writer:
            _shuffle(binidx.read(once), writer, repeat, seed or 0)
        return Built(writer.items, writer.tokens, built.empty, built.text_bytes, built.text_tokens)
    finally:
        for path in binidx.paths(once):
            path.unlink(missing_ok=True)


def _shuffle(source: binidx.TokenFile, writer: binidx.Writer, repeat: int, seed: int) -> None:
    for time in range(repeat):
        order = list(range(len(source)))
        random.Random(f"{seed} {time}").shuffle(order)
        for item in order:
            writer.add(source.item(item))


def _write(writer: binidx.Writer, jobs: Iterable[Path | _Encoded]) -> Built:
    empty = text_bytes = text_tokens = 0
    for job in jobs:
        if isinstance(job, Path):
            file = binidx.read(job)
            for item in range(len(file)):
                writer.add(file.item(item))
            continue
        if job.wrong is not None:
            raise errors.DamagedFile(*job.wrong)
        ids, at = np.frombuffer(job.ids, "<i4"), 0
        for count, size, ends in job.sizes:
            if size:
                writer.add(ids[at : at + count], ends)
            else:
                empty += 1
            at, text_bytes = at + count, text_bytes + size
        text_tokens += len(ids)
    if writer.tokens == 0:
        raise errors.InputError(f"the data hold no text: {empty} empty documents are all there is")
    return Built(writer.items, writer.tokens, empty, text_bytes, text_tokens)


def _jobs(sources: list[Path], size: int, progress: Progress | None) -> Iterator[Path | list[Piece]]:
    """Token files as they are, and the pieces of the texts between them, in batches."""
    batch: list[Piece] = []
    weight = before = 0
    for source in sources:
        if source.suffix == ".idx":
            if batch:
                yield batch
            batch, weight = [], 0
            yield source
        else:
            for piece, read in texts.read(source):
                batch.append(piece)
                weight += len(piece.data)
                if weight >= BATCH:
                    if progress is not None:
                        progress(before + read, size)
                    yield batch
                    batch, weight = [], 0
        before += os.path.getsize(source)
    if batch:
        yield batch


def _ahead(pool: ProcessPoolExecutor, jobs: Iterator[Path | list[Piece]], ahead: int) -> Iterator[Path | _Encoded]:
    """The jobs done, in their order, `ahead` of them at most read before they are asked for."""
    waiting: deque[Path | Future[_Encoded]] = deque()
    try:
        for job in jobs:
            waiting.append(job if isinstance(job, Path) else pool.submit(_encode_there, job))
            if len(waiting) >= ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    except BrokenProcessPool:
        raise errors.InputError(
            "a tokenising process was ended from outside, for lack of memory perhaps; try fewer (--workers 1)"
        ) from None


def _result(job: Path | Future[_Encoded]) -> Path | _Encoded:
    return job if isinstance(job, Path) else job.result()


_here: Tokenizer


def _start(vocabulary: Names) -> None:
    """In a new process: it gets its own tokenizer, and leaves Ctrl-C to the one that started it."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _here = tokenizer.load(vocabulary)


def _encode_there(batch: list[Piece]) -> _Encoded:
    return _encode(_here, batch)


def _encode(tok: Tokenizer, batch: list[Piece]) -> _Encoded:
    ids: list[int] = []
    sizes = []
    for piece in batch:
        try:
            text = texts.text_of(piece)
            some = tok.encode(text)
            if tok.decode(some) != text:
                what = f"line {piece.line}: the tokenizer {tok.name} does not give the text back; use another"
                raise errors.DamagedFile(piece.path, what)
        except errors.FileError as error:
            return _Encoded(b"", [], (piece.path, str(error).removeprefix(f"{piece.path}: ")))
        except errors.InputError as error:
            return _Encoded(b"", [], (piece.path, f"line {piece.line}: {error}"))
        if text and piece.ends and tok.end is not None:
            some.append(tok.end)
        ids += some
        sizes.append((len(some), len(text.encode()), piece.ends))
    return _Encoded(np.array(ids, "<i4").tobytes(), sizes)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
