"""The tokens of a run: found or made, and cut into the batch of a step.

B sequences, T tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rookery import tokenizer
from rookery.errors import InputError
from rookery.formats.atomic import atomic_write
from rookery.tokenizer import Tokenizer
from rookery.train import binidx, corpus, order
from rookery.train.config import Settings
from rookery.train.parallel import Parallel

LOOKED_AT = 1 << 26  # tokens of a stream whose ids are checked before the first step; the others are as they are read

Ids = npt.NDArray[Any]


class Data:
    """Training and held-out tokens of `settings`, as memory-mapped streams.

    Raises FileError, TokenizerError and InputError: no text, too little of it, a vocabulary that does not fit.
    """

    def __init__(self, settings: Settings, parallel: Parallel) -> None:
        d = settings.data
        self.ctx, self.rows = d.ctx_len, settings.optimiser.batch
        self.device = parallel.device
        self.tokenizer: Tokenizer = tokenizer.load(d.tokenizer)
        self.vocab_size = settings.model.vocab_size or self.tokenizer.vocab_size
        self.end = self.tokenizer.end if d.reset else None
        if d.reset and self.end is None:
            raise InputError(f"data.reset: the tokenizer {d.tokenizer} has no end of text, so no document has a begin")
        folder = Path(settings.run.out) / "data"
        self.stream = self._tokens("train", d.train, folder, d.tokenizer, parallel)
        self.held_out = None
        if d.validation:
            self.held_out = self._tokens("validation", d.validation, folder, d.tokenizer, parallel)
            if len(self.held_out) < 2:
                raise InputError(f"data.validation has {len(self.held_out)} tokens: 2 or more are wanted")
        self.prime = order.prime_for(len(self.stream), self.ctx)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Tensor]:
        """A process's share of the step's batch: tokens [B,T], targets [B,T] and, with data.reset, resets [B,T]."""
        starts = [order.start(n, self.prime, self.ctx) for n in order.samples(step, self.rows, rank, world)]
        window = np.stack([self.stream[s : s + self.ctx + 1] for s in starts]).astype(np.int64)
        self._check("data.train", window)
        out = [window[:, :-1], window[:, 1:]]
        if self.end is not None:
            begins = np.zeros_like(out[0], bool)
            begins[:, 1:] = window[:, :-2] == self.end
            out.append(begins)
        return [torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in out]

    def fingerprint(self) -> str:
        """Tells this stream from others, by its length and pieces from all over it."""
        n, check = len(self.stream), 0
        for begin in range(0, n, max(1024, n // 64)):
            check = crc32(np.asarray(self.stream[begin : begin + 1024], "<i4").tobytes(), check)
        return f"{n} tokens, crc32 {check:08x}"

    def _tokens(self, name: str, sources: tuple[str, ...], folder: Path, vocabulary: str, parallel: Parallel) -> Ids:
        """The stream of one token file, or of one made from the sources once: by the first process, as others wait."""
        if len(sources) == 1 and binidx.exists(sources[0]):
            stream: Ids = binidx.read(sources[0]).tokens
        else:
            prefix = folder / name
            if parallel.main:
                _build(prefix, sources, vocabulary)
            parallel.barrier()
            stream = binidx.read(prefix).tokens
        self._check(f"data.{name}", stream[:LOOKED_AT])
        return stream

    def _check(self, key: str, ids: Ids) -> None:
        if ids.size and not 0 <= (least := int(ids.min())) <= (most := int(ids.max())) < self.vocab_size:
            raise InputError(
                f"{key} holds token {least if least < 0 else most}, but the vocabulary has {self.vocab_size}: "
                "data.tokenizer (or model.vocab_size) is not that of the data"
            )


def _build(prefix: Path, sources: tuple[str, ...], vocabulary: str) -> None:
    """Tokenise `sources` unless that was done; PREFIX.json says of what the token file was made."""
    note = prefix.with_suffix(".json")
    of = json.dumps({"sources": sources, "tokenizer": vocabulary})
    if binidx.exists(prefix) and note.is_file() and note.read_text("utf-8") == of:
        return
    prefix.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    corpus.build(sources, prefix, vocabulary)
    with atomic_write(note) as file:
        file.write(of.encode())
