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
from rookery.train import binidx, corpus, order, texts
from rookery.train.config import Settings
from rookery.train.parallel import Parallel
from rookery.train.validate import begins

LOOKED_AT = 1 << 26  # tokens of a stream whose ids are checked before the first step; the others are as they are read

Ids = npt.NDArray[Any]


class Data:
    """Training and held-out tokens of `settings`, as memory-mapped streams.

    What is no token file is made into one first, in OUT/data, by the first process while the others wait; `progress`
    hears of it. Raises FileError, TokenizerError and InputError: no text, too little, a vocabulary that does not fit.
    """

    def __init__(self, settings: Settings, parallel: Parallel, progress: corpus.Progress | None = None) -> None:
        d = settings.data
        self.ctx, self.rows = d.ctx_len, settings.optimiser.batch
        self.device = parallel.device
        self.tokenizer: Tokenizer = tokenizer.load(d.tokenizer)
        self.vocab_size = settings.model.vocab_size or self.tokenizer.vocab_size
        self.end = self.tokenizer.end if d.reset else None
        if d.reset and self.end is None:
            raise InputError(f"data.reset: the tokenizer {d.tokenizer} has no end of text, so no document has a begin")
        folder, named = Path(settings.run.out) / "data", {"train": d.train, "validation": d.validation}
        if parallel.main:
            for name, sources in named.items():
                if sources and not _ready(sources):
                    _build(folder / name, sources, d.tokenizer, progress)
        parallel.barrier()
        self.stream, self.held_out = (self._tokens(name, sources, folder) for name, sources in named.items())
        if d.validation and len(self.held_out) < 2:
            raise InputError(f"data.validation has {len(self.held_out)} tokens: 2 or more are wanted")
        self.prime = order.prime_for(len(self.stream), self.ctx)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Tensor]:
        """A process's share of the step's batch: tokens [B,T], targets [B,T] and, with data.reset, resets [B,T]."""
        starts = [order.start(n, self.prime, self.ctx) for n in order.samples(step, self.rows, rank, world)]
        window = np.stack([self.stream[s : s + self.ctx + 1] for s in starts]).astype(np.int64)
        self._check("data.train", window)
        ids = torch.from_numpy(window).to(self.device)
        out = [ids[:, :-1].contiguous(), ids[:, 1:].contiguous()]
        return out if self.end is None else [*out, begins(out[0], self.end)]

    def fingerprint(self) -> str:
        """Tells this stream from others, by its length and pieces from all over it."""
        n, check = len(self.stream), 0
        for begin in range(0, n, max(1024, n // 64)):
            check = crc32(np.asarray(self.stream[begin : begin + 1024], "<i4").tobytes(), check)
        return f"{n} tokens, crc32 {check:08x}"

    def _tokens(self, name: str, sources: tuple[str, ...], folder: Path) -> Ids:
        """The stream of the sources, which are a token file or made into one; empty without sources."""
        if not sources:
            return np.empty(0, np.int64)
        stream: Ids = binidx.read(sources[0] if _ready(sources) else folder / name).tokens
        self._check(f"data.{name}", stream[:LOOKED_AT])
        return stream

    def _check(self, key: str, ids: Ids) -> None:
        if ids.size and not 0 <= (least := int(ids.min())) <= (most := int(ids.max())) < self.vocab_size:
            raise InputError(
                f"{key} holds token {least if least < 0 else most}, but the vocabulary has {self.vocab_size}: "
                "data.tokenizer (or model.vocab_size) is not that of the data"
            )


def _ready(sources: tuple[str, ...]) -> bool:
    return len(sources) == 1 and binidx.exists(sources[0])


def _build(prefix: Path, sources: tuple[str, ...], vocabulary: str, progress: corpus.Progress | None) -> None:
    """Tokenise `sources` unless that was done; PREFIX.json says of what the token file was made."""
    note = prefix.with_suffix(".json")
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in texts.find(sources)]
    of = json.dumps({"tokenizer": vocabulary, "files": files})
    if binidx.exists(prefix) and note.is_file() and note.read_text("utf-8") == of:
        return
    prefix.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    corpus.build(sources, prefix, vocabulary, progress=progress)
    with atomic_write(note) as file:
        file.write(of.encode())
