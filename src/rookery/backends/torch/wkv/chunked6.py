"""WKV-6 and WKV-5 in chunks of CHUNK tokens: decays of any steepness, without a clamp.

In a chunk, token i reaches token t > i through the product of the decays between them, e^(E_t - G_i) with G the
inclusive and E the exclusive running sum of the log decay. No anchor makes e^E_t and e^-G_i both safe where a decay may
be 0, so the pairs are taken by halves: in blocks of 2, 4, 8, .. CHUNK tokens each row of the upper half carries the
decays from the middle up to it, each key of the lower half those from it to the middle. Their product is the pair's,
every factor lies in [0, 1], nothing is ever subtracted. Doubling the blocks multiplies rows and keys by the other
half's whole decay; after the last doubling they are r e^E, which reads the state before the chunk, and k e^(G_C-G),
which writes the state after it.
The log decay's gradient is summed over the doublings in the same way, each term with its half's whole decay as a
factor. As a difference, of what token t+1 reads and what key t gives, it would leave rounding where a decay is steep,
and a decay's own parameter, -exp(x), multiplies that by the log decay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.backends.torch.wkv.chunks import Segments, from_chunks, to_chunks

CHUNK = 32


@dataclass(slots=True)
class _Chunks:
    """What forward and backward share; h: half a block, m = CHUNK / 2h blocks; decays may broadcast over n and B."""

    v: Tensor  # [n,B,H,C,N]
    rows: list[Tensor]  # per doubling [n,B,H,m,h,N]
    keys: list[Tensor]  # per doubling [n,B,H,m,h,N]
    whole: list[tuple[Tensor, Tensor]]  # per doubling [..,m,1,N] x2: the decay over the lower and the upper half
    scores: Tensor  # [n,B,H,C,C], the bonus on the diagonal
    reads: Tensor  # [n,B,H,C,N] r e^E, zero after a reset
    writes: Tensor  # [n,B,H,C,N] k e^(G_C-G), zero before one
    last: Tensor  # [..,N,1] e^G_C, zero with one
    segments: Segments | None


def _blocks(scores: Tensor, half: int) -> Tensor:
    """The squares [.., m, h, h] of `scores` where upper halves meet lower halves; a view."""
    size = 2 * half
    cut = scores.view(*scores.shape[:-2], CHUNK // size, size, CHUNK // size, size)
    return cut.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., half:, :half]


def _halves(x: Tensor, half: int) -> Tensor:
    """[..,C,N] -> [..,m,2,h,N], a view: the lower and the upper half of each block."""
    return x.view(*x.shape[:-2], -1, 2, half, x.shape[-1])


def _prepare(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, resets: Tensor | None) -> _Chunks:
    r, k, v = (to_chunks(x, CHUNK) for x in (r, k, v))
    whole = _decays(log_decay)
    scores = r.new_zeros(*r.shape[:-1], CHUNK)
    scores.diagonal(dim1=-2, dim2=-1).copy_((r * k * bonus[:, None]).sum(-1))
    rows, keys, factors, half = [], [], [], 1
    reads, writes = r.clone(), k.clone()
    while half < CHUNK:
        up, low = (_halves(x, half) for x in (reads, writes))
        row, key = up[..., 1, :, :].contiguous(), low[..., 0, :, :].contiguous()
        _blocks(scores, half).copy_(_products(row, key))
        lower, upper = whole[..., 0::2, None, :], whole[..., 1::2, None, :]
        torch.mul(row, lower, out=up[..., 1, :, :])
        torch.mul(key, upper, out=low[..., 0, :, :])
        rows.append(row)
        keys.append(key)
        factors.append((lower, upper))
        whole, half = whole[..., 0::2, :] * whole[..., 1::2, :], 2 * half
    segments = None
    if resets is not None:
        segments = Segments.of(resets, CHUNK, r.dtype)
        scores *= segments.same
        reads *= segments.head
        writes *= segments.tail
        whole = whole * segments.whole
    return _Chunks(v, rows, keys, factors, scores, reads, writes, whole.mT, segments)


def _decays(log_decay: Tensor) -> Tensor:
    """[B,T,H,N] -> [n,B,H,C,N]; one decay for all tokens [H,N] -> [1,1,H,C,N]."""
    if log_decay.ndim == 4:
        return to_chunks(log_decay, CHUNK).exp_()
    return log_decay.exp()[:, None].expand(-1, CHUNK, -1)[None, None]


def _products(row: Tensor, key: Tensor) -> Tensor:
    """row key^T; a product of single rows is a sum."""
    return row @ key.mT if row.shape[-2] > 1 else (row * key).sum(-1, keepdim=True)


def _starts(c: _Chunks, state: Tensor) -> Tensor:
    """[n+1,B,H,N,N]: the state before each chunk, and after the last."""
    starts = state.new_empty(len(c.v) + 1, *state.shape)
    starts[0] = state
    torch.matmul(c.writes.mT, c.v, out=starts[1:])
    last = c.last.expand(len(c.v), *c.last.shape[1:])
    for i in range(len(c.v)):
        starts[i + 1].addcmul_(starts[i], last[i])
    return starts


def forward(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[B,T,H,N] x3, [B,T,H,N] or [H,N], [H,N], [B,H,N,N], [B,T] or None -> ([B,T,H,N], state), of one float type."""
    c = _prepare(r, k, v, _padded(log_decay, r), bonus, resets)
    starts = _starts(c, state)
    return from_chunks(c.reads @ starts[:-1] + c.scores @ c.v, r.shape[1]), starts[-1].clone()


def backward(
    dy: Tensor, dstate: Tensor,
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of r, k, v, log_decay, bonus and state; everything between is computed again."""
    c = _prepare(r, k, v, _padded(log_decay, r), bonus, resets)
    starts = _starts(c, state)
    length, dy = dy.shape[1], to_chunks(dy, CHUNK)

    ends = torch.empty_like(starts)  # the gradient of starts
    ends[-1] = dstate
    torch.matmul(c.reads.mT, dy, out=ends[:-1])
    last = c.last.expand(len(dy), *c.last.shape[1:])
    for i in reversed(range(len(dy))):
        ends[i].addcmul_(ends[i + 1], last[i])

    dv = c.scores.mT @ dy + c.writes @ ends[1:]
    dscores = dy @ c.v.mT
    dr, dk = dy @ starts[:-1].mT, c.v @ ends[1:].mT
    if c.segments is not None:
        dscores *= c.segments.same
        dr *= c.segments.head
        dk *= c.segments.tail
    kept = last.mT * (starts[:-1] * ends[1:]).sum(-1)[..., None, :]
    dlog_decay = kept.expand_as(dr).contiguous()
    for row, key, (lower, upper) in zip(reversed(c.rows), reversed(c.keys), reversed(c.whole), strict=True):
        half = row.shape[-2]
        block = _blocks(dscores, half)
        up, low, decays = (_halves(x, half) for x in (dr, dk, dlog_decay))
        decays[..., 0, :, :].addcmul_(lower, (up[..., 1, :, :] * row).sum(-2, keepdim=True))
        decays[..., 1, :, :].addcmul_(upper, (low[..., 0, :, :] * key).sum(-2, keepdim=True))
        up[..., 1, :, :].mul_(lower).add_(block @ key if half > 1 else block * key)
        low[..., 0, :, :].mul_(upper).add_(block.mT @ row if half > 1 else block * row)

    r, k = to_chunks(r, CHUNK), to_chunks(k, CHUNK)
    own, u = dscores.diagonal(dim1=-2, dim2=-1)[..., None], bonus[:, None]
    dbonus = (own * r * k).sum((0, 1, 3))
    dr, dk, dv, dg = (from_chunks(x, length) for x in (dr + own * u * k, dk + own * u * r, dv, dlog_decay))
    return dr, dk, dv, dg if log_decay.ndim == 4 else dg.sum((0, 1)), dbonus, ends[0].clone()


def _padded(log_decay: Tensor, r: Tensor) -> Tensor:
    """One decay for all tokens would go on over the zeros behind the last one: then every token is given its own."""
    if log_decay.ndim == 4 or r.shape[1] % CHUNK == 0:
        return log_decay
    return log_decay.expand(r.shape)
