"""The law of rows at a size where BLAS and kernels block and unroll: the conformance fixtures are 12 numbers wide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import ALL, random_model

import rookery
from rookery import _native
from rookery.weights.quantise import Plan, quantise

native = pytest.mark.skipif(not _native.available(), reason="the native core is not built")


@pytest.mark.parametrize(
    ("backend", "threads"),
    [("reference", None), pytest.param("native", 1, marks=native), pytest.param("native", 3, marks=native)],
)
@pytest.mark.parametrize(("version", "heads"), ALL)
def test_a_row_does_not_depend_on_its_neighbours(
    version: str, heads: int, backend: str, threads: int | None, tmp_path: Path
) -> None:
    path = random_model(tmp_path / "m.safetensors", version, heads)
    model = rookery.load(path, backend=backend, threads=threads)
    assert (model.config.version, model.backend) == (version, backend)
    check_law(model)


@native
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q5_1", "bf16", "f16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_nor_do_its_codes(dtype: str, threads: int, tmp_path: Path) -> None:
    path = random_model(tmp_path / "m.safetensors", "7", 5)
    quantise(path, tmp_path / "m.gguf", Plan(dtype))
    check_law(rookery.load(tmp_path / "m.gguf", backend="native", threads=threads))


def check_law(model: rookery.Model) -> None:
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


@native
def test_threads_and_runs_leave_no_trace(tmp_path: Path) -> None:
    """300 rows are two runs of the engine, cut within a sequence."""
    path = random_model(tmp_path / "m.safetensors", "7", 5)
    rows = [np.random.default_rng(i).integers(0, 256, 100) for i in range(3)]
    results = [rookery.load(path, backend="native", threads=n).forward_batch(rows, every=True) for n in (1, 2, 3, 5)]
    alone = [rookery.load(path, backend="native", threads=1).forward(row, every=True) for row in rows]
    for result in results:
        for (logits, state), (wanted, after) in zip(result, alone, strict=True):
            np.testing.assert_array_equal(logits, wanted)
            np.testing.assert_array_equal(state.vector(), after.vector())
