"""The tokens of a run: found or made, and cut into the batch of a step.

B sequences, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rookery import tokenizer
from rookery.errors import InputError
from rookery.tokenizer import Tokenizer
from rookery.train import binidx, corpus, order
from rookery.train.config import Settings
from rookery.train.parallel import Parallel


class Data:
    """Training and held-out tokens of `settings`, as memory-mapped streams."""

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
        self.stream = _tokens(d.train, folder / "train", self.tokenizer, parallel)
        self.held_out = _tokens(d.validation, folder / "validation", self.tokenizer, parallel) if d.validation else None
        self.prime = order.magic_prime(len(self.stream) // self.ctx)
        largest = max(int(t.max()) for t in (self.stream, self.held_out) if t is not None)
        if largest >= self.vocab_size:
            raise InputError(
                f"data.train holds token {largest}, but the vocabulary has {self.vocab_size}: "
                f"the data were made with another tokenizer than {d.tokenizer}"
            )

    def batch(self, step: int, rank: int, world: int) -> list[Tensor]:
        """This process's share of the step's batch: tokens [B,T], targets [B,T] and, with data.reset, resets [B,T]."""
        share = self.rows // world
        first = step * self.rows + rank * share
        starts = [order.start(first + i, self.prime, self.ctx) for i in range(share)]
        window = np.stack([self.stream[s : s + self.ctx + 1] for s in starts]).astype(np.int64)
        out = [window[:, :-1], window[:, 1:]]
        if self.end is not None:
            begins = np.zeros_like(out[0], bool)
            begins[:, 1:] = window[:, :-2] == self.end
            out.append(begins)
        return [torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in out]


def _tokens(sources: tuple[str, ...], prefix: Path, tok: Tokenizer, parallel: Parallel) -> Any:
    """The stream of one binidx, or of one made from the sources once: by the first process, while others wait."""
    if len(sources) == 1 and binidx.exists(sources[0]):
        return binidx.read(sources[0]).tokens
    if parallel.main and not binidx.exists(prefix):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        corpus.build(sources, prefix, tok)
    parallel.barrier()
    return binidx.read(prefix).tokens
