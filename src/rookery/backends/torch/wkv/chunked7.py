"""WKV-7 in chunks: CHUNK tokens at a time as a few batched matrix products, forwards and backwards.

n chunks, C = CHUNK tokens, N head size. In a chunk, with G the inclusive and E the exclusive running sum of the log
decay (both within (-0.61 C, 0): their exponentials are safe in float32), H the state [key, value] before it:
    X = [r e^G; a e^E], W = [b e^-G; k e^-G], L = [b e^(G_C-G); k e^(G_C-G)]        each [2C, N]
    [R; A] = X W^T, masked: r sees its own token, a only those before                each [C, 2C], halves b | k
    U = (I - A_b)^-1 (A_k V + (a e^E) H);  Y = (r e^G) H + R [U; V];  H' = e^G_C H + L^T [U; V]
which is the WY form of arXiv 2503.14456, appendix. All but H is known for every chunk at once; the loop over chunks
does U = U_0 + P H and H' alone, and backwards dH = e^G_C dH' + P^T (L_b dH') + Q^T dY with Q = r e^G + R_b P.
A document's reset cuts the masks by segment; H reaches only the tokens before the first reset, and only the tokens
after the last one reach H'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.backends.torch.wkv.chunks import Segments, from_chunks, to_chunks

CHUNK = 32


@dataclass(slots=True)
class _Chunks:
    """What forward and backward share; [n,B,H,..] before the sizes named."""

    x: Tensor  # [2C,N]
    w: Tensor  # [2C,N]
    v: Tensor  # [C,N]
    grow: Tensor  # [C,N] e^G
    before: Tensor  # [C,N] e^E
    shrink: Tensor  # [C,N] e^-G
    left: Tensor  # [C,N] e^(G_C-G), zero before the last reset
    scores: Tensor  # [2C,2C] [R; A]
    solve: Tensor  # [C,C] (I - A_b)^-1
    u_own: Tensor  # [C,N] U_0: U without H
    u_state: Tensor  # [C,N] P: U's factor of H
    reach: Tensor  # [2C,N] the part of X that reads H
    kept: Tensor  # [2C,N] L
    last: Tensor  # [N,1] e^G_C, zero after a reset
    mask: Tensor  # [2C,2C], or with resets [n,B,1,2C,2C]
    segments: Segments | None


def _prepare(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, resets: Tensor | None
) -> _Chunks:
    r, g, k, v, a, b = (to_chunks(x, CHUNK) for x in (r, log_decay, k, v, a, b))
    size = g.shape[-1]
    lower = torch.ones(CHUNK, CHUNK, dtype=g.dtype, device=g.device).tril()
    total = lower @ g
    grow, shrink = total.exp(), (-total).exp()
    before = (total - g).exp()
    last = grow[..., -1:, :]
    left = last * shrink
    mask = torch.cat([lower, lower.tril(-1)]).repeat(1, 2)
    x, w = torch.cat([r * grow, a * before], -2), torch.cat([b * shrink, k * shrink], -2)
    reach, segments = x, None
    if resets is not None:
        segments = Segments.of(resets, CHUNK, g.dtype)
        mask = mask * segments.same.repeat(1, 1, 1, 2, 2)
        reach = x * segments.head.repeat(1, 1, 1, 2, 1)
        left, last = left * segments.tail, last * segments.whole
    kept = torch.cat([b * left, k * left], -2)
    scores = (x @ w.mT) * mask
    a_b, a_k = scores[..., CHUNK:, :CHUNK], scores[..., CHUNK:, CHUNK:]
    eye = torch.eye(CHUNK, dtype=g.dtype, device=g.device)
    solve = torch.linalg.solve_triangular(eye - a_b, eye, upper=False, unitriangular=True)
    u = solve @ torch.cat([a_k @ v, reach[..., CHUNK:, :]], -1)
    u_own, u_state = u[..., :size], u[..., size:]
    return _Chunks(
        x, w, v, grow, before, shrink, left, scores, solve, u_own, u_state, reach, kept, last.mT, mask, segments
    )


def _run(c: _Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """([n+1,B,H,N,N], [n,B,H,2C,N]): the state before each chunk and after the last; [U; V]."""
    starts = state.new_empty(len(c.x) + 1, *state.shape)
    starts[0] = state
    uv = torch.cat([c.u_own, c.v], -2)
    flat, u, factor, kept, last = (t.flatten(1, 2) for t in (starts, uv, c.u_state, c.kept, c.last))
    for i in range(len(u)):
        u[i, :, :CHUNK] += torch.bmm(factor[i], flat[i])
        torch.baddbmm(flat[i] * last[i], kept[i].mT, u[i], out=flat[i + 1])
    return starts, uv


def forward(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[B,T,H,N] x6, [B,H,N,N], [B,T] or None -> ([B,T,H,N], state), all of one float type, for any T."""
    c = _prepare(r, log_decay, k, v, a, b, resets)
    starts, uv = _run(c, state)
    y = c.reach[..., :CHUNK, :] @ starts[:-1] + c.scores[..., :CHUNK, :] @ uv
    return from_chunks(y, r.shape[1]), starts[-1].clone()


def backward(
    dy: Tensor, dstate: Tensor,
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, resets: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of r, log_decay, k, v, a, b and state; everything between is computed again."""
    c = _prepare(r, log_decay, k, v, a, b, resets)
    starts, uv = _run(c, state)
    length, dy = dy.shape[1], to_chunks(dy, CHUNK)
    r_scores = c.scores[..., :CHUNK, :]

    direct = (c.reach[..., :CHUNK, :] + r_scores[..., :CHUNK] @ c.u_state).mT @ dy  # dY's own part of dH
    duv = r_scores.mT @ dy  # of [U; V]
    ends = torch.empty_like(starts)  # the gradient of starts
    ends[-1] = dstate
    flat, du, factor, kept, last, own = (t.flatten(1, 2) for t in (ends, duv, c.u_state, c.kept, c.last, direct))
    for i in reversed(range(len(du))):
        through = torch.bmm(kept[i], flat[i + 1])
        du[i] += through
        torch.addcmul(own[i], flat[i + 1], last[i], out=flat[i])
        flat[i] += torch.bmm(factor[i].mT, through[:, :CHUNK])
    dend = ends[1:]

    z = c.solve.mT @ duv[..., :CHUNK, :]
    dv = duv[..., CHUNK:, :] + c.scores[..., CHUNK:, CHUNK:].mT @ z
    dyz = torch.cat([dy, z], -2)
    dscores = (dyz @ uv.mT) * c.mask
    dreach, dkept = dyz @ starts[:-1].mT, uv @ dend.mT
    if c.segments is not None:
        dreach = dreach * c.segments.head.repeat(1, 1, 1, 2, 1)
    dx, dw = dscores @ c.w + dreach, dscores.mT @ c.x
    dr, da = dx[..., :CHUNK, :] * c.grow, dx[..., CHUNK:, :] * c.before
    db = dw[..., :CHUNK, :] * c.shrink + dkept[..., :CHUNK, :] * c.left
    dk = dw[..., CHUNK:, :] * c.shrink + dkept[..., CHUNK:, :] * c.left

    r, k, a, b = (to_chunks(t, CHUNK) for t in (r, k, a, b))
    at, ahead = r * dr - k * dk - b * db, a * da  # of G and of E
    at[..., -1, :] += (starts[1:] * dend).sum(-1)
    upper = torch.ones(CHUNK, CHUNK, dtype=at.dtype, device=at.device).triu()
    dg = upper @ (at + ahead) - ahead
    grads = (from_chunks(t, length) for t in (dr, dg, dk, dv, da, db))
    return (*grads, ends[0].clone())
