"""The data of preferences: pairs of replies to one prompt, or single replies that are said to be good or bad.

B rows, T tokens. A row holds two sequences. For pairs: the prompt with the chosen and with the rejected reply. For
single replies (KTO): the prompt with its reply and, for the estimate of the policy's divergence, with the reply of
another row, the next that has another prompt. (The paper, arXiv 2402.01306, takes the other replies of a micro batch;
which row goes with which is settled for the whole data set here, so that the reference is computed once and the cut of
a step changes nothing.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rookery.chat.template import Template
from rookery.errors import InputError
from rookery.tokenizer import Tokenizer
from rookery.train import texts
from rookery.train.order import samples
from rookery.tune import documents, packing
from rookery.tune.data import MULTIPLE, DataSettings, read_back
from rookery.tune.documents import Documents, Progress
from rookery.tune.preferences import WANTED, PairWriter

Array = npt.NDArray[Any]


class PairData:
    """Training and held-out rows of `data` for an objective: "dpo", "orpo", "simpo" (pairs) or "kto" (single replies).

    As tune.data.TuneData, of which this has the methods. `reference` and `point` are set by tune.objectives where the
    objective needs them. A prompt that is too long for ctx_len loses its beginning, in both sequences of a pair alike;
    a row whose reply does not fit is left out. Raises FileError (DamagedFile names the line) and InputError.
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
        objective: str = "dpo",
    ) -> None:
        self.tokenizer, self.device, self.batch_rows, self.seed = tokenizer, device, batch, seed
        self.progress = progress
        self.reference: dict[str, Tensor] = {}  # float32 [rows,2] by half
        self.point: Callable[[list[Tensor], bool], Tensor] | None = None
        _only_json([*data.train, *data.validation])
        self.kind = "labels" if objective == "kto" else "pairs"
        if data.fields and len(data.fields) != len(WANTED[self.kind]):
            raise InputError(f"data.fields = {[*data.fields]}: wanted the names of {', '.join(WANTED[self.kind])}")
        writer: Any = PairWriter(tokenizer, template, self.kind)
        made = documents.prepare(folder, data.train, data.validation, writer, data.fields, data.hold_out, progress)
        self.halves = {
            name: Rows(half, data.ctx_len, self.kind) for name, half in zip(("train", "validation"), made, strict=True)
        }
        for name, asked in (("train", True), ("validation", bool(data.validation))):
            if asked and not len(self.halves[name]):
                raise InputError(f"data.{name}: {self.halves[name].why_none()}")
        self._order = lru_cache(2)(packing.order)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Tensor]:
        """A process's share of the step's batch: tokens and targets int64 [B,2,T], trained bool [B,2,T], share float32
        [B], 1 / rows of the whole batch; for KTO good bool [B]; then, where they are set, the reference [B,2] and
        KTO's point [B].
        """
        rows = [self._row(n) for n in samples(step, self.batch_rows, rank, world)]
        return self._completed("train", rows, 1 / self.batch_rows, world > 1)

    def held_out(self, limit: int = 0) -> Iterator[list[Tensor]]:
        """The held-out rows in their order, as lists like `batch`'s; all their shares sum to 1.

        limit: in tokens, as `packing.spread` has it.
        """
        rows = self.halves["validation"]
        chosen = packing.spread(len(rows), sum(2 * rows.length(row) for row in range(len(rows))), limit)
        for first in range(0, len(chosen), self.batch_rows):
            yield self._completed("validation", chosen[first : first + self.batch_rows], 1 / len(chosen), False)

    def steps_per_epoch(self, batch: int) -> int:
        """Steps of `batch` rows until every row was read; the last one begins the next epoch where they do not fit."""
        return -(-len(self.halves["train"]) // batch)

    def fingerprint(self) -> str:
        """Tells these rows, the held-out ones among them, from others."""
        return "; ".join(rows.fingerprint() for rows in self.halves.values())

    def summary(self) -> str:
        """How many there are, and what became of those that do not fit, in one line."""
        t, h = self.halves.values()
        what = "pairs" if self.kind == "pairs" else "replies"
        lost = f"{t.cut:,} prompts cut at ctx_len, {t.left_out:,} {what} left out as their reply does not fit"
        return f"{len(t):,} {what}; {lost}; {len(h):,} held out"

    def texts(self, step: int) -> list[str]:
        """The step's batch read back: a text per row, its two sequences apart by a line ---, replies in «»."""
        tokens, targets, trained, *_ = (x.tolist() for x in self.batch(step))
        return [
            "\n---\n".join(self._text(*sequence) for sequence in zip(*row, strict=True))
            for row in zip(tokens, targets, trained, strict=True)
        ]

    def _text(self, tokens: list[int], targets: list[int], trained: list[bool]) -> str:
        size = len(trained) - trained[::-1].index(True)  # behind the last trained target there is padding
        return read_back(self.tokenizer, tokens[:size], targets[:size], trained[:size])

    def _row(self, sample: int) -> int:
        count = len(self.halves["train"])
        epoch, at = divmod(sample - 1, count)
        return self._order(count, self.seed, epoch)[at]

    def _completed(self, half: str, rows: Sequence[int], share: float, shared: bool) -> list[Tensor]:
        tensors = self.halves[half].tensors(rows, self.device)
        tensors.insert(3, torch.full((len(rows),), share, device=self.device))
        if self.reference:
            tensors.append(self.reference[half][list(rows)])
        if self.point is not None:
            tensors.append(self.point(tensors, shared))
        return tensors


class Rows:
    """Half of the data laid out: `slots` [R][2], the documents that give the prompt's and the reply's tokens of each
    sequence, and how many of the prompt's last tokens there is room for.
    """

    def __init__(self, found: Documents, ctx_len: int, kind: str) -> None:
        self.documents, self.ctx_len, self.kind = found, ctx_len, kind
        self._first = np.array([self._begin_of_reply(d) for d in range(len(found))], np.int64)
        self._reply = found.sizes - self._first
        if kind == "pairs":
            pairs = [(d, d + 1) for d in range(0, len(found), 2)]
            fitting = [pair for pair in pairs if self._reply[list(pair)].max() <= ctx_len]
            self.slots = [[(d, d, self._room(d, pair)) for d in pair] for pair in fitting]
            self.left_out = len(pairs) - len(fitting)
        else:
            fits = [d for d in range(len(found)) if self._reply[d] <= ctx_len]
            others = self._others(fits)
            self.slots = [
                [(d, d, self._room(d, [d])), (d, o, self._room(d, [o]))] for d, o in zip(fits, others, strict=True)
            ]
            self.left_out = len(found) - len(fits)
        self.cut = sum(row[0][2] < self._first[row[0][0]] for row in self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def length(self, row: int) -> int:
        """Tokens of the longer sequence, without padding."""
        return max(int(room + self._reply[reply]) - 1 for _, reply, room in self.slots[row])

    def tensors(self, rows: Sequence[int], device: torch.device | str) -> list[Tensor]:
        """Tokens and targets int64 [B,2,T], trained bool [B,2,T]; of single replies also good bool [B]."""
        length = -(-max(map(self.length, rows)) // MULTIPLE) * MULTIPLE
        tokens, targets = np.zeros((2, len(rows), 2, length), np.int64)
        trained = np.zeros((len(rows), 2, length), np.bool_)
        for b, row in enumerate(rows):
            for s, slot in enumerate(self.slots[row]):
                ids, marks = self._sequence(*slot)
                n = len(ids) - 1
                tokens[b, s, :n], targets[b, s, :n], trained[b, s, :n] = ids[:-1], ids[1:], marks[1:]
        made = [tokens, targets, trained]
        if self.kind == "labels":
            made.append(np.array([self._good(self.slots[row][0][0]) for row in rows]))
        return [torch.from_numpy(x).to(device) for x in made]

    def why_none(self) -> str:
        if not len(self.documents):
            return "there is no row in it"
        return (
            f"no reply fits into ctx_len {self.ctx_len} with a token before it; {int(self._reply.max())} would hold "
            "the longest"
        )

    def fingerprint(self) -> str:
        """By tokens, marks, and how they are laid."""
        check = crc32(np.asarray(self.documents.tokens, "<i4").tobytes())
        check = crc32(np.asarray(self.documents.trained).tobytes(), check)
        check = crc32(repr(self.slots).encode(), check)
        return f"{len(self)} rows of {self.kind}, {len(self.documents.tokens)} tokens, crc32 {check:08x}"

    def _marks(self, document: int) -> Array:
        begin, size = self.documents.begins[document], self.documents.sizes[document]
        marks: Array = self.documents.trained[begin : begin + size]
        return marks

    def _good(self, document: int) -> bool:
        return bool(self._marks(document)[0])

    def _begin_of_reply(self, document: int) -> int:
        return 1 + int(np.argmax(self._marks(document)[1:]))

    def _room(self, document: int, replies: Sequence[int]) -> int:
        """The prompt's tokens that stay, where the longest of `replies` must fit behind it."""
        return int(min(self._first[document], self.ctx_len + 1 - self._reply[list(replies)].max()))

    def _others(self, fits: Sequence[int]) -> list[int]:
        """For each of these the next, around the end, that has another prompt; without one, the next."""
        prompts = [self._ids(d)[: self._first[d]].tobytes() for d in fits]
        found, count = [0] * len(fits), len(fits)
        different = 0
        for i in reversed(range(2 * count)):
            here, after = i % count, (i + 1) % count
            if prompts[here] != prompts[after] or prompts[here] == prompts[different]:
                different = after
            found[here] = different
        return [fits[i] for i in found]

    def _ids(self, document: int) -> Array:
        begin = self.documents.begins[document]
        ids: Array = self.documents.tokens[begin : begin + self.documents.sizes[document]]
        return ids

    def _sequence(self, prompt: int, reply: int, room: int) -> tuple[Array, Array]:
        """Ids and marks of a prompt's last `room` tokens and a reply."""
        first, begin = self._first[prompt], self._first[reply]
        ids = np.concatenate([self._ids(prompt)[first - room : first], self._ids(reply)[begin:]])
        return ids, np.concatenate([np.zeros(room, np.bool_), self._marks(reply)[begin:]])


def _only_json(sources: Sequence[str]) -> None:
    """Raises InputError for texts and token files, in which nothing is compared."""
    for path in texts.find(sources):
        if not path.name.removesuffix(".gz").endswith(texts.JSON):
            raise InputError(f"{path}: wanted .jsonl with the replies that are compared; this has none")
