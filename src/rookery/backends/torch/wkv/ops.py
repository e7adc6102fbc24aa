"""The chunked recurrences as torch operators: one node each to autograd, compile, checkpointing and FSDP.

An operator saves its inputs alone and computes the rest again going back. `form` names the implementation and is part
of the call, so that a compiled or recomputed call does what the first did. Its backward has no gradient of its own:
torch says so where a second derivative is asked for.
Inside, all is float32 (float64 if an input is) whatever autocast and the matmul precision say; y has r's type (v4:
k's), gradients the types of their inputs, and the state stays in the wide type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rookery.backends.torch.wkv import chunked4, chunked6, chunked7, native

Operator = Callable[..., tuple[Tensor, Tensor]]
# form -> (forward, backward) by operator; a Triton kernel is one more form here, and a line in the package's `choose`.
Pair = tuple[Operator, Callable[..., Sequence[Tensor]]]
FORMS: dict[str, dict[str, Pair]] = {
    "wkv4": {
        "plain": (chunked4.forward, chunked4.backward),
        "native": (native.wkv4, native.wkv4_backward),
    },
    "wkv6": {
        "plain": (chunked6.forward, chunked6.backward),
        "native": (native.wkv6, native.wkv6_backward),
    },
    "wkv7": {
        "plain": (chunked7.forward, chunked7.backward),
        "native": (native.wkv7, native.wkv7_backward),
    },
}


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No autocast, no reduced matmul precision: these sums run over a whole document."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    setting: Any = getattr(backend, "matmul", None)
    if not hasattr(setting, "fp32_precision"):  # torch before 2.9 has one setting for all
        setting = _OneSetting()
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setting.fp32_precision = before


class _OneSetting:
    """The global precision in the words of the newer, separate ones."""

    @property
    def fp32_precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        torch.set_float32_matmul_precision("highest" if value == "ieee" else value)


def wide(tensors: Sequence[Tensor]) -> torch.dtype:
    """The type of the arithmetic: float64 if any input is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _define(name: str, arguments: Sequence[str]) -> Operator:
    """Register rookery::name(*arguments, state, resets, form) -> (y, state) and rookery::name_backward.

    y has the shape and type of the first argument.
    """
    inputs = (*arguments, "state")
    schema = ", ".join(f"Tensor {x}" for x in inputs) + ", Tensor? resets, str form"
    grads = ", ".join(["Tensor"] * len(inputs))
    forms = FORMS[name]

    @torch.library.custom_op(f"rookery::{name}", mutates_args=(), schema=f"({schema}) -> (Tensor, Tensor)")
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        *tensors, resets, form = args
        dtype = wide(tensors)
        with _exact(tensors[0].device):
            y, state = forms[form][0](*(t.to(dtype).contiguous() for t in tensors), resets)
        return y.to(tensors[0].dtype), state

    @torch.library.custom_op(
        f"rookery::{name}_backward", mutates_args=(), schema=f"(Tensor dy, Tensor dstate, {schema}) -> ({grads})"
    )
    def backward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, resets, form = args
        dtype = wide(tensors)
        with _exact(tensors[0].device):
            made = forms[form][1](*(t.to(dtype).contiguous() for t in tensors), resets)
        return tuple(g.to(t.dtype) for g, t in zip(made, tensors[2:], strict=True))

    @forward.register_fake
    def _(*args: Any) -> tuple[Tensor, Tensor]:
        *tensors, _, _ = args
        return torch.empty_like(tensors[0], memory_format=torch.contiguous_format), torch.empty_like(
            tensors[-1], dtype=wide(tensors), memory_format=torch.contiguous_format
        )

    @backward.register_fake
    def _(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in args[2:-2])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, resets, ctx.form = inputs
        ctx.save_for_backward(*tensors, resets)

    def gradient(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(dy, dstate, *ctx.saved_tensors, ctx.form), None, None)

    forward.register_autograd(gradient, setup_context=setup_context)
    return forward


wkv4: Operator = _define("wkv4", ("k", "v", "log_decay", "bonus"))
wkv6: Operator = _define("wkv6", ("r", "k", "v", "log_decay", "bonus"))  # log_decay [B,T,H,N], or [H,N] for all tokens
wkv7: Operator = _define("wkv7", ("r", "log_decay", "k", "v", "a", "b"))
