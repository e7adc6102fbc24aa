"""Mamba-2 as a peer, in plain torch: the scan in chunks for a prompt, the recurrence for a token.

Source: arXiv 2405.21060 section 6 and its listing. In plain torch rather than transformers, whose stand-in for the
fused kernels spreads the keys over all heads; tests/bench checks it against Mamba2ForCausalLM.
A layer of the others (mixing over tokens, then over channels) is two blocks here, as in the published sizes.
T tokens, C width, I inner width, H heads of P numbers, N state size, one group; c chunks of Q tokens.
"""

from __future__ import annotations

from itertools import product
from math import exp, expm1, isqrt, log, prod
from typing import Any

from rookery.architecture.spec import Curve, Fill, Param, Uniform
from rookery.bench.context.match import MEETS, UNITS, Plan, Spec, too_many
from rookery.bench.context.peer import EXTRA, SAMPLE, SCATTER, Tensor, TorchPeer, drawn
from rookery.bench.context.transformer import EPS, dense, ones

BLOCKS = 2  # to a layer
STATE, KERNEL, EXPAND = 128, 4, 2  # the released models'
SLACK = (1 / 8, 1 / 4, 1)  # of I over C, around EXPAND
CHUNK = 64
NOTE = "plain torch on a CPU; its published speed is that of fused CUDA kernels"


def plan(kind: str, spec: Spec) -> Plan:
    width, inner = sized(spec)
    blocks, heads = BLOCKS * spec.layers, inner // spec.head_size
    said = {"width": width, "inner": inner, "blocks": blocks, "heads": heads, "state": STATE}
    kept = blocks * ((KERNEL - 1) * (inner + 2 * STATE) * spec.bytes + inner * STATE * 4)
    return Plan(spec, said, tuple(table(spec, width, inner)), (kept, 0), "torch, no fused scan", NOTE)


def sized(spec: Spec) -> tuple[int, int]:
    """(C, I), I in whole heads and as near to EXPAND times C as the number of parameters lets it be."""

    def off(width: int, inner: int) -> float:
        found = BLOCKS * spec.layers * sum(prod(p.shape) for p in block(spec, width, inner, 0)) + width
        return abs(found / spec.parameters - 1)

    most = isqrt(spec.parameters // (6 * spec.layers)) + 1  # if I were C
    for slack, unit in product(SLACK, UNITS):
        found = [
            (far, width, inner)
            for width in range(unit, most + unit, unit)
            for inner in range(spec.head_size, (EXPAND + 1) * width + 1, spec.head_size)
            if (far := abs(inner / width - EXPAND)) <= slack and off(width, inner) <= MEETS
        ]
        if found:
            return min(found)[1:]
    raise too_many(spec)


def table(spec: Spec, width: int, inner: int) -> list[Param]:
    made = [dense("embedding", spec.vocab, width, "embedding"), dense("head", spec.vocab, width, "head")]
    for i in range(BLOCKS * spec.layers):
        made += block(spec, width, inner, i)
    return [*made, ones("norm", width)]


def block(spec: Spec, width: int, inner: int, i: int) -> list[Param]:
    heads, mixed = inner // spec.head_size, inner + 2 * STATE
    last = max(1, heads - 1)

    def step(head: int) -> float:
        """The inverse softplus of step sizes from 0.001 to 0.1."""
        size = 0.001 * exp(log(100) * head / last)
        return size + log(-expm1(-size))

    def decay(head: int) -> float:
        """The logarithm of -A, which goes from 1 to 16."""
        return log(1 + 15 * head / last)

    return [
        ones(f"{i}.norm", width),
        dense(f"{i}.in", inner + mixed + heads, width),
        Param(f"{i}.conv", (KERNEL, mixed), Uniform(0.5)),
        Param(f"{i}.conv_bias", (mixed,), Uniform(0.5)),
        Param(f"{i}.step", (heads,), Curve(step)),
        Param(f"{i}.decay", (heads,), Curve(decay)),
        Param(f"{i}.skip", (heads,), Fill(1.0)),
        ones(f"{i}.norm_out", inner),
        dense(f"{i}.out", width, inner),
    ]


class Mamba2(TorchPeer):
    slice = 1024

    def __init__(self, kind: str, spec: Spec, seed: int) -> None:
        super().__init__(kind, plan(kind, spec), seed)
        self.setup(drawn(self.plan, self.generator))

    def setup(self, weights: dict[str, Tensor]) -> None:
        """`weights` by the names of `table`."""
        self.w = weights
        self._head = self.linear(self.w.pop("head"))
        self.inner, self.heads, self.blocks = (self.config[name] for name in ("inner", "heads", "blocks"))
        self.clear(0)

    @property
    def head(self) -> Any:
        return self._head

    def weights(self) -> list[Tensor]:
        return [*self.w.values(), self._head.weight]

    def clear(self, room: int) -> None:
        """Of each block the last inputs of the convolution [3, I+2N] and the state [H,P,N]."""
        torch, like = self.torch, self.w["embedding"]
        self.conv = [like.new_zeros(KERNEL - 1, self.inner + 2 * STATE) for _ in range(self.blocks)]
        self.ssm = [torch.zeros(self.heads, self.inner // self.heads, STATE) for _ in range(self.blocks)]

    def held_bytes(self) -> int:
        return sum(state.nbytes for state in (*self.conv, *self.ssm))

    def inject(self, depth: int, extra: int = EXTRA) -> None:
        self.prefill(self.random_ids(SAMPLE), extra)
        self.conv, self.ssm = (
            [(state * (1 + SCATTER * self.normal(*state.shape))).to(state.dtype) for state in states]
            for states in (self.conv, self.ssm)
        )

    def read(self, ids: Tensor) -> Tensor:
        return self._run(ids, self.conv, self.ssm)[-1]

    def hidden(self, ids: Tensor) -> Tensor:
        self.clear(0)
        return self._run(ids, list(self.conv), list(self.ssm))

    def _run(self, ids: Tensor, conv: list[Tensor], ssm: list[Tensor]) -> Tensor:
        """[T] -> [T,C]; the lists get the states after the last token."""
        x = self.torch.nn.functional.embedding(ids, self.w["embedding"])
        for i in range(self.blocks):
            y, conv[i], ssm[i] = self._mix(self._norm(x, f"{i}.norm"), i, conv[i], ssm[i])
            x = x + y
        return self._norm(x, "norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return self.torch.nn.functional.rms_norm(x, x.shape[-1:], self.w[name], EPS)

    def _mix(self, x: Tensor, block: int, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        functional = self.torch.nn.functional
        w = {name: self.w[f"{block}.{name}"] for name in NAMES}
        rows, inner, heads = len(x), self.inner, self.heads
        gate, mixed, size = functional.linear(x, w["in"]).split([inner, inner + 2 * STATE, heads], -1)
        seen = self.torch.cat([conv, mixed])  # [3+T, I+2N]
        mixed = functional.silu(w["conv_bias"] + sum(seen[j : j + rows] * w["conv"][j] for j in range(KERNEL)))
        value, key, query = mixed.float().split([inner, STATE, STATE], -1)
        value = value.view(rows, heads, -1)
        size = functional.softplus((size + w["step"]).float())
        decay = -size * w["decay"].float().exp()  # its logarithm
        form = self._token if rows == 1 and not self.torch.is_grad_enabled() else self._chunks
        y, ssm = form(value * size[..., None], decay, key, query, ssm)
        y = (y + value * w["skip"].float()[:, None]).flatten(1).to(x.dtype)
        y = functional.rms_norm(y * functional.silu(gate), (inner,), w["norm_out"], EPS)
        return functional.linear(y, w["out"]), seen[rows:].clone(), ssm

    def _token(self, value: Tensor, decay: Tensor, key: Tensor, query: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor]:
        """As `_chunks` with T = 1; the state is changed in place."""
        ssm.mul_(decay.exp().view(-1, 1, 1)).addcmul_(value[0, :, :, None], key[0])
        return (ssm.flatten(0, 1) @ query[0]).view(value.shape), ssm

    def _chunks(self, value: Tensor, decay: Tensor, key: Tensor, query: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor]:
        """[T,H,P], [T,H], [T,N] x2, [H,P,N] -> [T,H,P] and the state: S <- e^decay S + value key^T, y = S query."""
        torch, rows = self.torch, len(value)
        count = -(-rows // CHUNK)

        def cut(x: Tensor) -> Tensor:  # [c,Q,..]; rows of zeros at the end change no state
            padded = torch.cat([x, x.new_zeros(count * CHUNK - rows, *x.shape[1:])])
            return padded.view(count, CHUNK, *x.shape[1:])

        value, decay, key, query = cut(value), cut(decay).cumsum(1), cut(key), cut(query)
        total = decay.mT  # [c,H,Q]
        causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
        fade = (total[..., None] - total[..., None, :]).masked_fill(~causal, -torch.inf).exp()  # [c,H,Q,Q]
        y = ((query @ key.mT)[:, None] * fade) @ value.transpose(1, 2)  # [c,H,Q,P]
        left = value * (decay[:, -1:] - decay).exp()[..., None]
        added = (left.flatten(2).mT @ key).view(count, *ssm.shape)
        before = []
        for whole, add in zip(decay[:, -1].exp()[..., None, None], added, strict=True):
            before.append(ssm)
            ssm = whole * ssm + add
        carried = (query @ torch.stack(before).flatten(1, 2).mT).view(value.shape) * decay.exp()[..., None]
        return (y.transpose(1, 2) + carried).flatten(0, 1)[:rows], ssm


NAMES = ("in", "conv", "conv_bias", "step", "decay", "skip", "norm_out", "out")
