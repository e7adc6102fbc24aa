"""An LSTM as a peer: torch.nn.LSTM layers with a norm before and a residual around each, and the same head.

A prompt is nn.LSTM's own scan, token after token within each layer. A decode step is the same equations over the same
weights in single operations: nn.LSTM costs several times as much for one token.
C width, T tokens.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from rookery.architecture.spec import Fill, Param, Uniform
from rookery.bench.context.match import Plan, Spec, nearest
from rookery.bench.context.peer import EXTRA, Tensor, TorchPeer, drawn
from rookery.bench.context.transformer import EPS, dense, ones

WORKSPACE = 14.5  # numbers a channel and token that torch's kernel keeps out of sight while it trains (measured)
GATES = 4  # input, forget, cell, output
REMEMBER = 1.0  # bias of the forget gate, as is usual
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def plan(kind: str, spec: Spec) -> Plan:
    width = nearest(spec, lambda width: Plan(spec, {}, tuple(table(spec, width)), (0, 0), "").parameters)
    said = {"width": width, "layers": spec.layers}
    kept = 2 * spec.layers * width * spec.bytes
    return Plan(spec, said, tuple(table(spec, width)), (kept, 0), "torch, nn.LSTM")


def table(spec: Spec, width: int) -> list[Param]:
    made = [dense("embedding", spec.vocab, width, "embedding"), dense("head", spec.vocab, width, "head")]
    for i in range(spec.layers):
        made += [
            ones(f"{i}.norm", width),
            *(Param(f"{i}.{name}", (GATES * width, width), Uniform(sqrt(3 / width)), "att") for name in PARTS[:2]),
            *(Param(f"{i}.{name}", (GATES * width,), Fill(0.0)) for name in PARTS[2:]),
        ]
    return [*made, ones("norm", width)]


class Lstm(TorchPeer):
    slice = 1024

    def __init__(self, kind: str, spec: Spec, seed: int) -> None:
        super().__init__(kind, plan(kind, spec), seed)
        torch, w = self.torch, drawn(self.plan, self.generator)
        width = self.config["width"]
        self._head = self.linear(w.pop("head"))
        self.layers = []
        for i in range(spec.layers):
            layer = torch.nn.LSTM(width, width, device="meta")
            for name in PARTS:
                setattr(layer, f"{name}_l0", torch.nn.Parameter(w.pop(f"{i}.{name}")))
            layer.bias_ih_l0.data[width : 2 * width] = REMEMBER
            self.layers.append(layer)
        self.w = w
        self.clear(0)

    @property
    def head(self) -> Any:
        return self._head

    def weights(self) -> list[Tensor]:
        return [*self.w.values(), *(p for layer in self.layers for p in layer.parameters()), self._head.weight]

    def clear(self, room: int) -> None:
        """Of each layer the output and the cell, [1,C]."""
        like, width = self.w["embedding"], self.config["width"]
        self.states = [(like.new_zeros(1, width), like.new_zeros(1, width)) for _ in self.layers]

    def held_bytes(self) -> int:
        return sum(piece.nbytes for pair in self.states for piece in pair)

    def inject(self, depth: int, extra: int = EXTRA) -> None:
        """Cells of unit scale, and the outputs that half-open gates give of them."""
        self.clear(0)
        for y, cell in self.states:
            cell.copy_(self.normal(*cell.shape))
            y.copy_(0.5 * cell.tanh())

    def read(self, ids: Tensor) -> Tensor:
        return self._run(ids, self.states)[-1]

    def hidden(self, ids: Tensor) -> Tensor:
        self.clear(0)
        return self._run(ids, list(self.states))

    def unseen(self, length: int) -> int:
        return int(WORKSPACE * length * len(self.layers) * self.config["width"] * 4)

    def _run(self, ids: Tensor, states: list[tuple[Tensor, Tensor]]) -> Tensor:
        """[T] -> [T,C]; `states` get those after the last token."""
        x = self.torch.nn.functional.embedding(ids, self.w["embedding"])
        one = len(ids) == 1 and not self.torch.is_grad_enabled()
        for i, layer in enumerate(self.layers):
            given = self._norm(x, f"{i}.norm")
            y, states[i] = self._token(layer, given, *states[i]) if one else layer(given, states[i])
            x = x + y
        return self._norm(x, "norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return self.torch.nn.functional.rms_norm(x, x.shape[-1:], self.w[name], EPS)

    def _token(self, layer: Any, x: Tensor, y: Tensor, cell: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[1,C] x3 -> the output, and the state."""
        linear = self.torch.nn.functional.linear
        gates = linear(x, layer.weight_ih_l0, layer.bias_ih_l0) + linear(y, layer.weight_hh_l0, layer.bias_hh_l0)
        open_, keep, new, out = gates.chunk(GATES, -1)
        cell = keep.sigmoid() * cell + open_.sigmoid() * new.tanh()
        y = out.sigmoid() * cell.tanh()
        return y, (y, cell)
