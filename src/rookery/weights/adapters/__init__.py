"""Adapters: what a tuned model has beside its base or in its place, read from files and applied to weights."""

from __future__ import annotations

import os

from rookery import formats
from rookery.errors import AdapterError
from rookery.weights.adapters.adapter import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Side, Whole
from rookery.weights.adapters.apply import beside, merged

__all__ = [
    "Adapter", "Bat", "Dora", "LowRank", "Miss", "Part", "Pissa", "Side", "Whole", "beside", "load", "merged",
]  # fmt: skip


def load(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter. Raises FileError subclasses, and AdapterError for a file that is none."""
    from rookery.weights.adapters import file

    found = formats.read(path)
    if found.metadata.get("rookery.kind") == "adapter":
        return file.of_file(found)
    raise AdapterError(f"{found.path}: not an adapter")
