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

from rookery.backends.torch.wkv import native, ops, step

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


def choose(tensor: Tensor, dtype: torch.dtype) -> str:
    """The form for a first input [B,T,H,N] (v4 [B,T,C]) computed in `dtype`."""
    if _fixed:
        return _fixed
    if tensor.shape[1] < FEW:
        return "step"
    fits = native.available() if tensor.ndim == 3 else native.supports(tensor.shape[-1])
    return "native" if fits and tensor.device.type == "cpu" and dtype == torch.float32 else "plain"


def wkv4(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _run(ops.wkv4, step.wkv4, k, v, log_decay, bonus, state, resets)


def wkv5(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    shape = r.shape[2:]
    return wkv6(r, k, v, log_decay.expand(shape), bonus.expand(shape), state, resets)


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _run(ops.wkv6, step.wkv6, r, k, v, log_decay, bonus, state, resets)


def wkv7(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _run(ops.wkv7, step.wkv7, r, log_decay, k, v, a, b, state, resets)


def _run(operator: ops.Operator, stepped: ops.Operator, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inputs, state, resets to the chosen form; float32 for stepping too."""
    *given, resets = arguments
    tensors = [t for t in given if t is not None]
    dtype = ops.wide(tensors)
    form = choose(tensors[0], dtype)
    if form != "step":
        return operator(*tensors, resets, form)
    y, state = stepped(*(t.to(dtype) for t in tensors), resets=resets)
    return y.to(tensors[0].dtype), state
