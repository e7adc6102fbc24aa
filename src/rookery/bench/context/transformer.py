"""A Transformer as a peer: Llama's block (RMSNorm, rotary embedding, SwiGLU) with grouped or full KV heads.

In plain torch rather than transformers, whose growing cache copies all keys and values at each token and whose fixed
one reads its whole room: here a decode step reads the keys and values that there are, once. tests/bench checks it
against LlamaForCausalLM.
C width, F width of the feed-forward part, H heads, G of them to a KV head (K heads), N head size, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import sqrt
from typing import Any

from rookery.architecture.spec import Fill, Param, Uniform
from rookery.bench.context.match import Plan, Spec, fill
from rookery.bench.context.peer import EXTRA, Tensor, TorchPeer, drawn

GROUP = 4  # query heads to a KV head, as Llama 3 has them
EPS, THETA = 1e-5, 10_000.0
ROWS = 2048  # of the feed-forward part at a time: its inside is several times as wide as a row
BLOCK = 4096  # tokens of random KV that are drawn; the same ones fill the depth
TRIALS = 3  # of each form of attention


def plan(kind: str, spec: Spec) -> Plan:
    def groups(width: int) -> int:
        heads = width // spec.head_size
        most = max(1, heads // GROUP) if kind == "transformer-gqa" else heads
        return next(n for n in range(most, 0, -1) if heads % n == 0)

    def params(width: int, ffn: int) -> list[Param]:
        return table(spec, width, ffn, groups(width))

    def count(width: int, ffn: int) -> int:
        return Plan(spec, {}, tuple(params(width, ffn)), (0, 0), "").parameters

    width, ffn = fill(spec, count)
    heads, kv = width // spec.head_size, groups(width)
    said = {"width": width, "ffn": ffn, "layers": spec.layers, "heads": heads, "kv_heads": kv}
    each = 2 * spec.layers * kv * spec.head_size * spec.bytes
    note = "one head: grouped is the same as full" if heads == 1 else ""
    return Plan(spec, said, tuple(params(width, ffn)), (0, each), "torch, preallocated KV cache", note)


def table(spec: Spec, width: int, ffn: int, kv_heads: int) -> list[Param]:
    """Matrices that read the same input are one: query, key and value; gate and up."""
    inner = 2 * kv_heads * spec.head_size + width
    shapes = {"qkv": (inner, width), "output": (width, width), "gate_up": (2 * ffn, width), "down": (width, ffn)}
    made = [dense("embedding", spec.vocab, width, "embedding"), dense("head", spec.vocab, width, "head")]
    for layer in range(spec.layers):
        made += [dense(f"{layer}.{name}", *shape) for name, shape in shapes.items()]
        made += [ones(f"{layer}.norm1", width), ones(f"{layer}.norm2", width)]
    return [*made, ones("norm", width)]


def dense(name: str, rows: int, columns: int, kind: Any = "att") -> Param:
    """A matrix that keeps the scale of its input; of an embedding, numbers of scale 1."""
    return Param(name, (rows, columns), Uniform(sqrt(3) if kind == "embedding" else sqrt(3 / columns)), kind)


def ones(name: str, width: int) -> Param:
    return Param(name, (width,), Fill(1.0))


class Transformer(TorchPeer):
    def __init__(self, kind: str, spec: Spec, seed: int) -> None:
        super().__init__(kind, plan(kind, spec), seed)
        self.w = drawn(self.plan, self.generator)
        self._head = self.linear(self.w.pop("head"))
        self.heads, self.kv_heads = self.config["heads"], self.config["kv_heads"]
        half = spec.head_size // 2
        self.turns = THETA ** (-self.torch.arange(half) / half)  # radians a token, by pair
        self.forms: dict[int, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}  # by power of two of the depth
        self.kv: Tensor = None  # [L,2,K,room,N]
        self.depth, self.injected = 0, 0

    @property
    def head(self) -> Any:
        return self._head

    def weights(self) -> list[Tensor]:
        return [*self.w.values(), self._head.weight]

    def clear(self, room: int) -> None:
        c, spec = self.config, self.plan.spec
        if self.kv is None or self.kv.shape[3] < room:
            self.kv = None  # before the new one is there
            shape = (spec.layers, 2, c["kv_heads"], room, spec.head_size)
            self.kv = self.torch.empty(shape, dtype=getattr(self.torch, spec.dtype))
        self.depth = self.injected = 0

    def held_bytes(self) -> int:
        return 0 if self.kv is None else int(self.kv[:, :, :, : self.depth].numel() * self.kv.element_size())

    def inject(self, depth: int, extra: int = EXTRA) -> None:
        """Keys and values of unit scale, which is what the random weights make of any text."""
        if depth > self.injected or self.kv.shape[3] < depth + extra:
            self.clear(depth + extra)
            for layer in self.kv:
                block = self.normal(*layer.shape[:2], min(depth, BLOCK), layer.shape[3])
                for at in range(0, depth, BLOCK):
                    layer[:, :, at : min(depth, at + BLOCK)] = block[:, :, : depth - at]
            self.injected = depth
        self.depth = depth

    def read(self, ids: Tensor) -> Tensor:
        begin, self.depth = self.depth, self.depth + len(ids)
        if self.depth > self.kv.shape[3]:
            raise IndexError(f"{self.kind}: {self.depth} tokens; the cache has room for {self.kv.shape[3]}")

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """Of [H,T,N] and [K,T,N], after all that the cache has."""
            keys, values = self.kv[layer]
            keys[:, begin : self.depth], values[:, begin : self.depth] = k, v
            if len(ids) == 1:
                return self._decode(q.view(self.kv_heads, -1, q.shape[-1]), keys, values)
            if begin:
                raise ValueError(f"{self.kind}: a prompt of several tokens is read from an empty cache")
            return self._causal(q, k, v)

        return self._run(ids, begin, attention)[-1]

    def hidden(self, ids: Tensor) -> Tensor:
        return self._run(ids, 0, lambda layer, q, k, v: self._causal(q, k, v))

    def _run(self, ids: Tensor, begin: int, attention: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """[T] -> [T,C]."""
        functional, w, heads, kv = self.torch.nn.functional, self.w, self.heads, self.kv_heads
        x = functional.embedding(ids, w["embedding"])
        angles = (begin + self.torch.arange(len(ids)))[:, None] * self.turns
        cos, sin = (f().to(x.dtype) for f in (angles.cos, angles.sin))
        for i in range(self.plan.spec.layers):
            made = functional.linear(self._norm(x, f"{i}.norm1"), w[f"{i}.qkv"])
            made = made.view(len(ids), heads + 2 * kv, -1).transpose(0, 1)
            turned = self._rotary(made[: heads + kv], cos, sin)
            y = attention(i, turned[:heads], turned[heads:], made[heads + kv :])
            x = x + functional.linear(y.transpose(0, 1).reshape(x.shape), w[f"{i}.output"])
            x = x + self._feed_forward(self._norm(x, f"{i}.norm2"), i)
        return self._norm(x, "norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return self.torch.nn.functional.rms_norm(x, x.shape[-1:], self.w[name], EPS)

    def _rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[..,T,N]: element i and i + N/2 are a pair, turned by the position's angle."""
        one, other = x.chunk(2, -1)
        return self.torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

    def _feed_forward(self, x: Tensor, layer: int) -> Tensor:
        functional, w = self.torch.nn.functional, self.w

        def part(x: Tensor) -> Tensor:
            gate, up = functional.linear(x, w[f"{layer}.gate_up"]).chunk(2, -1)
            return functional.linear(functional.silu(gate) * up, w[f"{layer}.down"])

        if len(x) <= ROWS or self.torch.is_grad_enabled():
            return part(x)
        return self.torch.cat([part(rows) for rows in x.split(ROWS)])

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = self.torch.nn.functional.scaled_dot_product_attention
        return attention(q[None], k[None], v[None], is_causal=True, enable_gqa=len(k) < len(q))[0]

    def _decode(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q [K,G,N] over [K,room,N] -> [H,1,N], in the form that is fastest at this depth on this machine."""
        k, v = keys[:, : self.depth], values[:, : self.depth]
        place = self.depth.bit_length()
        if place not in self.forms:  # a trial at the first step there, not at the one after each prompt
            forms = (self._fused, self._products)
            self.forms[place] = min(forms, key=lambda form: min(_seconds(form, q, k, v) for _ in range(TRIALS)))
        return self.forms[place](q, k, v).view(self.heads, 1, -1)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The queries of a group as rows of one head: none of the KV is repeated."""
        return self.torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]

    def _products(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch, q = self.torch, q / sqrt(q.shape[-1])
        if q.shape[1] == 1:
            scores = torch.bmm(q, k.mT)
        else:  # tall and narrow: the order in which a CPU's BLAS reads each key once
            scores = torch.stack([torch.mm(key, query.T) for key, query in zip(k, q, strict=True)]).mT
        return torch.bmm(scores.softmax(-1), v)


def _seconds(form: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> float:
    begin = time.perf_counter()
    form(q, k, v)
    return time.perf_counter() - begin
