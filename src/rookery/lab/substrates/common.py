"""What substrates share: seeded random streams, snapshots, and the arithmetic of a perturbation."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, StateError
from rookery.lab.metrics.arrays import norm

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Float64: TypeAlias = npt.NDArray[np.float64]


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """A random stream of its own for each purpose: equal seeds and labels give equal numbers, others independent ones.

    Raises InputError for a seed or label below 0.
    """
    for number in [seed, *labels]:
        if not isinstance(number, str) and (
            isinstance(number, bool) or not isinstance(number, Integral) or int(number) < 0
        ):
            raise InputError(f"seed {seed!r} {labels}: wanted whole numbers of 0 or more")
    # A digest, since a list given to NumPy as a seed is the same list with zeros appended.
    text = repr([number if isinstance(number, str) else int(number) for number in [seed, *labels]])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()))


@dataclass(frozen=True)
class Snapshot:
    """A substrate's whole state: its arrays by name and its random generator's state. Holds copies."""

    name: str
    tick: int
    arrays: Mapping[str, Float64]
    random: Mapping[str, Any]

    @classmethod
    def take(cls, name: str, tick: int, arrays: Mapping[str, Float64], rng: np.random.Generator) -> Snapshot:
        """Copies of `arrays`, and where `rng` stands."""
        return cls(name, tick, {key: a.copy() for key, a in arrays.items()}, copy.deepcopy(rng.bit_generator.state))


def put_back(snapshot: Any, name: str, arrays: Mapping[str, Float64], rng: np.random.Generator) -> int:
    """Write a Snapshot into a substrate's own `arrays` and `rng`; its tick.

    Raises StateError, having changed nothing, when it is of a substrate with another name or other shapes.
    """
    if not isinstance(snapshot, Snapshot):
        raise StateError(f"{type(snapshot).__name__} is no snapshot of {name!r}")
    mine, theirs = ({key: a.shape for key, a in held.items()} for held in (arrays, snapshot.arrays))
    if (name, mine) != (snapshot.name, theirs):
        raise StateError(f"the snapshot is of {snapshot.name!r} with {theirs}: wanted {name!r} with {mine}")
    for key, array in arrays.items():
        array[...] = snapshot.arrays[key]
    rng.bit_generator.state = copy.deepcopy(dict(snapshot.random))
    return snapshot.tick


def displacement(components: Mapping[str, Array], component: str, direction: npt.ArrayLike, size: float) -> Float64:
    """What `perturb` adds: size * ||component|| * direction/||direction||, float64, in the component's shape.

    Raises InputError for an unknown component, a direction of another shape, or one without a finite length above 0.
    """
    if component not in components:
        raise InputError(f"component {component!r}: wanted one of {', '.join(components)}")
    value, along = components[component], np.asarray(direction, np.float64)
    if along.shape != value.shape:
        raise InputError(f"direction has shape {along.shape}: {component!r} has {value.shape}")
    length = norm(along)
    if not (math.isfinite(length) and length > 0.0 and math.isfinite(size)):
        raise InputError(f"direction of length {length:g}, size {size:g}: wanted finite ones, and a length above 0")
    return along * (size * norm(value) / length)
