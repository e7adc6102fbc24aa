"""What serving a model will take: bytes of weights and sessions, tokens a second, money; no model is needed for it.

A step reads every weight once, whatever its rows, and each row's state is read and written: below the arithmetic's own
limit that, over the memory's bandwidth, is the shortest time a step can take. Nothing here is measured but what the
caller gives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from rookery import state
from rookery.architecture import Config, version
from rookery.formats import blocks
from rookery.formats.tensor import Array, Tensor
from rookery.weights.load import Weights
from rookery.weights.names import gguf
from rookery.weights.quantise import Plan as Types

EXACT = "4"  # the version whose states are not halved: their sums and exponent need float32
# Layers, key-value heads, head size, parameters: from the models' published configurations.
TRANSFORMERS = {
    "Qwen2.5-0.5B": (24, 2, 64, 0.49e9),
    "Qwen2.5-1.5B": (28, 2, 128, 1.54e9),
    "Llama-3.2-3B": (28, 8, 128, 3.21e9),
    "Llama-3.1-8B": (32, 8, 128, 8.03e9),
    "Qwen2.5-14B": (48, 8, 128, 14.8e9),
}
HALF = 2  # bytes of a number of a key-value cache
GIGA = 1e9


@dataclass(frozen=True)
class Cache:
    """A Transformer's memory of one conversation, beside a state's."""

    name: str
    bytes_per_token: int
    bytes: int  # at `context`
    sessions_per_gb: float


@dataclass(frozen=True)
class Speed:
    """`source`: "roofline" (from the bandwidth; no engine is faster) or "measured"."""

    rows: int
    tokens_per_second: float
    source: str
    cost_per_million: float | None = None  # tokens, in the price's money


@dataclass(frozen=True)
class ServePlan:
    """Sizes in bytes."""

    model: str
    type: str
    parameters: int
    weights: int
    read_per_step: int  # all of them but the embedding, of which a row is looked up
    state_float32: int  # a session that runs
    state_stored: int  # one that is kept, in float16
    sessions_per_gb: float  # that run
    stored_per_gb: float
    memory: int | None
    sessions_in_memory: int | None  # that run beside the weights
    context: int
    cache: Cache
    speeds: tuple[Speed, ...] = ()

    def json(self) -> dict[str, Any]:
        return asdict(self)


def of_shape(config: Config, type: str) -> tuple[int, int]:
    """Bytes of all weights as `rookery quantize --type` writes them, from a model in 16 bits, and of the embedding.

    Raises InputError for an unknown type.
    """
    types, table = Types(type), {p.name: p for p in version(config).params(config) if not p.optional}
    blank = {n: Tensor("bf16", p.file_shape, _blank(2 * prod(p.file_shape))) for n, p in table.items()}
    whole = 0
    for name, tensor in gguf.from_blinkdl(blank, config, {})[0].items():
        own = table.get(gguf.blinkdl_name(name, config.version[0]))
        whole += blocks.nbytes((own and types.of(own, tensor.shape[-1])) or tensor.dtype, tensor.shape)
    embedding = table["emb.weight"]
    return whole, blocks.nbytes(types.of(embedding, config.n_embd) or "bf16", embedding.file_shape)


def _blank(size: int) -> Array:
    """So many bytes that take no memory."""
    return np.broadcast_to(np.zeros((), np.uint8), (size,))


def of_file(weights: Weights) -> tuple[int, int]:
    """The same of a file as it is stored."""
    sizes = [(p, weights.tensors[p.name].nbytes) for p in weights.params if not p.optional]
    return sum(n for _, n in sizes), sum(n for p, n in sizes if p.kind == "embedding")


def plan(
    config: Config, type: str, weights: tuple[int, int], context: int = 8192, memory: int | None = None
) -> ServePlan:
    """The plan for a model whose weights take `weights` bytes (all, embedding), in `memory` bytes if they are known."""
    numbers, (whole, table) = state.size(config), weights
    parameters = sum(prod(p.shape) for p in version(config).params(config) if not p.optional)
    live, kept = 4 * numbers, (4 if config.version == EXACT else 2) * numbers
    return ServePlan(
        model=f"{config.name}, {config.n_layer} layers x {config.n_embd}, {config.n_vocab:,} tokens",
        type=type,
        parameters=parameters,
        weights=whole,
        read_per_step=whole - table,
        state_float32=live,
        state_stored=kept,
        sessions_per_gb=GIGA / live,
        stored_per_gb=GIGA / kept,
        memory=memory,
        sessions_in_memory=None if memory is None else max(0, memory - whole) // live,
        context=context,
        cache=cache(parameters, context),
    )


def cache(parameters: int, context: int) -> Cache:
    """The key-value cache, in 16 bits, of the published Transformer nearest in size; all have grouped queries."""
    name = min(TRANSFORMERS, key=lambda n: abs(TRANSFORMERS[n][3] - parameters))
    layers, heads, size, _ = TRANSFORMERS[name]
    token = 2 * layers * heads * size * HALF
    return Cache(name, token, token * context, GIGA / (token * context))


def roofline(found: ServePlan, rows: int, bandwidth: float, flops: float | None = None) -> Speed:
    """The speed that no engine exceeds with `rows` sequences in a step: bandwidth in bytes, flops in FLOP a second."""
    seconds = (found.read_per_step + rows * 2 * found.state_float32) / bandwidth
    if flops:
        seconds = max(seconds, rows * 2 * found.parameters / flops)
    return Speed(rows, rows / seconds, "roofline")


def priced(speed: Speed, hour: float) -> Speed:
    """With what a million tokens cost on a machine of `hour` an hour."""
    return Speed(speed.rows, speed.tokens_per_second, speed.source, hour / 3600 / speed.tokens_per_second * 1e6)


__all__ = ["TRANSFORMERS", "Cache", "ServePlan", "Speed", "of_file", "of_shape", "plan", "priced", "roofline"]
