"""The law of rows at a size where BLAS blocks and unrolls: the conformance fixtures are 12 numbers wide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery.architecture import VERSIONS, Config
from rookery.formats import Tensor, write

RANKS = {"w": 16, "a": 16, "v": 16, "g": 32, "maa": 16, "decay": 32}


def random_model(version: str, heads: int, path: Path) -> rookery.Model:
    config = Config(version, 2, 320, 256, 1120, heads, RANKS)
    rng = np.random.default_rng(5)
    write(
        path,
        {
            p.name: Tensor.of((rng.standard_normal(p.file_shape) / max(1, p.file_shape[-1]) ** 0.5).astype(np.float32))
            for p in VERSIONS[version].params(config)
        },
    )
    return rookery.load(path)


@pytest.mark.parametrize(("version", "heads"), [("4", 0), ("5.0", 5), ("5.1", 5), ("5.2", 5), ("6", 5), ("7", 5)])
def test_a_row_does_not_depend_on_its_neighbours(version: str, heads: int, tmp_path: Path) -> None:
    model = random_model(version, heads, tmp_path / "m.safetensors")
    assert model.config.version == version
    prompt = np.random.default_rng(6).integers(0, 256, 65)
    together, end = model.forward(prompt, every=True)
    state, alone = None, []
    for token in prompt:
        logits, state = model.forward(token, state)
        alone.append(logits)
    assert state is not None
    np.testing.assert_array_equal(np.array(alone), together)
    np.testing.assert_array_equal(state.vector(), end.vector())
    for batch in (2, 3, 16, 65):
        rows = [np.roll(prompt, i)[: 1 + i % 3] for i in range(batch)]
        for row, (logits, state) in list(zip(rows, model.forward_batch(rows), strict=True))[:: max(1, batch // 3)]:
            wanted, after = model.forward(row)
            np.testing.assert_array_equal(logits, wanted)
            np.testing.assert_array_equal(state.vector(), after.vector())
