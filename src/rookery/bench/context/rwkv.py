"""RWKV as a peer: Rookery's own networks in torch, and the same weights on the native core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from math import prod, sqrt
from typing import Any

import numpy as np

from rookery import state
from rookery.architecture import Config, Param, version
from rookery.architecture.spec import Orthogonal, Uniform
from rookery.bench.context.match import OUTER, Plan, Spec, fill
from rookery.bench.context.peer import EXTRA, SAMPLE, SCATTER, Logits, Peer, Tensor, TorchPeer, drawn, input_major
from rookery.errors import BackendError
from rookery.formats.tensor import Tensor as Stored
from rookery.weights import Weights, tree

VERSIONS = {"rwkv4": "4", "rwkv5": "5.2", "rwkv6": "6", "rwkv7": "7"}
NATIVE = {f"{kind}-native": name for kind, name in VERSIONS.items()}
STORED = {"float32": "f32", "bfloat16": "bf16"}
QUIET = {"att": 0.5, "ffn": 0.5, "lora": 0.1}  # gain of matrices that training begins at zero: here all are at work


def plan(kind: str, spec: Spec) -> Plan:
    config = sized(VERSIONS[kind], spec)
    pieces = state.pieces(config)
    kept = config.n_layer * sum(p.size * (4 if p.name == "wkv" else spec.bytes) for p in pieces)
    return Plan(spec, _said(config), _params(config), (kept, 0), "torch, rookery's own back end")


def native_plan(kind: str, spec: Spec) -> Plan:
    """As `plan`; the native core keeps every state in float32."""
    config = sized(NATIVE[kind], spec)
    kept = 4 * state.size(config)
    return Plan(spec, _said(config), _params(config), (kept, 0), "rookery's native core", "not the peers' runtime")


def sized(number: str, spec: Spec) -> Config:
    """The version's recipe at the width that the parameters allow; the width of channel mixing makes them equal."""
    from rookery.train.shape import ranks

    def made(width: int, ffn: int) -> Config:
        heads = 0 if number == "4" else width // spec.head_size
        return Config(number, spec.layers, width, spec.vocab, ffn, heads, ranks(number, width))

    def count(width: int, ffn: int) -> int:
        return sum(prod(p.shape) for p in _table(made(width, ffn)) if p.kind not in OUTER)

    return made(*fill(spec, count))


def _said(c: Config) -> dict[str, Any]:
    return {"width": c.n_embd, "ffn": c.n_ffn, "layers": c.n_layer, "heads": c.n_head, "ranks": dict(c.ranks)}


def _table(c: Config) -> list[Param]:
    return [p for p in version(c).params(c) if not p.optional]


def _params(c: Config) -> tuple[Param, ...]:
    return tuple(_loud(p) for p in _table(c))


def _loud(p: Param) -> Param:
    """Matrices of independent numbers, none zero: orthogonal ones take seconds to make."""
    if p.kind not in (*QUIET, "head"):
        return p
    gain = p.init.gain if isinstance(p.init, Orthogonal) else QUIET[p.kind]
    inputs = p.shape[-2] if p.kind == "lora" else p.shape[-1]  # low-rank pairs are stored input-major
    return replace(p, init=Uniform(gain * sqrt(3 / inputs)))


class Rwkv(TorchPeer):
    slice = 1024

    def __init__(self, kind: str, spec: Spec, seed: int) -> None:
        super().__init__(kind, plan(kind, spec), seed)
        from rookery.backends.torch import Network

        config, made = sized(VERSIONS[kind], spec), drawn(self.plan, self.generator)
        self.network = Network(config, tree(_weights(self.plan, config), lambda p, _: made[p.name]))
        for module in self.network.modules():
            if isinstance(module, self.torch.nn.Linear):
                module.weight.data = input_major(module.weight.data)
        self.clear(0)

    @property
    def head(self) -> Any:
        return self.network.head

    def weights(self) -> list[Tensor]:
        return list(self.network.parameters())

    def clear(self, room: int) -> None:
        with self.torch.inference_mode():
            self.states = self.network.start(1)
            for layer in self.states:
                layer["wkv"] = layer["wkv"].float()

    def read(self, ids: Tensor) -> Tensor:
        with _in_torch(ids):
            x, self.states = self.network.hidden(ids[None], self.states)
        return x[0, -1]

    def hidden(self, ids: Tensor) -> Tensor:
        with _in_torch(ids):
            return self.network.hidden(ids[None])[0][0]

    def held_bytes(self) -> int:
        return sum(piece.nbytes for layer in self.states for piece in layer.values())

    def inject(self, depth: int, extra: int = EXTRA) -> None:
        self.prefill(self.random_ids(SAMPLE), extra)
        for layer in self.states:
            for name, piece in layer.items():
                layer[name] = (piece * (1 + SCATTER * self.normal(*piece.shape))).to(piece.dtype)


def _in_torch(ids: Tensor) -> AbstractContextManager[None]:
    """The recurrence in plain torch, like Mamba-2's: left alone, a prompt runs in the C++ core where that is built."""
    from rookery.backends.torch import wkv

    return wkv.using("plain" if len(ids) >= wkv.FEW else "step")


class Native(Peer):
    """The native core reads a prompt in chunks of its own, keeps float32 states and does not train."""

    def __init__(self, kind: str, spec: Spec, seed: int) -> None:
        super().__init__(kind, native_plan(kind, spec))
        import torch

        from rookery.model import load

        made = drawn(self.plan, torch.Generator().manual_seed(seed))
        weights = _weights(self.plan, sized(NATIVE[kind], spec))
        for p in weights.params:
            weights.tensors[p.name] = Stored.of(
                made.pop(p.name).float().numpy().reshape(p.file_shape), STORED[spec.dtype]
            )
        self.model = load(weights, "native", threads=spec.threads)
        self.draw = np.random.default_rng(seed)
        self.flat = self.model.state().flat

    def held_bytes(self) -> int:
        return self.flat.nbytes

    def inject(self, depth: int, extra: int = EXTRA) -> None:
        self.prefill(self.draw.integers(self.plan.spec.vocab, size=SAMPLE))
        self.flat *= 1 + SCATTER * self.draw.standard_normal(self.flat.shape, np.float32)

    def prefill(self, tokens: Iterable[int], extra: int = EXTRA) -> Logits:
        logits, after = self.model.forward(np.asarray(tokens, np.int64))
        self.flat = after.flat
        return logits

    def step(self, token: int) -> Logits:
        return self.model.runner.step([np.array([token])], [self.flat])[0]

    def train(self, length: int) -> Callable[[], float]:
        raise untrained(self.kind)


def untrained(kind: str) -> BackendError:
    return BackendError(f"{kind}: the native core does not train; {kind.removesuffix('-native')} does")


def _weights(plan: Plan, config: Config) -> Weights:
    """A plan's tensors as an opened file would name them, still without numbers."""
    blank = Stored("u8", (0,), np.empty(0, np.uint8))
    return Weights("random weights", "none", config, {p.name: blank for p in plan.params})
