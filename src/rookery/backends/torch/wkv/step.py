"""The recurrences token by token: the slow truth beside every fast form, and the form for a token or two.

`token4`, `token6`, `token7` are one token of B sequences: (state, rows of that token) -> (y, state). `wkv4` .. `wkv7`
run them over [B,T,..] (shapes: the package's docstring). Autograd gives the gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EMPTY = (0.0, 0.0, -1e30)  # v4's state before any token: numerator, denominator, the exponent of their scale


def token4(s: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
    """[B,3,C], [B,C] x2, [C] x2. Numerator and denominator are scaled by e^m, the largest exponent so far."""
    top, below, m = s.unbind(1)
    now = k + bonus
    q = torch.maximum(m, now)
    old, new = torch.exp(m - q), torch.exp(now - q)
    y = (old * top + new * v) / (old * below + new)
    q = torch.maximum(m + log_decay, k)
    old, new = torch.exp(m + log_decay - q), torch.exp(k - q)
    return y, torch.stack([old * top + new * v, old * below + new, q], dim=1)


def token6(s: Tensor, r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
    """[B,H,N,N], [B,H,N] x3, log_decay [B,H,N] or anything that broadcasts to it, bonus likewise."""
    kv = k[..., None] * v[..., None, :]
    return _read(r, s + bonus[..., None] * kv), s * torch.exp(log_decay)[..., None] + kv


def token7(
    s: Tensor, r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """[B,H,N,N], [B,H,N] x6."""
    written = b[..., None] * _read(a, s)[..., None, :] + k[..., None] * v[..., None, :]
    s = s * torch.exp(log_decay)[..., None] + written
    return _read(r, s), s


def wkv4(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _over(lambda s, k, v: token4(s, k, v, log_decay, bonus), (k, v), state, resets, empty4(state))


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Also v5's, whose log_decay [H,N] or [H,1] is one for all tokens."""
    rows = (r, k, v, log_decay if log_decay.ndim == 4 else log_decay.expand(r.shape))
    return _over(lambda s, r, k, v, g: token6(s, r, k, v, g, bonus), rows, state, resets, torch.zeros_like(state))


def wkv7(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _over(token7, (r, log_decay, k, v, a, b), state, resets, torch.zeros_like(state))


def empty4(like: Tensor) -> Tensor:
    """[B,3,C]."""
    return like.new_tensor(EMPTY)[:, None].expand_as(like)


def _over(
    token: Callable[..., tuple[Tensor, Tensor]],
    rows: tuple[Tensor, ...],
    state: Tensor,
    resets: Tensor | None,
    empty: Tensor,
) -> tuple[Tensor, Tensor]:
    out = []
    for t in range(rows[0].shape[1]):
        if resets is not None:
            state = torch.where(resets[:, t].reshape(-1, *[1] * (state.ndim - 1)), empty, state)
        y, state = token(state, *(x[:, t] for x in rows))
        out.append(y)
    return torch.stack(out, 1), state


def _read(key: Tensor, state: Tensor) -> Tensor:
    """[B,H,N], [B,H,N,N] -> [B,H,N]: the value that a key finds in a state [key, value]."""
    return (key[..., None] * state).sum(-2)  # not a matrix product: neither autocast nor a matmul precision touches it
