"""Random models of chosen sizes, for the tests of back ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rookery.architecture import VERSIONS, Config
from rookery.formats import Tensor, write

RANKS = {"w": 16, "a": 16, "v": 16, "g": 32, "maa": 16, "decay": 32}
ALL = [("4", 0), ("5.0", 5), ("5.1", 5), ("5.2", 5), ("6", 5), ("7", 5)]  # version, heads of a width that 5 divides


def random_model(path: Path, version: str, heads: int, width: int = 320, hidden: int = 1120, **sizes: Any) -> Path:
    """Write a model of two layers with weights of a scale at which every part matters."""
    config = Config(version, 2, width, sizes.pop("vocabulary", 256), hidden, heads, sizes.pop("ranks", RANKS))
    rng = np.random.default_rng(5)
    write(
        path,
        {
            p.name: Tensor.of((rng.standard_normal(p.file_shape) / max(1, p.file_shape[-1]) ** 0.5).astype(np.float32))
            for p in VERSIONS[version].params(config)
        },
    )
    return path
