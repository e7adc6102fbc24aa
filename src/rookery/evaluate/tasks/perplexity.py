"""How well a text is foreseen: perplexity by token, word and byte, bits per byte, and the loss by position.

Words, bytes and the three figures over them are those of lm-eval's rolling tasks. Only bits per byte compare models of
different tokenizers. The modes differ in what is read before a token:

- carried: all of its document before it, in one pass; a recurrent model needs no window.
- sliding: a window moves on by `stride` tokens; each token is scored in the first window that holds it.
- chunks:  each `window` tokens are read from an empty state, as in uncheatable-eval.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import DamagedFile, InputError, TooLarge
from rookery.evaluate import data, statistics
from rookery.evaluate.requests import Answer, Coder, Passage, Read
from rookery.evaluate.settings import setting
from rookery.evaluate.task import Item

FILES = ("perplexity.jsonl", "perplexity.txt")
SOURCE = "any text will do: .txt, or .jsonl with {'text': ...} a document (both also .gz), or a .json list of texts"
MODES = ("carried", "sliding", "chunks")
LARGEST = 1 << 30  # bytes of a document, unpacked
BLOCKS, LEAST = 32, 64  # of a document, for the error of a single one: at most so many, of at least so many tokens
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Settings:
    mode: str = setting("carried", "carried, sliding or chunks")
    window: int = setting(1024, "tokens of a window or chunk")
    stride: int = setting(0, "tokens a window moves on by (0: half a window)")
    tokens: int = setting(0, "of each document, at most (0: all)")

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"perplexity.mode={self.mode!r}: wanted {', '.join(MODES)}")
        if self.window < 2 or not 0 <= self.stride <= self.window or self.tokens < 0:
            raise InputError("perplexity: wanted window >= 2, stride from 0 to the window, and tokens >= 0")


@dataclass(frozen=True)
class Document(Item):
    """A text in windows. `sizes`: bytes of each of its tokens; `starts`: of the windows, in tokens."""

    sizes: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    starts: tuple[int, ...] = ()


class Perplexity:
    name = "perplexity"

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings, self.path = settings, data.needed(self.name, path, FILES, SOURCE)

    def items(self, coder: Coder) -> Iterator[Document]:
        s, size = self.settings, _sizes(coder)
        for line, text in documents(self.path):
            ids, whole = coder.encode(text), text.encode()
            if s.tokens and len(ids) > s.tokens:
                ids = ids[: s.tokens]
                whole = coder.decode_bytes(ids)
            length = len(ids) if s.mode == "carried" else s.window
            step = max(1, length if s.mode != "sliding" else s.stride or s.window // 2)
            starts = tuple(range(0, max(1, len(ids) - (length - step)), step))
            about = {
                "line": line,
                "bytes": len(whole),
                "words": len(re.split(r"\s+", whole.decode("utf-8", "replace"))),
                "vocab": coder.vocab_size,
            }
            windows = tuple(Passage(tuple(ids[at : at + length])) for at in starts)
            yield Document(windows, about, np.asarray([size(id) for id in ids], np.int64), starts)

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        """Sums of log-probabilities (nats); `bytes` and `words` of the tokens that something stands before.

        `blocks`: [tokens, bytes, sum] of stretches; `positions`: [tokens, sum, sum of squares] with 0, 1, 2 to 3,
        4 to 7, ... tokens before them in the window.
        """
        assert isinstance(item, Document)
        logprobs, before = np.full(len(item.sizes), np.nan), np.zeros(len(item.sizes), np.int64)
        for at, read in zip(item.starts, answers, strict=True):
            assert isinstance(read, Read)
            new = np.isnan(logprobs[at : at + len(read.ids)])
            logprobs[at : at + len(read.ids)][new] = read.logprobs[new]
            before[at : at + len(read.ids)][new] = np.flatnonzero(new)
        scored = ~np.isnan(logprobs)
        found, sizes, before = logprobs[scored], item.sizes[scored], before[scored]
        share = 1 if scored.all() else float(sizes.sum()) / max(1, int(item.sizes.sum()))
        return {
            "tokens": len(found),
            "bytes": item.about["bytes"] * share,
            "words": item.about["words"] * share,
            "logprob": math.fsum(found),
            "blocks": _blocks(found, sizes),
            "positions": _positions(found, before),
        }

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Standard errors are over documents; of a single one over its blocks."""
        loss = {of: statistics.ratio(*columns(rows, of)) for of in ("tokens", "words", "bytes")}
        bits, error = (figure / math.log(2) for figure in loss["bytes"])
        figures = {"perplexity": loss["tokens"], "word_perplexity": loss["words"], "byte_perplexity": loss["bytes"]}
        said: dict[str, Any] = {}
        for name, (nats, nats_error) in figures.items():
            said[name] = math.exp(min(700.0, nats))
            said[name + "_stderr"] = said[name] * nats_error
        said |= {"bits_per_byte": bits, "bits_per_byte_stderr": error, "compression": 100 * bits / 8}
        said |= {of: sum(row[of] for row in rows) for of in ("tokens", "words", "bytes")}
        return {**said, "chance": max((row["vocab"] for row in rows), default=0), "tables": [_by_position(rows)]}


def documents(path: data.Path) -> Iterator[tuple[int, str]]:
    """(line or number from 1, text) of a file; see SOURCE. Raises FileError subclasses."""
    kind = os.path.splitext(os.fspath(path).removesuffix(".gz"))[1]
    if kind == ".jsonl":
        for line, row in data.rows(path, {"text": str}):
            yield line, row["text"]
        return
    with data.opened(path) as file:
        whole = file.read(LARGEST + 1)
    if len(whole) > LARGEST:
        raise TooLarge(path, f"over {LARGEST >> 20} MB of text in one document; split it, one a line in .jsonl")
    try:
        text = whole.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"is no UTF-8 (byte {error.start}); save it as UTF-8") from None
    yield from _listed(path, text) if kind == ".json" else [(1, text)]


def _listed(path: data.Path, text: str) -> Iterator[tuple[int, str]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"is no JSON ({error}); wanted a list of texts") from None
    if not isinstance(found, list):
        raise DamagedFile(path, "is no list; wanted one of texts, or of objects with 'text'")
    for number, entry in enumerate(found, 1):
        row = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(row, dict):
            raise DamagedFile(path, f"entry {number}: is neither a text nor an object with 'text'")
        yield number, data.field(path, number, row, "text", str)


def columns(rows: Sequence[dict[str, Any]], of: str) -> tuple[Sequence[float], Sequence[float]]:
    """Nats lost [n] and how many tokens, words or bytes [n] they are of: by document, or by block of a single one."""
    if len(rows) != 1:
        return [-row["logprob"] for row in rows], [row[of] for row in rows]
    blocks = np.asarray(rows[0]["blocks"], float).reshape(-1, 3)
    by = blocks[:, 0 if of == "tokens" else 1]
    return (-blocks[:, 2]).tolist(), (by * rows[0][of] / max(1.0, by.sum())).tolist()  # words go by bytes


def _sizes(coder: Coder) -> Callable[[int], int]:
    known: dict[int, int] = {}

    def size(id: int) -> int:
        if id not in known:
            known[id] = len(coder.decode_bytes([id]))
        return known[id]

    return size


def _blocks(logprobs: Array, sizes: Array) -> list[list[float]]:
    parts = max(1, min(BLOCKS, len(logprobs) // LEAST))
    split = zip(np.array_split(logprobs, parts), np.array_split(sizes, parts), strict=True)
    return [[len(of), int(size.sum()), math.fsum(of)] for of, size in split]


def _positions(logprobs: Array, before: Array) -> list[list[float]]:
    bucket = np.frexp(before)[1]  # the bits of a number: 0, 1, 2 for 2 to 3, ...
    found = [logprobs[bucket == i] for i in range(int(bucket.max(initial=-1)) + 1)]
    return [[len(of), math.fsum(of), math.fsum(of**2)] for of in found]


def _by_position(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    lines: list[list[Any]] = []
    for i in range(max((len(row["positions"]) for row in rows), default=0)):
        n, total, squares = np.asarray([row["positions"][i] for row in rows if len(row["positions"]) > i]).sum(0)
        if n:
            spread = math.sqrt(max(0.0, squares / n - (total / n) ** 2) / max(1, n - 1)) if n > 1 else math.nan
            first, last = (1 << i) >> 1, (1 << i) - 1
            lines.append([first, max(first, last), int(n), -total / n, spread])
    names = ["from", "to", "tokens", "nats a token", "stderr over tokens"]
    return {"title": "loss by tokens read before, in the window", "columns": names, "rows": lines}


TASK = Perplexity
