"""Inputs of the WKV recurrences for tests: usual ones, the worst decays, resets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NAMES = ["wkv4", "wkv5", "wkv5-head", "wkv6", "wkv7"]  # wkv5-head: one decay and bonus per head, as 5.0 and 5.1 have
KINDS = ["usual", "worst", "empty"]  # worst: the steepest and the flattest decays; empty: from the empty state


def inputs(name: str, length: int, kind: str = "usual", size: int = 8, batch: int = 2, heads: int = 2) -> list[Tensor]:
    """The arguments of `rookery.backends.torch.wkv.<name>` in float64, the state last, all wanting gradients."""
    g = torch.Generator().manual_seed(100 * length + size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    rows = (batch, length, heads, size)
    tensors = _vectors(kind, batch, length, size, normal) if name == "wkv4" else _matrices(name, kind, rows, normal)
    return [t.requires_grad_() for t in tensors]


def _vectors(kind, batch, length, width, normal):  # type: ignore[no-untyped-def]
    k = normal(batch, length, width) * (20 if kind == "worst" else 1)
    log_decay = -torch.exp(torch.linspace(-9 if kind == "worst" else -5, 3, width, dtype=torch.float64))
    exponent = 2 + normal(batch, width)  # in slow channels still the largest at the end of a short sequence
    state = torch.stack([normal(batch, width), normal(batch, width).exp(), exponent], 1)
    if kind == "empty":
        state = torch.tensor([0, 0, -1e30], dtype=torch.float64)[:, None].repeat(batch, 1, width)
    return [k, normal(batch, length, width), log_decay, normal(width), state]


def _matrices(name, kind, rows, normal):  # type: ignore[no-untyped-def]
    batch, _, heads, size = rows
    r, k, v, x = (normal(*rows) for _ in range(4))
    state = normal(batch, heads, size, size) * (kind != "empty")
    if name == "wkv7":
        removal = torch.nn.functional.normalize(normal(*rows), dim=-1)
        x = torch.full_like(x, 30) if kind == "worst" else 4 * x
        return [r, -math.exp(-0.5) * x.sigmoid(), k, v, -removal, removal * normal(*rows).sigmoid(), state]
    log_decay = -torch.exp(2 * x - 1)
    if kind == "worst":  # some tokens forget everything at once, some channels nothing at all
        log_decay = torch.where(x > 0.5, -1e4, torch.where(x < -0.5, -1e-9, log_decay))
    if name == "wkv6":
        return [r, k, v, log_decay, normal(heads, size), state]
    per = slice(0, 1) if name == "wkv5-head" else slice(None)
    return [r, k, v, log_decay[0, 0, :, per].clone(), normal(heads, size)[:, per].clone(), state]


def resets(length: int, batch: int = 2) -> Tensor:
    """Documents that begin anywhere: the first token of one sequence, and two tokens in a row, among them."""
    flags = torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.12
    flags[0, 0] = True
    flags[-1, length // 2 : length // 2 + 2] = True
    return flags
