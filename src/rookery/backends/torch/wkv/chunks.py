"""How a sequence is cut into chunks, and how documents that begin inside one keep apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


def to_chunks(x: Tensor, chunk: int) -> Tensor:
    """[B,T,H,N] -> [n,B,H,chunk,N], contiguous; zeros behind the last token: nothing decays, nothing is written."""
    batch, length, heads, size = x.shape
    if missing := -length % chunk:
        x = pad(x, (0, 0, 0, 0, 0, missing))
    return x.reshape(batch, -1, chunk, heads, size).permute(1, 0, 3, 2, 4).contiguous()


def from_chunks(x: Tensor, length: int) -> Tensor:
    """[n,B,H,chunk,N] -> [B,T,H,N], contiguous."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length].contiguous()


@dataclass(slots=True)
class Segments:
    """Which tokens of a chunk belong together, as factors of 0 and 1 that broadcast over [n,B,H,chunk,N]."""

    same: Tensor  # [n,B,1,chunk,chunk]: of one document
    head: Tensor  # [n,B,1,chunk,1]: before the first reset, so the state at the chunk's start reaches it
    tail: Tensor  # [n,B,1,chunk,1]: after the last reset, so it reaches the state at the chunk's end
    whole: Tensor  # [n,B,1,1,1]: no reset at all

    @classmethod
    def of(cls, resets: Tensor, chunk: int, dtype: torch.dtype) -> Segments:
        """From resets [B,T]."""
        seg = to_chunks(resets[:, :, None, None].int(), chunk).cumsum(-2)  # [n,B,1,chunk,1]
        last = seg[..., -1:, :]
        made = (seg == seg.mT, seg == 0, seg == last, last == 0)
        return cls(*(x.to(dtype) for x in made))
