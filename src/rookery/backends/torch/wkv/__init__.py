"""The WKV recurrences over whole sequences, in torch: differentiable, any device, several implementations.

B sequences, T tokens, H heads, N head size, C width; formulas: architecture/vocabulary.py. A state is [key, value].
    wkv4(k, v, log_decay, bonus, state)         k, v [B,T,C], log_decay, bonus [C], state [B,3,C]
    wkv5(r, k, v, log_decay, bonus, state)      r, k, v [B,T,H,N], log_decay, bonus [H,N] or [H,1], state [B,H,N,N]
    wkv6(r, k, v, log_decay, bonus, state)      log_decay [B,T,H,N]
    wkv7(r, log_decay, k, v, a, b, state)       all [B,T,H,N]
Each takes `resets` last: None, or bool [B,T], true where a token begins a document; what came before it, in the
sequence or in the given state, does not reach it. Each gives (y, the state after the last token). Inputs are float32,
float64 or bf16; y has the type of r (v4: k), the state is float32 (float64 if an input is).

Implementations ("forms"): "step", token by token; "plain", chunks in PyTorch; "native", the C++ core on a CPU in
float32. `choose` picks one by what is at hand; `using` fixes it for tests and measurements. A Triton form would be
one more entry of `ops.FORMS` and one more line in `choose`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rookery.backends.torch.wkv import ops, step

__all__ = ["using", "wkv4", "wkv5", "wkv6", "wkv7"]

FEW = 8  # tokens for which stepping is faster than a chunk

_fixed: str | None = None


@contextmanager
def using(form: str) -> Iterator[None]:
    """Every WKV begun inside runs as "step", "plain" or "native", fit or not; "auto" is as outside. Not per thread."""
    global _fixed
    if form not in ("auto", "step", "plain", "native"):
        raise ValueError(f'WKV form {form!r}: wanted "auto", "step", "plain" or "native"')
    before, _fixed = _fixed, None if form == "auto" else form
    try:
        yield
    finally:
        _fixed = before


def choose(length: int, device: torch.device, dtype: torch.dtype, size: int) -> str:
    """The form for `length` tokens of heads of `size` (v4: 0) computed in `dtype`."""
    if _fixed:
        return _fixed
    if length < FEW:
        return "step"
    return "plain"


def wkv4(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    y, state = step.wkv4(k, v, log_decay, bonus, state, resets)
    return y.to(k.dtype), state


def wkv5(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return wkv6(r, k, v, log_decay, bonus, state, resets)


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    y, state = step.wkv6(r, k, v, log_decay, bonus, state, resets)
    return y.to(r.dtype), state


def wkv7(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tensors = (r, log_decay, k, v, a, b, state)
    dtype = ops.wide(tensors)
    form = choose(r.shape[1], r.device, dtype, r.shape[-1])
    if form == "step":
        y, state = step.wkv7(*(t.to(dtype) for t in tensors), resets=resets)
        return y.to(r.dtype), state
    return ops.wkv7(*tensors, resets, form)
