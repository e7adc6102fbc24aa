"""An adapter on its base: merged, one model as any other; or beside it, the base's own numbers untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from rookery.formats.tensor import NUMPY, Array, Deferred, Tensor
from rookery.weights.adapters.adapter import Adapter, LowRank, Miss, Part, Pissa, Side
from rookery.weights.load import Weights

BESIDE = ("att", "ffn", "head")  # kinds of tensor that are multiplied, so that something can run beside them


def merged(weights: Weights, *adapters: Adapter) -> Weights:
    """The model that base and adapters make, the adapters applied in their order. Raises AdapterError.

    Changed tensors are float32, computed when they are asked for; the others are the base's. It is a model of its own:
    its lineage is not the base's.
    """
    if weights.base is not None:
        return merged(weights.base, *weights.adapted, *adapters)
    tensors = {name: _dense(weights, name, parts, adapters) for name, parts in _parts(weights, adapters).items()}
    metadata = {key: value for key, value in weights.metadata.items() if key != "rookery.lineage"}
    return replace(weights, tensors=weights.tensors | tensors, metadata=metadata)


def beside(weights: Weights, *adapters: Adapter) -> Weights:
    """The base with `sides`, for a back end to run beside the linears. Raises AdapterError.

    What cannot run beside (embedding, vectors, whole tensors, two parts that do not add up) is merged, and so float32.
    A state of it is not one of the base: fingerprint and lineage say which adapters are there.
    """
    if not adapters:
        return weights
    if weights.base is not None:
        return beside(weights.base, *weights.adapted, *adapters)
    kinds = {p.name: p.kind for p in weights.params}
    tensors: dict[str, Tensor] = {}
    sides: dict[str, Side] = {}
    for name, parts in _parts(weights, adapters).items():
        base = _rounded(weights, name, adapters)
        side = _side(base.float32, parts) if kinds[name] in BESIDE else None
        tensors[name] = base if side else _dense(weights, name, parts, adapters)
        sides |= {name: side} if side else {}
    return replace(weights, tensors=weights.tensors | tensors, sides=sides, adapted=adapters, base=weights)


def _parts(weights: Weights, adapters: Sequence[Adapter]) -> dict[str, list[Part]]:
    """What the adapters, in their order, do to each tensor: to some of a rounded base nothing else."""
    found: dict[str, list[Part]] = {}
    for adapter in adapters:
        adapter.check(weights)
        for name, part in adapter.parts.items():
            found.setdefault(name, []).append(part)
    for p in weights.params:
        if p.name not in found and _rounded(weights, p.name, adapters) is not weights.tensors[p.name]:
            found[p.name] = []
    return found


def _side(w: Callable[[], Array], parts: Sequence[Part]) -> Side | None:
    """The parts as one: any single one that can, or several that only add up."""
    if len(parts) == 1:
        return parts[0].side(w())
    if not parts:
        return None
    if not all(isinstance(part, LowRank | Pissa | Miss) for part in parts):
        return None
    sides = [side for part in parts if (side := part.side(w()))]
    return Side(np.concatenate([s.a for s in sides]), np.concatenate([s.b for s in sides], axis=1))


def _dense(weights: Weights, name: str, parts: Sequence[Part], adapters: Sequence[Adapter]) -> Tensor:
    base = _rounded(weights, name, adapters)

    def make() -> Tensor:
        return Tensor.of(reduce(lambda w, part: part.changed(w), parts, base.float32()))

    return Deferred("f32", base.shape, make)


def _rounded(weights: Weights, name: str, adapters: Sequence[Adapter]) -> Tensor:
    """The base's tensor, rounded as all matrices of blocks were under training where an adapter says so.

    Another than it was trained on, if that lies in blocks, is taken as it is: it has been rounded already.
    """
    tensor = weights.tensors[name]
    over = next((a for a in adapters if a.quant != "none"), None)
    if over is None or next(p.kind for p in weights.params if p.name == name) not in ("att", "ffn"):
        return tensor
    plain = tensor.dtype in NUMPY or tensor.dtype == "bf16"
    if not plain and over.base_fingerprint != weights.fingerprint:
        return tensor
    from rookery.weights.adapters.blocks import rounded

    return Deferred("f32", tensor.shape, lambda: Tensor.of(rounded(tensor.float32(), over.quant)))
