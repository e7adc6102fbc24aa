"""Our file of an adapter: safetensors with the arrays of each part, `{tensor}:{field}`, and its story as metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from rookery import formats
from rookery.errors import AdapterError
from rookery.formats.raw import brief
from rookery.formats.tensor import Array, Tensor
from rookery.weights.adapters.adapter import KINDS, Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Whole

KIND, SCALES = "rookery.kind", "rookery.scales"
METHOD, QUANT = "rookery.method", "rookery.quant"
LARGEST = float(np.finfo(np.float32).max)
FINGERPRINT, LINEAGE = "rookery.base.fingerprint", "rookery.base.lineage"

# Which arrays a part has tells its kind; Miss and Bat are told apart by their axes.
_BY_FIELDS = {
    frozenset(f.name for f in fields(kind) if f.name != "scale"): kind  # type: ignore[arg-type]
    for kind in KINDS
    if kind is not Bat
}


def write(path: str | os.PathLike[str], adapter: Adapter) -> None:
    """Write `adapter` as float32, all or nothing. Raises CannotWrite."""
    tensors, scales = {}, {}
    for name, part in adapter.parts.items():
        for f in fields(part):  # type: ignore[arg-type]
            value = getattr(part, f.name)
            if f.name == "scale":
                scales[name] = float(value)
            else:
                tensors[f"{name}:{f.name}"] = Tensor.of(np.asarray(value, np.float32))
    said = adapter.metadata | {KIND: "adapter", METHOD: adapter.method, QUANT: adapter.quant}
    said |= {SCALES: json.dumps(scales)} if scales else {}
    if adapter.base_fingerprint and adapter.base_lineage:
        said |= {FINGERPRINT: adapter.base_fingerprint, LINEAGE: adapter.base_lineage}
    formats.write(path, tensors, said, format="safetensors")


def of_file(file: formats.File) -> Adapter:
    """The adapter in a file. Raises AdapterError for what is none, or has numbers that are not finite."""
    said = file.metadata
    if said.get(KIND) != "adapter":
        raise AdapterError(f"{file.path}: not an adapter of Rookery")
    arrays: dict[str, dict[str, Any]] = {}
    for key, tensor in file.tensors.items():
        name, _, what = key.rpartition(":")
        arrays.setdefault(name, {})[what] = numbers(file.path, key, tensor)
    scales = _scales(file.path, said.get(SCALES, "{}"))
    parts = {name: _part(file.path, name, found, scales) for name, found in arrays.items()}
    return told(file.path, parts, said.get(METHOD, "lora"), said)


def numbers(path: str, name: str, tensor: Tensor) -> Array:
    """A tensor of an adapter as float32. Raises AdapterError where a number is not finite."""
    value = tensor.float32()
    if not np.isfinite(value).all():
        raise AdapterError(f"{path}: {brief(name)} has numbers that are not finite")
    return value


def told(path: str, parts: dict[str, Part], method: str, said: Mapping[str, Any], **more: str) -> Adapter:
    """The adapter of these parts, with what its metadata tell: ours, or what foreign.story left in others' files."""
    if not parts:
        raise AdapterError(f"{path}: an adapter without a part")
    quant = said.get(QUANT, "none")
    if quant not in Adapter.QUANTS:
        raise AdapterError(f"{path}: made over a base in {brief(str(quant))}; known: {', '.join(Adapter.QUANTS)}")
    ours = {key: value for key, value in said.items() if key.startswith("rookery.") and isinstance(value, str)}
    return Adapter(parts, method, path, ours | more, said.get(FINGERPRINT), said.get(LINEAGE), str(quant))


def _scales(path: str, text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
        if isinstance(found, dict) and all(type(v) in (int, float) and abs(v) <= LARGEST for v in found.values()):
            return found
    except (ValueError, RecursionError):
        pass
    raise AdapterError(f"{path}: its metadata {SCALES} is damaged; a JSON object of numbers is wanted")


def _part(path: str, name: str, arrays: dict[str, Any], scales: dict[str, float]) -> Part:
    kind: Any = _BY_FIELDS.get(frozenset(arrays))
    if kind is None:
        raise AdapterError(f"{path}: {name} has {', '.join(sorted(arrays))}, which make no part of an adapter")
    if kind is Miss and arrays["d"].ndim == 3:
        kind = Bat
    if kind in (LowRank, Dora):
        if name not in scales:
            raise AdapterError(f"{path}: the scale of {name} is missing from its metadata {SCALES}")
        return kind(**arrays, scale=scales[name])  # type: ignore[no-any-return]
    assert kind in (Pissa, Miss, Bat, Whole)
    return kind(**arrays)  # type: ignore[no-any-return]
