"""Padded batches: a masked token leaves no trace, so each row is what it would be alone.

B sequences, T positions, L at most T, C width. RWKV reads from left to right and forgets nothing, so padding cannot be
masked out of a sum as attention does it. Real tokens are moved to the right end of their rows instead, where the last
one is every row's last and the first one begins a document (`resets`); and what comes out is moved back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rookery.backends.torch.module import States
from rookery.errors import InputError

# x [B,T,C], states (None: nothing seen), resets [B,T] -> several [B,T,..] of the same positions, states
Run = Callable[[Tensor, States | None, Tensor | None], tuple[list[Tensor], States]]


def columns(mask: Tensor | None, x: Any) -> Tensor | None:
    """The last T columns of the attention mask of x [B,T,..], bool; None where nothing is masked. Raises InputError."""
    if mask is None:
        return None
    batch, length = x.shape[:2]
    if mask.ndim != 2 or len(mask) != batch or mask.shape[1] < length:
        raise InputError(
            f"attention_mask of shape {list(mask.shape)}; [{batch}, {length}] is wanted, or longer to the left"
        )
    mask = mask[:, -length:].bool()
    return None if bool(mask.all()) else mask


def masked(
    run: Run, start: Callable[[int], States], x: Tensor, states: States | None, mask: Tensor, resets: Tensor | None
) -> tuple[list[Tensor], States]:
    """`run` over the real tokens of each row; zeros come out at the masked positions. `start(B)` are first states."""
    counts = mask.sum(1)
    if states is None and bool(counts.min() > 0):
        return _aligned(run, x, states, mask, resets, counts)
    # Here a state that counts stands before the padding, which `resets` would forget: rows of one length at a time.
    states = start(len(x)) if states is None else states
    out: list[Tensor] = []
    for count in sorted(set(counts.tolist())):
        at = (counts == count).nonzero()[:, 0]
        if not count:
            continue
        few = None if resets is None else resets[at]
        mine = [{name: piece[at] for name, piece in layer.items()} for layer in states]
        made, after = _aligned(run, x[at], mine, mask[at], few, counts[at])
        out = out or [y.new_zeros(len(x), *y.shape[1:]) for y in made]
        out = [whole.index_copy(0, at, y) for whole, y in zip(out, made, strict=True)]
        states = [
            {name: _with(piece, at, new[name]) for name, piece in layer.items()}
            for layer, new in zip(states, after, strict=True)
        ]
    if not out:
        raise InputError("attention_mask masks every token; at least one must be real")
    return out, states


def _aligned(
    run: Run, x: Tensor, states: States | None, mask: Tensor, resets: Tensor | None, counts: Tensor
) -> tuple[list[Tensor], States]:
    """One run over all rows, their real tokens at the right; without states only, unless all rows are equally long."""
    length = int(counts.max())
    order = mask.long().argsort(dim=1, stable=True)[:, -length:]  # where each moved token was
    padded = length - counts[:, None]
    begins = None if resets is None else resets.gather(1, order)
    if states is None:
        first = torch.arange(length, device=x.device) == padded
        begins = first if begins is None else begins | first
    made, after = run(x.gather(1, _wide(order, x)), states, begins)
    padding = ~mask.gather(1, order)[..., None]
    moved = [y.masked_fill(padding, 0) for y in made]
    return [y.new_zeros(*x.shape[:2], y.shape[-1]).scatter(1, _wide(order, y), y) for y in moved], after


def _with(piece: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """`piece` with `new` as its rows `at`, where it was (the blocks may be spread over several devices)."""
    return piece.to(new.dtype).index_copy(0, at, new.to(piece.device))


def _wide(order: Tensor, like: Tensor) -> Tensor:
    return order[..., None].expand(-1, -1, like.shape[-1])
