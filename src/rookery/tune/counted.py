"""What a step of tuning holds at a time, counted over fake tensors by the tuner's own modules.

Models of more than a few layers are counted at two depths, and every phase of a step goes on in a straight line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rookery import state
from rookery.architecture import Config
from rookery.backends.torch import Network, wkv
from rookery.errors import InputError
from rookery.train import count
from rookery.train.count import WIDE, Live
from rookery.tune import attach, slices
from rookery.tune.config import Settings
from rookery.tune.quantised import QuantLinear
from rookery.tune.tuner import Trainee

DEEP = (4, 5)  # layers at which a deeper model is counted: every block has its place from one of the ends
SLICES = 3  # of a text of more, the others add their first states alone


def micro_batch(s: Settings) -> tuple[int, int]:
    """Sequences of one forward pass, and such passes in a step."""
    micro = min(s.optimiser.micro_batch or s.optimiser.batch, s.optimiser.batch)
    if s.optimiser.batch % micro:
        raise InputError(f"optimiser.micro_batch = {micro}: it must divide the {s.optimiser.batch} sequences of a step")
    return micro, s.optimiser.batch // micro


@dataclass(frozen=True)
class Counted:
    """Bytes, and numbers that are trained."""

    trained: int
    weights: int
    activations: int
    peaks: dict[str, int]  # of the phases of a step, beyond weights and moments
    begins: dict[str, int]  # what is held when a block's backward pass begins

    @property
    def total(self) -> int:
        return self.weights + 2 * WIDE * self.trained + max(self.peaks.values())

    @property
    def logits(self) -> int:
        return max(0, self.peaks["head"] - self.activations)

    @property
    def working(self) -> int:
        return max(self.peaks[phase] - held for phase, held in self.begins.items()) if self.begins else 0


def counted(config: Config, s: Settings, stored: str, micro: int, pieces: int) -> Counted:
    if config.n_layer <= max(DEEP):
        return _run(config, s, stored, micro, pieces)
    few, more = (_run(replace(config, n_layer=n), s, stored, micro, pieces) for n in DEEP)

    def onwards(a: int, b: int) -> int:
        return a + (b - a) * (config.n_layer - DEEP[0]) // (DEEP[1] - DEEP[0])

    return Counted(
        onwards(few.trained, more.trained),
        onwards(few.weights, more.weights),
        onwards(few.activations, more.activations),
        {phase: onwards(few.peaks[phase], more.peaks[phase]) for phase in few.peaks},
        {phase: onwards(few.begins[phase], more.begins[phase]) for phase in few.begins},
    )


def _run(config: Config, s: Settings, stored: str, micro: int, pieces: int) -> Counted:
    """A step over fake tensors. Of more slices than SLICES, the others' first states are added."""
    size, length = s.run.slice, s.data.ctx_len
    some = replace(s, data=replace(s.data, ctx_len=min(length, SLICES * size))) if size else s
    more = (-(-length // size) - SLICES) * WIDE * micro * state.size(config) if size else 0
    with ExitStack() as stack:
        stack.enter_context(count.fake())
        if count.device_of(s.run.device).type != "cpu":
            stack.enter_context(wkv.using("plain"))
        trainee = Trainee(attached(Network.fresh(config), s, stored), s)
        network = trainee.network
        held = [*network.parameters(), *network.buffers()]
        live = Live(held)
        begins: dict[str, int] = {}
        stack.enter_context(_marked(network, live, begins))
        with live:
            for _ in range(min(pieces, 2)):  # the second finds gradients
                step(trainee, some, batch(config, some, micro, torch.device("cpu")))
    return Counted(
        trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
        weights=sum(t.untyped_storage().nbytes() for t in held),
        activations=begins.pop("head", 0),
        peaks={phase: peak + max(0, more) for phase, peak in live.peaks.items()},
        begins={phase: now + max(0, more) for phase, now in begins.items()},
    )


@contextmanager
def _marked(network: Network, live: Live, begins: dict[str, int]) -> Iterator[None]:
    """Tell `live` of the phases: forwards, the head and its loss, the backward pass of blocks near both ends.

    Of the others, none holds more than the greater of their neighbours: what is kept falls, and gradients grow, by as
    much with each block.
    """
    last = len(network.blocks) - 1
    names = {0: "block 0", 1: "block 1", last - 1: "block -2", last: "block -1"}

    def mark(phase: str) -> None:
        live.begin(phase)
        begins[phase] = max(begins.get(phase, 0), live.now)

    def block(number: int) -> Callable[..., None]:
        def after(module: nn.Module, given: Any, out: tuple[Tensor, ...]) -> None:
            if out[0].requires_grad:
                out[0].register_hook(lambda gradient: mark(names.get(number, "blocks")))  # type: ignore[no-untyped-call]

        return after

    def head(module: nn.Module, given: Any) -> None:
        if live.phase == "forwards":
            mark("head")

    def forwards(module: nn.Module, given: Any) -> None:
        if not live.phase.startswith("block") or not torch.is_grad_enabled():
            live.begin("forwards")

    hooks = [b.register_forward_hook(block(i)) for i, b in enumerate(network.blocks)]
    hooks.append(network.head.register_forward_pre_hook(head))
    live.begin("forwards")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attached(network: Network, s: Settings, stored: str) -> Network:
    """The network with what is trained in its place, as `attach` does it, without looking at any number."""
    a = s.adapter
    if a.quant != "none" or (s.run.precision == "bf16" and stored == "bf16" and a.method not in ("pissa", "full")):
        for name, old in [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]:
            home, _, leaf = name.rpartition(".")
            if home:  # not the head
                setattr(network.get_submodule(home), leaf, _frozen(old, a.quant))
    plain = replace(s, adapter=replace(a, quant="none"), run=replace(s.run, precision="fp32"))
    attach.attach(network, plain, np.zeros(state.size(network.config), np.float32))
    network.checkpointing = s.run.grad_cp
    return network


def _frozen(linear: nn.Linear, quant: str) -> nn.Module:
    if quant != "none":
        return QuantLinear(linear.in_features, linear.out_features, quant)
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
    return linear


def batch(config: Config, s: Settings, micro: int, device: torch.device) -> list[Tensor]:
    shape = micro, s.data.ctx_len
    ids = torch.randint(config.n_vocab, shape, device=device)
    batch = [ids, ids.clone(), torch.full(shape, 1 / ids.numel(), device=device)]
    return [*batch, torch.zeros(shape, dtype=torch.bool, device=device)] if s.data.packing else batch


def step(trainee: Trainee, s: Settings, batch: list[Tensor]) -> None:
    """Forwards and backwards, as the tuner does it."""
    narrow = s.run.precision == "bf16"
    with torch.autocast(batch[0].device.type, torch.bfloat16) if narrow else nullcontext():
        if s.run.slice:
            slices.backward(trainee.network, *batch, size=s.run.slice, l2wrap=s.optimiser.l2wrap, rows=s.run.head_chunk)
            return
        loss = trainee(*batch)
    torch.autograd.backward(loss)
