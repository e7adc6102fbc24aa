"""What the words of the vocabulary mean, in NumPy.

The law of rows: a row's result does not depend on its neighbours, to the bit. So matrices multiply one row at a time
(np.matmul over a batch of vectors), and sums run along the last axis of one row.
R rows, C width, H heads, N head size, B sequences, K input width, O output width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rookery.architecture.vocabulary import Array, Params, Vocabulary
from rookery.backends.layout import Layout


class Ops(Vocabulary):
    """The vocabulary over NumPy arrays for one step's layout."""

    def __init__(self, layout: Layout, n_head: int, listener: Callable[[str, Array], Array] | None = None) -> None:
        self.layout, self.n_head, self.listener, self.layer = layout, n_head, listener, 0

    def embed(self, weight: Array, ids: Array) -> Array:
        return weight[ids]

    def dense(self, w: Params, x: Array) -> Array:
        return self.matmul(x, w.weight.T)

    def matmul(self, x: Array, a: Array) -> Array:
        return np.matmul(a.T, x[:, :, None])[:, :, 0]

    def layer_norm(self, x: Array, p: Params) -> Array:
        return _normed(x, p.eps) * p.weight + p.bias

    def group_norm(self, y: Array, p: Params) -> Array:
        return self.flat(_normed(y, p.eps)) * p.weight + p.bias

    def normalize(self, x: Array) -> Array:
        return x / np.maximum(np.sqrt(self.dot(x, x)), 1e-12)

    def dot(self, x: Array, y: Array) -> Array:
        return (x * y).sum(-1, keepdims=True)

    def heads(self, x: Array) -> Array:
        return x.reshape(len(x), self.n_head, -1)

    def flat(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def split(self, x: Array, n: int) -> Sequence[Array]:
        return [np.ascontiguousarray(part) for part in np.split(x, n, axis=-1)]

    def exp(self, x: Array) -> Array:
        return np.exp(x)

    def tanh(self, x: Array) -> Array:
        return np.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        return 1 / (1 + self.exp(-x))

    def relu(self, x: Array) -> Array:
        return np.maximum(x, 0)

    def tap(self, name: str, x: Array) -> Array:
        return x if self.listener is None else self.listener(f"layers.{self.layer}.{name}", x)

    def token_shift(self, x: Array, shift: Array) -> tuple[Array, Array]:
        previous = np.empty_like(x)
        previous[1:] = x[:-1]
        previous[self.layout.starts] = shift
        return previous, x[self.layout.ends]

    def wkv4(self, k: Array, v: Array, log_decay: Array, bonus: Array, state: Array) -> tuple[Array, Array]:
        y, state = np.empty_like(v), state.copy()
        for b, row in self.layout.steps:
            top, below, m = state[b, 0], state[b, 1], state[b, 2]
            now = k[row] + bonus
            q = np.maximum(m, now)
            old, new = self.exp(m - q), self.exp(now - q)
            y[row] = (old * top + new * v[row]) / (old * below + new)
            q = np.maximum(m + log_decay, k[row])
            old, new = self.exp(m + log_decay - q), self.exp(k[row] - q)
            state[b] = np.stack([old * top + new * v[row], old * below + new, q], axis=1)
        return y, state

    def wkv5(self, r: Array, k: Array, v: Array, log_decay: Array, bonus: Array, state: Array) -> tuple[Array, Array]:
        return self.wkv6(r, k, v, np.broadcast_to(log_decay, k.shape), bonus, state)

    def wkv6(self, r: Array, k: Array, v: Array, log_decay: Array, bonus: Array, state: Array) -> tuple[Array, Array]:
        y, state, decay = np.empty_like(v), state.copy(), self.exp(log_decay)
        for b, row in self.layout.steps:
            kv = k[row][..., None] * v[row][..., None, :]
            y[row] = _read(r[row], state[b] + bonus[..., None] * kv)
            state[b] = state[b] * decay[row][..., None] + kv
        return y, state

    def wkv7(
        self, r: Array, log_decay: Array, k: Array, v: Array, a: Array, b: Array, state: Array
    ) -> tuple[Array, Array]:
        y, state, decay = np.empty_like(v), state.copy(), self.exp(log_decay)
        for seq, row in self.layout.steps:
            old = state[seq]
            removed = _read(a[row], old)[..., None, :]
            new = old * decay[row][..., None] + b[row][..., None] * removed + k[row][..., None] * v[row][..., None, :]
            y[row], state[seq] = _read(r[row], new), new
        return y, state


def _read(key: Array, state: Array) -> Array:
    """[B,H,N], [B,H,N,N] -> [B,H,N]: the value that a key finds in a state [key, value]."""
    return np.matmul(key[..., None, :], state)[..., 0, :]


def _normed(x: Array, eps: float) -> Array:
    """Zero mean and unit variance along the last axis."""
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + eps)
