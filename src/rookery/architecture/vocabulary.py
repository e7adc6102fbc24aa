"""The words in which every RWKV is written: operations on rows, their shapes and one formula each.

Shapes: R rows (all tokens of a step, packed over its sequences), C width, H heads, N head size, V vocabulary,
B sequences. A back end implements the primitives; the composites below have default bodies made of primitives,
and a back end may replace one by a fused kernel that a test compares with the default body.
Only `token_shift` and `wkv*` know where one sequence ends and the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any  # NumPy array, torch tensor or symbol; + - * / and unary minus work on all of them
Params: TypeAlias = Any  # one module's parameters by attribute: p.key, p.x_r, p.ln_x
LayerState: TypeAlias = Any  # one layer's state by attribute: att_shift [B,C], ffn_shift [B,C], wkv [B,...]


class Vocabulary(Protocol):
    """The operations. `layer` is the index of the block that is running; taps carry it in their names."""

    layer: int

    # primitives: rows

    def embed(self, weight: Array, ids: Array) -> Array:
        """[V,C], [R] -> [R,C]: row ids[i] of the table."""
        ...

    def dense(self, w: Params, x: Array) -> Array:
        """[R,I] -> [R,O]: x W^T; w.weight is [O,I] of any kind (plain, quantised)."""
        ...

    def matmul(self, x: Array, a: Array) -> Array:
        """[R,I], [I,O] -> [R,O]: x a, for the low-rank pairs, which are stored input-major."""
        ...

    def layer_norm(self, x: Array, p: Params) -> Array:
        """[R,C] -> [R,C]: (x - mean) / sqrt(var + p.eps) * p.weight + p.bias."""
        ...

    def group_norm(self, y: Array, p: Params) -> Array:
        """[R,H,N] -> [R,C]: each head normalised alone, then p.weight and p.bias [C]."""
        ...

    def normalize(self, x: Array) -> Array:
        """[R,H,N] -> [R,H,N]: each head divided by max(its L2 norm, 1e-12)."""
        ...

    def dot(self, x: Array, y: Array) -> Array:
        """[R,H,N], [R,H,N] -> [R,H,1]: the inner product of each head."""
        ...

    def heads(self, x: Array) -> Array:
        """[R,C] -> [R,H,N]."""
        ...

    def flat(self, x: Array) -> Array:
        """[R,H,N] -> [R,C]."""
        ...

    def split(self, x: Array, n: int) -> Sequence[Array]:
        """[R,n*K] -> n times [R,K]."""
        ...

    # primitives: elements

    def exp(self, x: Array) -> Array: ...

    def tanh(self, x: Array) -> Array: ...

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x))."""
        ...

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""
        return x * self.sigmoid(x)

    def relu(self, x: Array) -> Array: ...

    # primitives: sequences

    def token_shift(self, x: Array, shift: Array) -> tuple[Array, Array]:
        """[R,C], [B,C] -> ([R,C], [B,C]): each row's predecessor in its sequence, and the carry (the last rows)."""
        ...

    def wkv4(self, k: Array, v: Array, log_decay: Array, bonus: Array, state: Array) -> tuple[Array, Array]:
        """[R,C], [R,C], [C], [C], [B,3,C] -> ([R,C], state). With a, b, m = state (numerator, denominator, exponent):

        y = (a + e^(bonus+k-m) v) / (b + e^(bonus+k-m)); then a, b <- e^log_decay (a, b) + e^(k-m) (v, 1).
        """
        ...

    def wkv5(self, r: Array, k: Array, v: Array, log_decay: Array, bonus: Array, state: Array) -> tuple[Array, Array]:
        """[R,H,N] x3, [H,N] or [H,1] x2, [B,H,N,N] -> ([R,H,N], state): wkv6 with one decay for all tokens."""
        ...

    def wkv6(self, r: Array, k: Array, v: Array, log_decay: Array, bonus: Array, state: Array) -> tuple[Array, Array]:
        """[R,H,N] x4, [H,N], [B,H,N,N] -> ([R,H,N], state).

        y = r (S + (bonus k) v^T); then S <- diag(e^log_decay) S + k v^T; S is [key, value].
        """
        ...

    def wkv7(
        self, r: Array, log_decay: Array, k: Array, v: Array, a: Array, b: Array, state: Array
    ) -> tuple[Array, Array]:
        """[R,H,N] x6, [B,H,N,N] -> ([R,H,N], state), the generalised delta rule.

        S <- diag(e^log_decay) S + b (a^T S) + k v^T; y = r S; S is [key, value].
        """
        ...

    # observation

    def tap(self, name: str, x: Array) -> Array:
        """A point of interest, `layers.{layer}.{name}`: identity unless someone listens."""
        return x

    # composites

    def linear(self, w: Params, x: Array) -> Array:
        """[R,I] -> [R,O]: x W^T; with an adapter beside it, gain * (x W^T) + (x a^T) b^T of w.side."""
        y, side = self.dense(w, x), getattr(w, "side", None)
        if side is None:
            return y
        return (y if side.gain is None else y * side.gain) + self.dense(side.b, self.dense(side.a, x))

    def shift_mix(self, x: Array, shift: Array, mixes: Sequence[Array]) -> tuple[list[Array], Array]:
        """x + (previous - x) * mix for each mix [C]; and the carry."""
        previous, shift = self.token_shift(x, shift)
        d = previous - x
        return [x + d * mix for mix in mixes], shift

    def lora(self, x: Array, a: Array, b: Array, act: Callable[[Array], Array] | None = None) -> Array:
        """act(x a) b; a [C,rank], b [rank,C]."""
        h = self.matmul(x, a)
        return self.matmul(act(h) if act else h, b)

    def kk_prepare(self, k: Array, a: Array, k_k: Array, k_a: Array) -> tuple[Array, Array, Array]:
        """[R,C] x2, [C] x2 -> the key, the removal key -kk and its replacement kk*a, all [R,H,N]."""
        kk = self.normalize(self.heads(k * k_k))
        return self.heads(k * (1 + (a - 1) * k_a)), -kk, kk * self.heads(a)

    def head_out(self, y: Array, ln_x: Params, gate: Array | None = None, bonus: Array | None = None) -> Array:
        """[R,H,N] -> [R,C]: group norm, then + bonus [R,H,N], then * gate [R,C]."""
        out = self.group_norm(y, ln_x)
        if bonus is not None:
            out = out + self.flat(bonus)
        return out if gate is None else out * gate

    def channel_mix(self, key: Params, value: Params, x: Array) -> Array:
        """value(relu(key(x))^2): [R,C] -> [R,F] -> [R,C]."""
        k = self.relu(self.linear(key, x))
        return self.linear(value, self.tap("ffn.k", k * k))
