"""What the base says of every row before the first step: log-probabilities, computed once and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from rookery import formats
from rookery.errors import FileError
from rookery.formats.tensor import Tensor as Stored
from rookery.train.parallel import Parallel
from rookery.tune.pairs import PairData, Rows

ID = 16  # bytes of a token in both sequences: progress is told in bytes
LogProbs = Callable[..., Tensor]  # of a batch's tokens, targets, trained [B,2,T] -> sums [B,2]


def name(base: str, quant: str, precision: str, data: PairData) -> str:
    """Of the file that holds what this base, so rounded and so computed, says of these rows."""
    of = json.dumps([base, quant, precision, data.fingerprint()])
    return f"reference-{hashlib.sha256(of.encode()).hexdigest()[:16]}.safetensors"


def found_or_made(path: Path, data: PairData, of: LogProbs, size: int, parallel: Parallel) -> dict[str, Tensor]:
    """float32 [rows,2] of the training and the held-out rows, from `path` or computed, `size` rows at a time.

    Processes share the work; `data.progress` hears of it. What was not complete is computed again. Raises CannotWrite.
    """
    kept = _read(path, data)
    if not parallel.agree(kept is None) and kept is not None:
        return {half: values.to(data.device) for half, values in kept.items()}
    made, done = {}, 0
    total = ID * sum(rows.length(row) for rows in data.halves.values() for row in range(len(rows)))
    for half, rows in data.halves.items():
        made[half] = torch.zeros(len(rows), 2, device=data.device)
        for some in _batches(rows, size, parallel):
            made[half][some] = of(*rows.tensors(some, data.device)).float()
            done += ID * sum(map(rows.length, some))
            if data.progress is not None:
                data.progress(min(total, done * parallel.world), total)
        if parallel.world > 1:
            dist.all_reduce(made[half])
    if parallel.main:
        tensors = {half: Stored.of(values.cpu().numpy()) for half, values in made.items()}
        formats.write(path, tensors, {"rookery.kind": "reference"})
    parallel.barrier()
    return made


def _batches(rows: Rows, size: int, parallel: Parallel) -> list[list[int]]:
    """This process's rows, alike in length in each batch, the longest first: what is too large shows at once."""
    order = sorted(range(len(rows)), key=rows.length, reverse=True)[parallel.rank :: parallel.world]
    return [order[first : first + size] for first in range(0, len(order), size)]


def _read(path: Path, data: PairData) -> dict[str, Tensor] | None:
    """None for what is not there or not whole."""
    try:
        file = formats.read(path)
    except FileError:
        return None
    if {half: t.shape for half, t in file.tensors.items()} != {h: (len(r), 2) for h, r in data.halves.items()}:
        return None
    return {half: torch.from_numpy(t.float32().copy()) for half, t in file.tensors.items()}
