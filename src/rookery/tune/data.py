"""The batch of a tuning step: rows of the data set as tensors. B rows, T tokens.

The rows are laid out once and shuffled anew every epoch, which follows from the step's number, the seed and the size
of the batch: a run goes on after a stop, with other processes or micro batches, as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from rookery.chat.template import Template
from rookery.errors import InputError
from rookery.tokenizer import Tokenizer
from rookery.train.order import samples
from rookery.tune import documents, packing
from rookery.tune.documents import Documents, Progress
from rookery.tune.examples import Writer

MULTIPLE = 16  # rows are padded to a multiple of it, so that there are not so many shapes


class DataSettings(Protocol):
    """What of the settings' [data] is read here."""

    @property
    def train(self) -> tuple[str, ...]: ...
    @property
    def validation(self) -> tuple[str, ...]: ...
    @property
    def hold_out(self) -> float: ...
    @property
    def ctx_len(self) -> int: ...
    @property
    def mask(self) -> str: ...
    @property
    def packing(self) -> bool: ...
    @property
    def fields(self) -> tuple[str, ...]: ...


class TuneData:
    """Training and held-out rows of `data`, written by `template`, on `device`; files made of them lie in `folder`.

    With several processes the first makes it while the others wait, then finds the files. resets_possible: False where
    a row's start is not the empty state, as in state tuning: then every document has a row of its own. Raises FileError
    (DamagedFile names the line) and InputError: no row that can be trained, settings that cannot be.
    """

    def __init__(
        self,
        data: DataSettings,
        tokenizer: Tokenizer,
        template: Template,
        device: torch.device | str,
        batch: int,
        seed: int,
        folder: Path,
        progress: Progress | None = None,
        resets_possible: bool = True,
    ) -> None:
        self.tokenizer, self.device, self.batch_rows, self.seed = tokenizer, device, batch, seed
        self.packing = data.packing and resets_possible
        writer = Writer(tokenizer, template, data.mask)
        made = documents.prepare(folder, data.train, data.validation, writer, data.fields, data.hold_out, progress)
        self.train, self._held = (_Rows(half, data.ctx_len, self.packing, seed) for half in made)
        for rows, key, asked in ((self.train, "data.train", True), (self._held, "data.validation", data.validation)):
            if asked and not len(rows):
                raise InputError(f"{key}: {rows.why_none(data.ctx_len)}")
        self._order = lru_cache(2)(packing.order)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Tensor]:
        """A process's share of the step's batch: tokens and targets int64 [B,T], weights float32 [B,T], and with
        packing resets bool [B,T], true where a document begins. The weights of the whole batch sum to 1, each of its
        trained targets having the same; padding has token, target and weight 0.
        """
        whole = [self._row(n) for n in samples(step, self.batch_rows)]
        return self._tensors(self.train, whole, whole[rank::world])

    def _row(self, sample: int) -> int:
        epoch, at = divmod(sample - 1, len(self.train))
        return self._order(len(self.train), self.seed, epoch)[at]

    def held_out(self, limit: int = 0) -> Iterator[list[Tensor]]:
        """The held-out rows in their order, as lists like `batch`'s; all their weights sum to 1.

        limit: in tokens, as `packing.spread` has it.
        """
        rows = self._held
        chosen = packing.spread(len(rows), rows.tokens, limit)
        total = int(rows.targets[chosen].sum()) if chosen else 0
        for first in range(0, len(chosen), self.batch_rows):
            some = chosen[first : first + self.batch_rows]
            yield self._tensors(rows, some, some, total)

    def steps_per_epoch(self, batch: int) -> int:
        """Steps of `batch` rows until every row was read; the last one begins the next epoch where they do not fit."""
        return -(-len(self.train) // batch)

    def summary(self) -> str:
        """How many there are, and what became of those that do not fit, in one line."""
        t, h = self.train, self._held
        what = f"{len(t.documents):,} documents in {len(t):,} rows, {int(t.targets.sum()):,} trained tokens"
        lost = f"{t.cut:,} cut at ctx_len, {t.left_out:,} left out with nothing to train"
        return f"{what}; {lost}; {len(h.documents):,} documents held out"

    def fingerprint(self) -> str:
        """Tells these rows from others: by tokens, marks, and how they are cut and laid."""
        return self.train.fingerprint()

    def texts(self, step: int) -> list[str]:
        """The step's batch read back: a text per row, what is trained in «», documents apart by a line ---."""
        tokens, targets, weights, *resets = (x.tolist() for x in self.batch(step))
        begins = resets[0] if resets else [[False] * len(row) for row in tokens]
        rows = (self._row(n) for n in samples(step, self.batch_rows))
        return [
            read_back(self.tokenizer, *(row[: self.train.length(which)] for row in read))
            for which, *read in zip(rows, tokens, targets, weights, begins, strict=True)
        ]

    def _tensors(self, rows: _Rows, whole: Sequence[int], share: Sequence[int], total: int = 0) -> list[Tensor]:
        """Rows `share` of the batch `whole`, each target of weight 1 / total (0: the trained ones of the batch)."""
        longest = rows.longest if self.packing else max(map(rows.length, whole))
        shape = len(share), -(-longest // MULTIPLE) * MULTIPLE
        tokens, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        weights, resets = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        one = 1 / (total or int(rows.targets[list(whole)].sum()))
        for b, row in enumerate(share):
            at = 0
            for begin, n in rows.windows(row):
                ids, trained = rows.documents.tokens, rows.documents.trained
                tokens[b, at : at + n] = ids[begin : begin + n]
                targets[b, at : at + n] = ids[begin + 1 : begin + n + 1]
                weights[b, at : at + n] = trained[begin + 1 : begin + n + 1] * one
                resets[b, at] = True
                at += n
        made = [tokens, targets, weights, *([resets] if self.packing else [])]
        return [torch.from_numpy(x).to(self.device) for x in made]


class _Rows:
    """Documents laid out: `targets` [R], the trained ones of each row, and the windows that lie in it."""

    def __init__(self, found: Documents, ctx_len: int, pack: bool, seed: int) -> None:
        self.documents, self._windows = found, packing.windows(found, ctx_len)
        lengths = self._windows.lengths
        self._rows = packing.packed(lengths, ctx_len, seed) if pack else packing.single(len(lengths))
        self.targets = np.array([self._windows.targets[row].sum() for row in self._rows], np.int64)
        self.cut, self.left_out = self._windows.cut, self._windows.left_out
        sizes = [self.length(row) for row in range(len(self))]
        self.longest, self.tokens = max(sizes, default=0), sum(sizes)

    def __len__(self) -> int:
        return len(self._rows)

    def length(self, row: int) -> int:
        """Tokens, without padding."""
        return int(self._windows.lengths[self._rows[row]].sum())

    def windows(self, row: int) -> list[tuple[int, int]]:
        """Where each begins, and its length."""
        return [(int(self._windows.begins[w]), int(self._windows.lengths[w])) for w in self._rows[row]]

    def why_none(self, ctx_len: int) -> str:
        if not len(self.documents):
            return "there is no row in it"
        if self.cut == self.left_out:
            longest = int(self.documents.sizes.max()) - 1
            return (
                f"nothing would be trained: ctx_len {ctx_len} cuts the reply off every one of its {self.cut} rows; "
                f"{longest} would hold the longest"
            )
        return f"nothing would be trained: none of its {len(self.documents)} rows has a token to learn"

    def fingerprint(self) -> str:
        check = crc32(self.documents.tokens.astype("<i4").tobytes())
        check = crc32(self.documents.trained.tobytes(), check)
        layout = [(int(self._windows.begins[w]), int(self._windows.lengths[w])) for row in self._rows for w in row]
        check = crc32(repr(layout).encode(), check)
        return f"{len(self.documents)} documents, {len(self.documents.tokens)} tokens, crc32 {check:08x}"


def read_back(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    targets: Sequence[int],
    weights: Sequence[float],
    begins: Sequence[bool] = (),
) -> str:
    """A row as text: what is trained in «», its end told as <end>, documents apart by a line ---."""
    cuts = [0, *(t for t, begin in enumerate(begins) if begin and t), len(tokens)]
    out = []
    for first, last in pairwise(cuts):
        ids = [tokens[first], *targets[first:last]]
        learnt = [False, *(weight > 0 for weight in weights[first:last])]
        runs = [0, *(n for n in range(1, len(ids)) if learnt[n] != learnt[n - 1]), len(ids)]
        texts = [(learnt[a], _decode(tokenizer, ids[a:b])) for a, b in pairwise(runs)]
        out.append("".join(f"«{text}»" if marked else text for marked, text in texts))
    return "\n---\n".join(out)


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    pieces, end = [], tokenizer.end
    while end is not None and end in ids:
        at = ids.index(end)
        pieces += [tokenizer.decode(ids[:at]), "<end>"]
        ids = ids[at + 1 :]
    return "".join([*pieces, tokenizer.decode(ids)])
