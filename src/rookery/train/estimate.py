"""What a run will take, before it begins: parameters, arithmetic, memory of one process, time.

Memory is counted, not guessed: two layers are run over fake tensors, which have sizes and no bytes, and what autograd
would keep of them is added up. Working space alone is a measured factor. B sequences, T tokens, C width, N head size.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from rookery import tokenizer, weights
from rookery.architecture import Config
from rookery.backends.torch import Network
from rookery.errors import InputError
from rookery.train import optimiser, shape
from rookery.train.config import Settings
from rookery.train.count import WIDE, device_of, fake, free_bytes, in_bytes, parameters, short, timed, wkv_flops
from rookery.train.loss import LOGITS, loss_of
from rookery.train.report import duration

COPIES_OF_LOGITS = 5  # the logits, their logarithm, its gradient, L2Wrap's, and their sum
WORKING = {"cpu": 0.3, "cuda": 1.5}  # what a block's backward pass needs at a time, in activations of a block
# glibc keeps freed pieces below 32 MB, and more of them where blocks come and go twice: resident over used, measured.
HEAP, HEAP_LIMIT = {False: 1.28, True: 2.4}, 32 << 20
SAMPLE = 32  # tokens of the sequences that are counted; all is linear in the number of sequences and tokens


@dataclass(frozen=True)
class Pace:
    """Seconds of a forward and backward pass over a micro batch, and of a step of AdamW; of the whole run."""

    micro_step: float
    optimiser_step: float
    tokens_per_second: float
    run: float


@dataclass(frozen=True)
class Estimate:
    """Bytes are those of one process. `total` is its worst moment, when not all of the others are there at once; on a
    CPU with what the allocator keeps, as the system counts it."""

    model: str
    parameters: dict[str, int]  # by kind: embedding, head, att, ffn, lora, vector
    flops_per_token: int  # forwards and backwards, recomputation included
    steps: int
    tokens_per_step: int
    world: int
    strategy: str  # one, ddp, fsdp, fsdp_offload
    precision: str
    micro_batch: int  # sequences of a forward pass
    ctx_len: int
    checkpointing: bool
    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    working: int
    total: int
    pace: Pace | None = None
    unmeasured: str = ""  # why there is no pace

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"parameters_total": sum(self.parameters.values())}

    def text(self) -> str:
        parts = ", ".join(f"{name} {short(n)}" for name, n in self.parameters.items() if n)
        memory = {name: getattr(self, name) for name in ("weights", "gradients", "moments")}
        memory |= {name: getattr(self, name) for name in ("activations", "logits", "working")}
        spread = "" if self.world == 1 else f", {self.world} processes, {self.strategy}"
        lines = [
            self.model,
            f"parameters   {sum(self.parameters.values()):,} ({parts})",
            f"arithmetic   {self.flops_per_token / 1e6:,.1f} MFLOP a token, forwards and backwards",
            f"memory       {in_bytes(self.total)} in one process at its worst moment, besides torch's own",
            f"             {self.micro_batch} x {self.ctx_len} tokens at a time, {self.precision}, "
            f"activation checkpointing {'on' if self.checkpointing else 'off (grad_cp=true turns it on)'}{spread}",
            "             " + ", ".join(f"{name} {in_bytes(n)}" for name, n in memory.items()),
            f"steps        {self.steps:,} of {self.tokens_per_step:,} tokens",
        ]
        if self.pace:
            speed = f"{self.pace.tokens_per_second:,.0f} tokens/s, measured"
            lines.append(f"time         {duration(self.pace.run)} at {speed}; without validation and communication")
        else:
            lines.append(f"time         not measured: {self.unmeasured or 'not asked for'}")
        return "\n".join(lines)


def dry_run(settings: Settings) -> Estimate:
    """The estimate of a run, with its pace where the model fits into this machine."""
    m = settings.model
    if m.load_model:
        config = weights.load(m.load_model).config
    else:
        config = shape.config(settings, m.vocab_size or tokenizer.load(settings.data.tokenizer).vocab_size)
    found = estimate(config, settings, int(os.environ.get("WORLD_SIZE", 1)))
    device = device_of(settings.run.device)
    free = free_bytes(device)
    if free is not None and found.total > 0.8 * free:
        return replace(found, unmeasured=f"{in_bytes(free)} are free on {device}")
    return replace(found, pace=measure(config, settings, found.world))


def estimate(config: Config, settings: Settings, world: int = 1) -> Estimate:
    """Sizes of a run of `world` processes. Raises InputError where the batch does not divide."""
    r = settings.run
    micro, _ = _micro(settings, world)
    strategy = "one" if world == 1 else "ddp" if r.strategy == "auto" else r.strategy
    numbers = parameters(config)
    matrices = sum(numbers[kind] for kind in ("head", "att", "ffn", "lora"))
    return Estimate(
        model=f"{config.name}, {config.n_layer} layers x {config.n_embd}, {config.n_vocab:,} tokens",
        parameters=numbers,
        flops_per_token=(4 if r.grad_cp else 3) * (2 * matrices + wkv_flops(config)),
        steps=settings.steps,
        tokens_per_step=settings.tokens_a_step,
        world=world,
        strategy=strategy,
        precision=r.precision,
        micro_batch=micro,
        ctx_len=settings.data.ctx_len,
        checkpointing=r.grad_cp,
        **_memory(config, settings, numbers, world, strategy),
    )


def _memory(config: Config, s: Settings, numbers: dict[str, int], world: int, strategy: str) -> dict[str, Any]:
    """The fields of Estimate that are bytes."""
    device, (micro, pieces) = device_of(s.run.device).type, _micro(s, world)
    rows, count = micro * s.data.ctx_len, sum(numbers.values())
    boundary = rows * config.n_embd * WIDE
    first, each = _activations(config, micro, s.data.ctx_len, s.run.precision == "bf16")
    working = int(WORKING.get(device, 1.5) * each)
    if s.run.grad_cp:  # what goes into each block, v7's first value, what goes into the head; one block's inside later
        activations, working = (config.n_layer + 2) * boundary, working + each
    else:
        activations = first + (config.n_layer - 1) * each
    chunk = min(rows, s.run.head_chunk or max(1, LOGITS // config.n_vocab))
    logits = chunk * config.n_vocab * WIDE * COPIES_OF_LOGITS
    share = world if strategy.startswith("fsdp") else 1
    state = -(-count * WIDE // share)
    if share > 1:  # the block that runs is whole, and so is the next one, which is fetched meanwhile
        outer = numbers["embedding"] + numbers["head"]
        working += (2 * (count - outer) // config.n_layer + outer) * WIDE
    held = 0 if strategy == "fsdp_offload" else state
    before = held if pieces > 1 or strategy == "ddp" else 0  # gradients that are there when a backward pass begins
    head = min(held, numbers["head"] * WIDE)
    peak = max(activations + logits + before, activations + working + max(before, head), held + working)
    heap = HEAP[s.run.grad_cp] if device == "cpu" and boundary < HEAP_LIMIT else 1.0
    return {
        "weights": state, "gradients": state, "moments": 2 * state,
        "activations": activations, "logits": logits, "working": working, "total": int((3 * held + peak) * heap),
    }  # fmt: skip


def measure(config: Config, settings: Settings, world: int = 1, seconds: float = 3.0) -> Pace:
    """Time real micro steps of random weights on random tokens for about `seconds`, uncompiled.

    Where one micro batch would take longer, a part of its sequences stands for it.
    """
    run, device = settings.run, device_of(settings.run.device)
    micro, pieces = _micro(settings, world)
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.set_float32_matmul_precision(run.matmul)
    torch.set_flush_denormal(True)
    network = real(config, device)
    network.checkpointing = run.grad_cp
    adam = optimiser.adamw(network, config, settings.optimiser)

    def pass_of(sequences: int) -> None:
        ids = torch.randint(config.n_vocab, (sequences, settings.data.ctx_len + 1), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            x, _ = network.hidden(ids[:, :-1])
            loss = loss_of(
                network.head, x.flatten(0, 1), ids[:, 1:].flatten(), settings.optimiser.l2wrap, run.head_chunk
            )
        torch.autograd.backward(loss)

    timed(lambda: pass_of(1), device)  # the first call of anything is slow
    alone = timed(lambda: pass_of(1), device)
    sequences = max(1, min(micro, int(seconds / 2 / alone)))
    repeats = max(1, min(20, int(seconds / (alone * sequences))))
    passes = min(timed(lambda: pass_of(sequences), device) for _ in range(repeats)) * micro / sequences
    adam.step()
    step = timed(adam.step, device)
    whole = pieces * passes + step
    return Pace(passes, step, settings.tokens_a_step / whole, settings.steps * whole)


def _micro(settings: Settings, world: int) -> tuple[int, int]:
    """Sequences of one forward pass of one process, and such passes in a step."""
    if settings.optimiser.batch % world:
        raise InputError(f"optimiser.batch = {settings.optimiser.batch}: a multiple of the {world} processes is wanted")
    share = settings.optimiser.batch // world
    micro = settings.optimiser.micro_batch or share
    return micro, -(-share // micro)


def _activations(config: Config, sequences: int, length: int, narrow: bool) -> tuple[int, int]:
    """Bytes that autograd keeps: of all but the later layers, and of one later layer."""
    two = replace(config, n_layer=2)
    with fake():
        network = Network.fresh(two)
        base, longer, wider = (_kept(network, b, t, narrow) for b, t in ((1, SAMPLE), (1, 2 * SAMPLE), (2, SAMPLE)))
    out = []
    for one, long, wide in zip(base, longer, wider, strict=True):
        per_token = (long - one) / SAMPLE
        per_sequence = wide - one - SAMPLE * per_token
        fixed = one - per_sequence - SAMPLE * per_token
        out.append(int(fixed + sequences * (per_sequence + length * per_token)))
    first, both = out
    return first, both - first


def _kept(network: Network, sequences: int, length: int, narrow: bool) -> tuple[int, int]:
    """Bytes kept for the backward pass until the second block begins, and in all; weights are not counted."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Any] = {}  # the storages themselves: a number might be given out again

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return x

    marks: list[int] = []

    def mark(*_: Any) -> None:
        marks.append(sum(s.nbytes() for s in kept.values()))

    hook = network.blocks[1].register_forward_pre_hook(mark)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16, narrow):
        network.hidden(torch.zeros(sequences, length, dtype=torch.long))
    hook.remove()
    mark()
    return marks[0], marks[1]


def real(config: Config, device: torch.device) -> Network:
    """A network of small random numbers, which take no time to make: the recipe's orthogonal ones do."""
    with fake():
        network = Network.fresh(config)
    for name, p in list(network.named_parameters()):
        home, _, leaf = name.rpartition(".")
        value = torch.empty(tuple(p.shape), device=device).normal_(0, 0.02)
        network.get_submodule(home)._parameters[leaf] = nn.Parameter(value)
    return network
