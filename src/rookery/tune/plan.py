"""What tuning a model will take, by method: parameters, memory, arithmetic, time; the longest context that fits.

Memory is counted, not guessed: see tune/counted.py. B sequences, T tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rookery.architecture import Config
from rookery.train import count
from rookery.train.count import WIDE
from rookery.train.estimate import real
from rookery.tune import attach
from rookery.tune.config import Settings, check
from rookery.tune.counted import attached, batch, counted, micro_batch, step
from rookery.tune.tuner import Trainee

# What a run may be asked for: the method of a tuning run, and how the frozen matrices lie.
METHODS = {
    "lora": ("lora", "none"),
    "rslora": ("rslora", "none"),
    "dora": ("dora", "none"),
    "pissa": ("pissa", "none"),
    "miss": ("miss", "none"),
    "qlora-int8": ("lora", "int8"),
    "qlora-nf4": ("lora", "nf4"),
    "state": ("state", "none"),
    "full": ("full", "none"),
}


@dataclass(frozen=True)
class Plan:
    """Bytes of one process. `total` is its worst moment, when not all of the others are there at once."""

    model: str
    method: str
    parameters: int
    trained: int  # of them, or beside them
    micro_batch: int  # sequences of a forward pass
    ctx_len: int
    precision: str
    checkpointing: bool
    slice: int
    weights: int  # frozen ones as they lie, trained ones float32
    gradients: int
    moments: int
    activations: int  # that a forward pass keeps
    logits: int  # and what else the loss holds
    working: int  # of a block's backward pass
    total: int
    loading: int  # in the computer's memory, before the first step
    flops_per_token: int  # forwards and backwards, recomputation included
    tokens_per_step: int
    seconds_per_step: float | None = None
    tokens_per_second: float | None = None
    pace: str = ""  # where the time is from, or why there is none
    longest_context: int | None = None  # that fits into the memory given, the batch as it is
    largest_batch: int | None = None  # of sequences at a time, the context as it is

    def json(self) -> dict[str, Any]:
        return asdict(self)


def with_method(s: Settings, method: str) -> Settings:
    """The settings for a name of METHODS. Raises InputError for what cannot be together."""
    kind, quant = METHODS[method]
    made = replace(s, adapter=replace(s.adapter, method=kind, quant=quant))
    check(made)
    return made


def _named(s: Settings) -> str:
    kind, quant = s.adapter.method, s.adapter.quant
    known = (name for name, pair in METHODS.items() if pair == (kind, quant))
    return next(known, f"{kind} over {quant}")


def plan(config: Config, s: Settings, stored: str = "bf16") -> Plan:
    """The plan of a run of one process with a base of these sizes, whose matrices are stored in type `stored`.

    Raises InputError for targets that the model does not have and for v4's states.
    """
    micro, pieces = micro_batch(s)
    found = counted(config, s, stored, micro, pieces)
    numbers = count.parameters(config)
    name = f"{config.name}, {config.n_layer} layers x {config.n_embd}, {config.n_vocab:,} tokens"
    return Plan(
        model=name,
        method=_named(s),
        parameters=sum(numbers.values()),
        trained=found.trained,
        micro_batch=micro,
        ctx_len=s.data.ctx_len,
        precision=s.run.precision,
        checkpointing=s.run.grad_cp,
        slice=s.run.slice,
        weights=found.weights,
        gradients=WIDE * found.trained,
        moments=2 * WIDE * found.trained,
        activations=found.activations,
        logits=found.logits,
        working=found.working,
        total=found.total,
        loading=WIDE * sum(numbers.values()),
        flops_per_token=_flops(config, s, numbers, found.trained),
        tokens_per_step=s.tokens_a_step,
        pace="not asked for",
    )


def fitted(config: Config, s: Settings, stored: str, free: int, begun: Plan) -> Plan:
    """`begun` with the longest context, and the largest number of sequences at a time, that take at most `free`."""
    micro, pieces = micro_batch(s)

    def context(n: int) -> int:
        return counted(config, replace(s, data=replace(s.data, ctx_len=n)), stored, micro, pieces).total

    def sequences(n: int) -> int:
        return counted(config, s, stored, n, 1).total

    return replace(
        begun, longest_context=_most(context, s.data.ctx_len, free), largest_batch=_most(sequences, micro, free)
    )


def at_rate(begun: Plan, flops: float, why: str) -> Plan:
    """`begun` with its time on a machine that does so many FLOP a second."""
    rate = flops / begun.flops_per_token
    return replace(begun, seconds_per_step=begun.tokens_per_step / rate, tokens_per_second=rate, pace=why)


def measured(config: Config, s: Settings, stored: str, begun: Plan, seconds: float = 3.0) -> Plan:
    """`begun` with the time of real micro steps here, of random weights on random tokens, for about `seconds`.

    Where the model does not fit into this machine's memory, the plan says so instead.
    """
    device = count.device_of(s.run.device)
    room = count.free_bytes(device)
    if room is not None and max(begun.total, begun.loading) > 0.8 * room:
        return replace(begun, pace=f"not measured: {count.in_bytes(room)} are free on {device}")
    micro, pieces = micro_batch(s)
    trainee = Trainee(attached(real(config, torch.device("cpu")), s, stored).to(device), s)
    network = trainee.network
    adam = torch.optim.AdamW(attach.groups(network, 0.0), 1e-9, fused=True)

    def passed() -> None:
        step(trainee, s, batch(config, s, micro, device))

    count.timed(passed, device)  # the first call of anything is slow
    one = count.timed(passed, device)
    one = min([one, *(count.timed(passed, device) for _ in range(min(10, int(seconds / one))))])
    adam.step()
    whole = pieces * one + count.timed(adam.step, device)
    return replace(
        begun, seconds_per_step=whole, tokens_per_second=s.tokens_a_step / whole, pace=f"measured on {device}"
    )


def _flops(config: Config, s: Settings, numbers: dict[str, int], trained: int) -> int:
    """A token's, forwards and backwards: a frozen matrix has no gradient of its own."""
    matrices = sum(numbers[kind] for kind in ("head", "att", "ffn", "lora"))
    forwards = 2 * matrices + count.wkv_flops(config)
    beside = 0 if s.adapter.method in ("full", "state") else 2 * trained
    own = 2 * matrices if s.adapter.method == "full" else beside
    again = forwards + beside if s.run.grad_cp or s.run.slice else 0
    return forwards + beside + again + 2 * matrices + 2 * count.wkv_flops(config) + beside + own


def _most(total: Callable[[int], int], begin: int, free: int) -> int:
    """The greatest n, but for a fiftieth, of which `total(n)` is at most `free`; nearly a line, and dear to ask."""
    low, high, here, last = 0, 0, dict[int, int](), begin
    at = begin
    for turn in range(20):
        here[at] = total(at)
        low, high = (at, high) if here[at] <= free else (low, at)
        if high and high - low <= max(1, low // 50):
            break
        if not high:  # where the line through the last two meets `free`, and a little further
            rise = max(1, (here[at] - here[last]) // max(1, at - last)) if at > last else 0
            last, at = at, at + (free - here[at]) * 101 // (100 * rise) + 1 if rise else 2 * at
        elif not low:
            at = high // 4 or 1
        elif turn % 2:
            at = (low + high) // 2
        else:
            at = low + (high - low) * (free - here[low]) // (here[high] - here[low])
            at = min(max(at, low + 1), high - 1)
    return low
