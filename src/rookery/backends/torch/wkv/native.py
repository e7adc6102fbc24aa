"""The recurrences and their gradients in the native core, for training on a CPU.

Everything is contiguous float32 on the CPU and lies where torch has it; what comes back is new. The gradients make the
states again from the inputs, so nothing has to be kept but those. B sequences, T tokens, H heads, N head size, C width;
`resets`, where given, is bool [B,T]. A tensor of another shape, type, device or layout is a ValueError.
The number of threads, torch's, does not show in the results.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rookery import _native

__all__ = [
    "available",
    "supports",
    "wkv4",
    "wkv4_backward",
    "wkv6",
    "wkv6_backward",
    "wkv7",
    "wkv7_backward",
]


def available() -> bool:
    """Whether the native core is here."""
    return _native.available()


def supports(n: int) -> bool:
    """Whether heads of `n` elements can be trained here; the others are left to plain torch."""
    return available() and n % 16 == 0 and 0 < n <= _native.core.TRAINED_HEAD


def wkv4(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """k, v [B,T,C], w (the decay's logarithm), u (bonus) [C], state [B,3,C] -> (y [B,T,C], state)."""
    return _forward(_native.core.wkv4, {"k": k, "v": v, "w": w, "u": u, "state": state}, resets)


def wkv4_backward(
    dy: Tensor, dstate_out: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of k, v, w, u and the initial state, from those of `wkv4`'s outputs."""
    inputs = {"k": k, "v": v, "w": w, "u": u, "state": state}
    return _backward(_native.core.wkv4_backward, dy, dstate_out, inputs, resets)


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B,T,H,N] x3, g like them or (v5) [H,N], u [H,N], state [B,H,N,N] -> (y [B,T,H,N], state)."""
    return _forward(_native.core.wkv6, {"r": r, "k": k, "v": v, "g": g, "u": u, "state": state}, resets)


def wkv6_backward(
    dy: Tensor, dstate_out: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor, state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of r, k, v, g, u and the initial state, from those of `wkv6`'s outputs."""
    inputs = {"r": r, "k": k, "v": v, "g": g, "u": u, "state": state}
    return _backward(_native.core.wkv6_backward, dy, dstate_out, inputs, resets)


def wkv7(
    r: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B,T,H,N] x6, [B,H,N,N] -> (y [B,T,H,N], state); g is the decay's logarithm."""
    inputs = {"r": r, "g": g, "k": k, "v": v, "a": a, "b": b, "state": state}
    return _forward(_native.core.wkv7, inputs, resets)


def wkv7_backward(
    dy: Tensor, dstate_out: Tensor, r: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of r, g, k, v, a, b and the initial state, from those of `wkv7`'s outputs."""
    inputs = {"r": r, "g": g, "k": k, "v": v, "a": a, "b": b, "state": state}
    return _backward(_native.core.wkv7_backward, dy, dstate_out, inputs, resets)


def _forward(kernel: Callable[..., None], inputs: dict[str, Tensor], resets: Tensor | None) -> tuple[Tensor, Tensor]:
    y, state_out = torch.empty_like(next(iter(inputs.values()))), torch.empty_like(inputs["state"])
    _call(kernel, inputs, resets, [y, state_out])
    return y, state_out


def _backward(
    kernel: Callable[..., None], dy: Tensor, dstate_out: Tensor, inputs: dict[str, Tensor], resets: Tensor | None
) -> tuple[Tensor, ...]:
    outputs = [torch.empty_like(x) for x in inputs.values()]
    _call(kernel, {"dy": dy, "dstate_out": dstate_out} | inputs, resets, outputs)
    return tuple(outputs)


def _call(kernel: Callable[..., None], inputs: dict[str, Tensor], resets: Tensor | None, outputs: list[Tensor]) -> None:
    """Have the kernel fill `outputs`."""
    for name, x in inputs.items():
        if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
            layout = "" if x.is_contiguous() else ", not contiguous"
            raise ValueError(
                f"native wkv: {name} is {x.dtype} on {x.device}{layout}; contiguous float32 on the CPU is wanted: "
                "convert it, or take plain torch"
            )
    if resets is not None:
        if resets.dtype != torch.bool or resets.device.type != "cpu":
            raise ValueError(f"native wkv: resets are {resets.dtype} on {resets.device}; bool on the CPU is wanted")
        resets = resets.contiguous()
    # Shared through DLPack: Tensor.numpy() would forbid FSDP to resize a parameter's storage from then on.
    arrays = [None if x is None else x.detach() for x in (*inputs.values(), resets, *outputs)]
    kernel(*arrays, torch.get_num_threads())
