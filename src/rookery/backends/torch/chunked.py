"""WKV-7 in chunks: the recurrence over CHUNK tokens written as a few matrix products, so that training is fast.

With G the inclusive and E the exclusive running sum of the log decay in a chunk (both within (-0.61 CHUNK, 0), so
their exponentials are safe in float32), S the state [key, value] at its start, strict and inclusive lower triangles:
    U = (I - A_ab)^-1 (A_ak V + (a e^E) S),  A_ab[t,i] = a_t . b_i e^(E_t - G_i) for i < t
    Y = (r e^G) S + A_rk V + A_rb U,         A_rk[t,i] = r_t . k_i e^(G_t - G_i) for i <= t
    S' = diag(e^G_last) S + (k e^(G_last - G))^T V + (b e^(G_last - G))^T U
which is the WY form of arXiv 2503.14456, appendix; autograd gives its gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 16


def wkv7_chunked(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """[B,T,H,N] x6, [B,H,N,N] -> ([B,T,H,N], state), for any T; padding tokens leave the state as it is."""
    length = r.shape[1]
    r, g, k, v, a, b = (_chunks(x) for x in (r, log_decay, k, v, a, b))  # [B,H,chunks,CHUNK,N]
    total = g.cumsum(-2)
    before, last = total - g, total[..., -1:, :]
    inverse = torch.exp(-total)
    a_in, r_in, b_out, k_out = a * torch.exp(before), r * torch.exp(total), b * inverse, k * inverse
    b_left, k_left = b * torch.exp(last - total), k * torch.exp(last - total)
    a_b, a_k = (a_in @ b_out.mT).tril(-1), (a_in @ k_out.mT).tril(-1)
    r_b, r_k = (r_in @ b_out.mT).tril(), (r_in @ k_out.mT).tril()
    eye = torch.eye(CHUNK, dtype=r.dtype, device=r.device)
    solved = torch.linalg.solve_triangular(eye - a_b, torch.cat([a_k @ v, a_in], -1), upper=False, unitriangular=True)
    u_own, u_state = solved.split(v.shape[-1], -1)
    added, carry = k_left.mT @ v + b_left.mT @ u_own, b_left.mT @ u_state
    keep = torch.exp(last).mT  # [B,H,chunks,N,1]
    starts = []
    for keep_i, carry_i, added_i in zip(keep.unbind(2), carry.unbind(2), added.unbind(2), strict=True):
        starts.append(state)
        state = keep_i * state + carry_i @ state + added_i
    start = torch.stack(starts, 2)
    y = r_in @ start + r_k @ v + r_b @ (u_own + u_state @ start)
    return y.flatten(2, 3).transpose(1, 2)[:, :length], state


def _chunks(x: Tensor) -> Tensor:
    """[B,T,H,N] -> [B,H,chunks,CHUNK,N], zeros behind the last token: no decay, nothing written."""
    missing = -x.shape[1] % CHUNK
    padded = pad(x, (0, 0, 0, 0, 0, missing)).transpose(1, 2)
    return padded.reshape(*padded.shape[:2], -1, CHUNK, padded.shape[-1])
