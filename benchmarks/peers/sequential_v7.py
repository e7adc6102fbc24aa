"""RWKV-7 in plain PyTorch, its recurrence token by token under autograd: what one writes first.

B sequences, T tokens, C width, H heads, N head size. It takes the weights of a `Network` by their names, so that the
two can be compared. Formulas: arXiv 2503.14456 section 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sequential7(nn.Module):
    """tokens [B,T] -> logits [B,T,V]."""

    def __init__(self, weights: dict[str, Tensor], layers: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layers, self.heads, self.eps = layers, heads, eps
        self.held = nn.ParameterDict({n.replace(".", "/"): nn.Parameter(w.clone()) for n, w in weights.items()})

    def get(self, name: str) -> Tensor:
        return self.held[name.replace(".", "/")]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm("blocks.0.ln0", functional.embedding(tokens, self.get("emb.weight")))
        v_first = None
        for i in range(self.layers):
            y, v_first = self.time_mix(f"blocks.{i}.att", self.norm(f"blocks.{i}.ln1", x), v_first)
            x = x + y
            x = x + self.channel_mix(f"blocks.{i}.ffn", self.norm(f"blocks.{i}.ln2", x))
        return functional.linear(self.norm("ln_out", x), self.get("head.weight"))

    def time_mix(self, at: str, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        def part(name: str) -> Tensor:
            return self.get(f"{at}.{name}")

        def pair(name: str, x: Tensor) -> Tensor:
            return x @ part(f"{name}1") @ part(f"{name}2")

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1))

        d = functional.pad(x, (0, 0, 1, -1)) - x
        x_r, x_w, x_k, x_v, x_a, x_g = (x + d * part(f"x_{letter}") for letter in "rwkvag")
        r, k, v = (
            functional.linear(y, part(f"{name}.weight"))
            for name, y in (("receptance", x_r), ("key", x_k), ("value", x_v))
        )
        w = part("w0") + torch.tanh(x_w @ part("w1")) @ part("w2")
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
        a = torch.sigmoid(part("a0") + pair("a", x_a))
        g = torch.sigmoid(x_g @ part("g1")) @ part("g2")
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(part("v0") + pair("v", x_v))
        kk = functional.normalize(heads(k * part("k_k")), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * part("k_a"))
        r, w, k, v, a = (heads(y) for y in (r, w, k, v, a))
        y = recurrence(r, w, k, v, -kk, kk * a).flatten(-2)
        batch, length, width = y.shape
        y = functional.group_norm(
            y.flatten(0, 1), self.heads, part("ln_x.weight"), part("ln_x.bias"), self.eps
        ).view(batch, length, width)  # fmt: skip
        y = y + ((r * k * part("r_k")).sum(-1, keepdim=True) * v).flatten(-2)
        return functional.linear(y * g, part("output.weight")), v_first

    def channel_mix(self, at: str, x: Tensor) -> Tensor:
        mixed = x + (functional.pad(x, (0, 0, 1, -1)) - x) * self.get(f"{at}.x_k")
        k = torch.relu(functional.linear(mixed, self.get(f"{at}.key.weight"))) ** 2
        return functional.linear(k, self.get(f"{at}.value.weight"))


def recurrence(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[B,T,H,N] x6 -> [B,T,H,N]; the state [B,H,N,N] is [value, key]."""
    batch, length, heads, size = r.shape
    state = r.new_zeros(batch, heads, size, size)
    out = []
    for t in range(length):
        read = state @ a[:, t, :, :, None]
        state = state * w[:, t, :, None, :] + read @ b[:, t, :, None, :] + v[:, t, :, :, None] @ k[:, t, :, None, :]
        out.append((state @ r[:, t, :, :, None])[..., 0])
    return torch.stack(out, 1)
