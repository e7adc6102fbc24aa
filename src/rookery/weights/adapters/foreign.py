"""What readers and writers of other programs' adapters share: checked settings, and our story beside theirs."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from rookery.errors import AdapterError
from rookery.formats.raw import brief
from rookery.weights.adapters.adapter import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Whole
from rookery.weights.adapters.file import FINGERPRINT, KIND, LARGEST, LINEAGE, METHOD, QUANT, SCALES

ALPHA = "rookery.alpha"
METHODS: dict[type[Part], str] = {LowRank: "lora", Dora: "dora", Pissa: "pissa", Miss: "miss", Bat: "bat"}
T = TypeVar("T")


def number(path: str, name: str, value: Any) -> float:
    """A setting that must be a number that float32 holds. Raises AdapterError."""
    if type(value) in (int, float) and abs(value) <= LARGEST:  # NaN is not
        return float(value)
    raise AdapterError(f"{path}: {name} is {brief(str(value))}; a finite number is wanted")


def alpha_of(part: LowRank | Dora) -> float:
    """The alpha whose quotient by the rank is the part's scale, to the bit where there is one."""
    rank = len(part.a)
    alpha = part.scale * rank
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    return next((a for a in near if a / rank == part.scale), alpha)


def one(adapter: Adapter, path: str, what: str, values: set[T], form: str) -> T:
    """The only one of `values`; `what` they are, and the `form` that would hold several, for the message."""
    if len(values) == 1:
        return next(iter(values))
    said = ", ".join(sorted(map(str, values))[:4])
    raise AdapterError(
        f"{path}: cannot hold {adapter.path or 'this adapter'}: its parts differ in {what} ({said}); {form}"
    )


def main_kind(adapter: Adapter, path: str) -> type[Part] | None:
    """The one kind of the parts that are not whole tensors; None where all are. Raises AdapterError."""
    kinds = {type(part) for part in adapter.parts.values() if not isinstance(part, Whole)}
    names = {METHODS[kind]: kind for kind in kinds}
    return names[one(adapter, path, "method", set(names), "Rookery's own form holds them all")] if kinds else None


def story(adapter: Adapter) -> dict[str, str]:
    """What the form has no place for, as metadata that other programs pass over."""
    ours = {key: value for key, value in adapter.metadata.items() if key.startswith("rookery.")}
    said = {key: value for key, value in ours.items() if key not in (KIND, METHOD, SCALES, ALPHA)}
    said |= {QUANT: adapter.quant} if adapter.quant != "none" else {}
    if adapter.base_fingerprint and adapter.base_lineage:
        said |= {FINGERPRINT: adapter.base_fingerprint, LINEAGE: adapter.base_lineage}
    return said
