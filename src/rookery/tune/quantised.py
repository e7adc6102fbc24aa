"""A frozen linear whose matrix lies in int8 or nf4: what an adapter is trained over when memory is short.

The dense matrix lives only while a product is taken, forwards and again backwards; between them autograd keeps codes
and scales, which are the module's own, and nothing of the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.weights.adapters import blocks
from rookery.weights.adapters.blocks import BLOCK, LEVELS


class QuantLinear(nn.Module):
    """y = W x, W [out, in] rounded as `weights.adapters.blocks` does, to the bit, and never trained."""

    codes: Tensor
    scales: Tensor
    pairs: Tensor

    def __init__(self, in_features: int, out_features: int, kind: str) -> None:
        """W is 0."""
        super().__init__()
        self.in_features, self.out_features, self.kind = in_features, out_features, kind
        n = -(-in_features // BLOCK)
        self.register_buffer("codes", torch.zeros(out_features, n * blocks.BYTES[kind], dtype=torch.uint8))
        # The bits of float32: `module.to(torch.bfloat16)` rounds all that looks like numbers.
        self.register_buffer("scales", torch.zeros(out_features, n, dtype=torch.int32))
        # Of each byte of nf4 the two float32 that it stands for, to be moved as one.
        table = torch.tensor([(LEVELS[i & 15], LEVELS[i >> 4]) for i in range(256 if kind == "nf4" else 0)])
        self.register_buffer("pairs", table.view(-1, 2).view(torch.int64).flatten(), persistent=False)

    @classmethod
    def of(cls, linear: nn.Linear, kind: str) -> QuantLinear:
        """Raises ValueError for a bias, infinity or NaN."""
        if linear.bias is not None:
            raise ValueError("a linear with a bias is not quantised; RWKV has none")
        weight = linear.weight.detach()
        codes, scales = blocks.codes(weight.float().cpu().numpy(), kind)
        made = cls(linear.in_features, linear.out_features, kind)
        made.codes, made.scales = torch.from_numpy(codes), torch.from_numpy(scales.view(np.int32))
        return made.to(weight.device)

    def forward(self, x: Tensor) -> Tensor:
        narrow = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if narrow else x.dtype
        return _Product.apply(x, self.codes, self.scales, self.pairs, self.in_features, dtype)  # type: ignore[no-any-return,no-untyped-call]

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W [out, in]."""
        return _dense(self.codes, self.scales, self.pairs, self.in_features, dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind!r}"


class _Product(torch.autograd.Function):
    """x [.., in] -> x W^T [.., out] in `dtype`; only x has a gradient."""

    @staticmethod
    def forward(x: Tensor, codes: Tensor, scales: Tensor, pairs: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        return functional.linear(x.to(dtype), _dense(codes, scales, pairs, columns, dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, codes, scales, pairs, ctx.columns, ctx.dtype = inputs
        ctx.like = x.dtype
        ctx.save_for_backward(codes, scales, pairs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales, pairs = ctx.saved_tensors
        dense = _dense(codes, scales, pairs, ctx.columns, ctx.dtype)
        return (grads[0] @ dense).to(ctx.like), None, None, None, None, None


def _dense(codes: Tensor, scales: Tensor, pairs: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The numbers of `blocks.dequantised`; `pairs` is empty for int8."""
    if len(pairs):
        values = pairs.index_select(0, codes.flatten().int()).view(torch.float32)
    else:
        values = codes.view(torch.int8).float()
    dense = values.view(*scales.shape, BLOCK).mul_(scales.view(torch.float32)[..., None])
    return dense.view(len(scales), -1)[:, :columns].to(dtype)
