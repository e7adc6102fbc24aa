"""What the words of the vocabulary mean, in torch: differentiable, on any device.

R rows, C width, H heads, N head size, B sequences. The recurrences run token by token, as written in the vocabulary;
wkv7 over an even batch of long sequences takes the chunked form (chunked.py), which equals it within a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rookery.architecture.vocabulary import Params, Vocabulary
from rookery.backends.layout import Layout
from rookery.backends.torch.chunked import CHUNK, wkv7_chunked


class Ops(Vocabulary):
    """The vocabulary over torch tensors for one step's layout."""

    def __init__(self, layout: Layout, n_head: int, listener: Callable[[str, Tensor], Tensor] | None = None) -> None:
        self.layout, self.n_head, self.listener, self.layer = layout, n_head, listener, 0

    def embed(self, weight: Tensor, ids: Tensor) -> Tensor:
        return weight[ids]

    def linear(self, w: Params, x: Tensor) -> Tensor:
        return w(x)  # type: ignore[no-any-return]  # a module: nn.Linear, or an adapter in its place

    def matmul(self, x: Tensor, a: Tensor) -> Tensor:
        return x @ a

    def layer_norm(self, x: Tensor, p: Params) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], p.weight, p.bias, p.eps)

    def group_norm(self, y: Tensor, p: Params) -> Tensor:
        return functional.group_norm(self.flat(y), self.n_head, p.weight, p.bias, p.eps)

    def normalize(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1, eps=1e-12)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1, keepdim=True)

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.n_head, -1)

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(-2)

    def split(self, x: Tensor, n: int) -> Sequence[Tensor]:
        return x.chunk(n, dim=-1)

    def exp(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def relu(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def tap(self, name: str, x: Tensor) -> Tensor:
        return x if self.listener is None else self.listener(f"layers.{self.layer}.{name}", x)

    def token_shift(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        previous = x.roll(1, 0).index_put((self._index(self.layout.starts, x),), shift.to(x.dtype))
        return previous, x[self._index(self.layout.ends, x)]

    def wkv4(self, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        def step(s: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            top, below, m = s.unbind(1)
            now = k + bonus
            q = torch.maximum(m, now)
            old, new = torch.exp(m - q), torch.exp(now - q)
            y = (old * top + new * v) / (old * below + new)
            q = torch.maximum(m + log_decay, k)
            old, new = torch.exp(m + log_decay - q), torch.exp(k - q)
            return y, torch.stack([old * top + new * v, old * below + new, q], dim=1)

        return self._scan(step, state, k, v)

    def wkv5(
        self, r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.wkv6(r, k, v, log_decay.expand(k.shape), bonus, state)

    def wkv6(
        self, r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        def step(s: Tensor, r: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
            kv = k[..., None] * v[..., None, :]
            return _read(r, s + bonus[..., None] * kv), s * decay[..., None] + kv

        return self._scan(step, state, r, k, v, torch.exp(log_decay))

    def wkv7(
        self, r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        length = self._even()
        if length >= CHUNK:
            r, log_decay, k, v, a, b = (x.reshape(-1, length, *x.shape[1:]) for x in (r, log_decay, k, v, a, b))
            y, state = wkv7_chunked(r, log_decay, k, v, a, b, state)
            return y.flatten(0, 1), state

        def step(s: Tensor, r: Tensor, d: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            removed = _read(a, s)[..., None, :]
            s = s * d[..., None] + b[..., None] * removed + k[..., None] * v[..., None, :]
            return _read(r, s), s

        return self._scan(step, state, r, torch.exp(log_decay), k, v, a, b)

    def _even(self) -> int:
        """The common length of all sequences, or 0."""
        lengths = self.layout.lengths
        return lengths[0] if len(set(lengths)) == 1 else 0

    def _scan(self, step: Callable[..., tuple[Tensor, Tensor]], state: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Run `step(state, *rows of token t) -> (y, state)` over each sequence's tokens."""
        out, order = [], []
        for b, row in self.layout.steps:
            at = self._index(row, state)
            everyone = len(b) == len(state)
            seq = self._index(b, state)
            y, new = step(state if everyone else state[seq], *(x[at] for x in rows))
            state = new if everyone else state.index_put((seq,), new)
            out.append(y)
            order.append(at)
        return torch.cat(out)[torch.argsort(torch.cat(order))], state

    def _index(self, index: object, like: Tensor) -> Tensor:
        return torch.as_tensor(index, device=like.device)


def _read(key: Tensor, state: Tensor) -> Tensor:
    """[B,H,N], [B,H,N,N] -> [B,H,N]: the value that a key finds in a state [key, value]."""
    return (key[..., None, :] @ state)[..., 0, :]
