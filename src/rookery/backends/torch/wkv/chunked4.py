"""WKV-4 as two scans: within chunks, all chunks at once, then over the chunks.

A state is (a, b, m): numerator and denominator, both scaled by e^m, with m the largest exponent so far; that is the max
trick, and no exponential here is above 1. The recurrence is linear but for y's division, so the gradient is the same
scan run backwards over dy / denominator, with m of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rookery.backends.torch.wkv.step import EMPTY


class _State(NamedTuple):
    a: Tensor
    b: Tensor
    m: Tensor

    def decayed(self, log_decay: Tensor) -> _State:
        return _State(self.a, self.b, self.m + log_decay)

    def plus(self, other: _State) -> _State:
        m = torch.maximum(self.m, other.m)
        old, new = torch.exp(self.m - m), torch.exp(other.m - m)
        return _State(old * self.a + new * other.a, old * self.b + new * other.b, m)

    def emptied(self, where: Tensor) -> _State:
        """Nothing seen yet `where` that is true."""
        return _State(*(x.masked_fill(where, e) for x, e in zip(self, EMPTY, strict=True)))


def _scan(
    items: _State, log_decay: Tensor, start: _State, resets: Tensor | None, reverse: bool = False
) -> tuple[_State, _State]:
    """Items [B,T,C], the state [B,C] before them -> the states before each item, and the one after the last.

    state <- decayed(state, emptied first where `resets` [B,T]) + item; reversed, `resets` still say before which item
    in the order of running.
    """
    if reverse:
        flipped = None if resets is None else resets.flip(1)
        before, end = _scan(_State(*(x.flip(1) for x in items)), log_decay, start, flipped)
        return _State(*(x.flip(1) for x in before)), end
    batch, length, width = items.a.shape
    chunk = max(1, math.isqrt(length))
    missing = -length % chunk
    parts = [
        pad(x, (0, 0, 0, missing), value=e).reshape(batch, -1, chunk, width) for x, e in zip(items, EMPTY, strict=True)
    ]
    cut = None if resets is None else pad(resets, (0, missing)).reshape(batch, -1, chunk, 1)

    state = _State(*(torch.full_like(parts[0][:, :, 0], e) for e in EMPTY))
    inner = []  # per position in the chunk, [B,n,C]: what the chunk itself has seen
    for t in range(chunk):
        if cut is not None:
            state = state.emptied(cut[:, :, t])
        inner.append(state)
        state = state.decayed(log_decay).plus(_State(*(x[:, :, t] for x in parts)))

    carry, starts = start, []  # per chunk, [B,C]: what came before it
    any_cut = None if cut is None else cut.any(2)
    for n in range(parts[0].shape[1]):
        starts.append(carry)
        if any_cut is not None:
            carry = carry.emptied(any_cut[:, n])
        carry = carry.decayed(chunk * log_decay).plus(_State(*(x[:, n] for x in state)))

    outer = _State(*(torch.stack(x, 1)[:, :, None] for x in zip(*starts, strict=True)))  # [B,n,1,C]
    positions = torch.arange(chunk, dtype=log_decay.dtype, device=log_decay.device)[:, None]
    far = _State(outer.a, outer.b, outer.m + positions * log_decay)
    if cut is not None:
        far = _State(*(x.expand(batch, -1, chunk, width) for x in far)).emptied(cut.cumsum(2) > 0)
    before = far.plus(_State(*(torch.stack(x, 2) for x in zip(*inner, strict=True))))
    flat = [x.flatten(1, 2) for x in before]
    if missing:  # the items behind the last one decayed the carry
        carry = _State(*(x[:, length] for x in flat))
    return _State(*(x[:, :length] for x in flat)), carry


def forward(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[B,T,C] x2, [C] x2, [B,3,C], [B,T] or None -> ([B,T,C], state), all of one float type, for any T."""
    before, end = _scan(_State(v, torch.ones_like(v), k), log_decay, _State(*state.unbind(1)), resets)
    seen = before.plus(_State(v, torch.ones_like(v), k + bonus))
    return seen.a / seen.b, torch.stack(end, 1)


def backward(
    dy: Tensor, dstate: Tensor,
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of k, v, log_decay, bonus and state; everything between is computed again."""
    start, one = _State(*state.unbind(1)), torch.ones_like(v)
    before, end = _scan(_State(v, one, k), log_decay, start, resets)
    seen = before.plus(_State(v, one, k + bonus))
    share = dy / seen.b
    shares = _State(share, -share * seen.a / seen.b, -seen.m)  # the gradient of y's numerator and denominator
    final = _State(dstate[:, 0], dstate[:, 1], -end.m)
    onward = None if resets is None else pad(resets[:, 1:], (0, 1))
    after, first = _scan(shares, log_decay, final, onward, reverse=True)  # the gradient of the state after each token

    now, late = torch.exp(k + bonus - seen.m), torch.exp(k + after.m)
    own = now * (shares.a * v + shares.b)
    dv = now * shares.a + late * after.a
    dk = own + late * (after.a * v + after.b)
    kept = torch.exp(before.m + log_decay + after.m) * (before.a * after.a + before.b * after.b)
    scale = torch.exp(start.m + first.m)
    if resets is not None:
        scale = scale.masked_fill(resets[:, :1], 0)
    da, db = scale * first.a, scale * first.b
    dm = start.a * da + start.b * db

    # The state given out is scaled by its exponent, which is that of one token, or of the state given in.
    scaling = dstate[:, 2] - end.a * dstate[:, 0] - end.b * dstate[:, 1]
    token, age = _largest(k, log_decay, start.m, resets)
    none = token < 0
    dk.scatter_add_(1, token.clamp(min=0)[:, None], scaling.masked_fill(none, 0)[:, None])
    dlog_decay = kept.sum((0, 1)) + (scaling * age).sum(0)
    dm = dm + scaling.masked_fill(~none, 0)
    return dk, dv, dlog_decay, own.sum((0, 1)), torch.stack([da, db, dm], 1)


def _largest(k: Tensor, log_decay: Tensor, m: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B,C] x2: the token whose exponent is the largest at the end (-1: the given state's), and its decays since."""
    length = k.shape[1]
    ages = torch.arange(length - 1, -1, -1, dtype=k.dtype, device=k.device)
    exponents, given = k + ages[:, None] * log_decay, m + length * log_decay
    if resets is not None:
        later = resets.flip(1).cumsum(1).flip(1)[..., None]  # documents that begin with this token or behind it
        exponents = exponents.masked_fill(later > resets[..., None].long(), -torch.inf)
        given = given.masked_fill(later[:, 0] > 0, -torch.inf)
    best, token = exponents.max(1)
    mine = given > best
    return token.masked_fill(mine, -1), ages[token].masked_fill(mine, length)
