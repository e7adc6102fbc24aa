"""int8 and nf4: the levels, the nearest of them, and what a row that is no whole blocks becomes."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from rookery.weights.adapters import blocks
from rookery.weights.adapters.blocks import BLOCK, LEVELS
from tolerances import NF4_LEVELS

KINDS = tuple(blocks.BYTES)


def grid(kind: str) -> np.ndarray:
    return np.array(LEVELS if kind == "nf4" else np.arange(-127, 128) / 127)


def matrix(rows: int = 5, columns: int = 2 * BLOCK, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def test_levels_are_quantiles() -> None:
    """QLoRA's definition: 8 and 9 even steps from the middle to the mean of two outermost probabilities."""
    quantile = NormalDist().inv_cdf
    end = ((1 - 1 / 30) + (1 - 1 / 32)) / 2
    positive = [quantile(p) for p in np.linspace(end, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(end, 0.5, 8)[:-1]]
    wanted = np.sort([*positive, 0, *negative]) / max(positive)
    np.testing.assert_allclose(LEVELS, wanted, rtol=0, atol=NF4_LEVELS)
    assert (LEVELS[0], LEVELS[7], LEVELS[15]) == (-1, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_level_of_each_block(kind: str) -> None:
    w = matrix()
    w[0, :BLOCK] = 0
    w[1, BLOCK:] *= 1e-3  # a scale of its own
    got = blocks.rounded(w, kind)
    assert (got.dtype, got.shape) == (np.float32, w.shape)
    top = np.abs(w.reshape(5, -1, BLOCK)).max(-1, keepdims=True).astype(np.float64)
    values = np.where(top > 0, w.reshape(5, -1, BLOCK) / np.where(top > 0, top, 1), 0)
    nearest = grid(kind)[np.abs(values[..., None] - grid(kind)).argmin(-1)] * top
    np.testing.assert_allclose(got, nearest.reshape(w.shape), rtol=1e-6, atol=0)
    assert not got[0, :BLOCK].any()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_again_changes_nothing(kind: str) -> None:
    once = blocks.rounded(matrix(), kind)
    assert (blocks.rounded(once, kind) == once).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, BLOCK - 1, BLOCK + 1, 3 * BLOCK - 27])
def test_short_blocks(kind: str, columns: int) -> None:
    w = matrix(columns=columns)
    codes, scales = blocks.codes(w, kind)
    n = -(-columns // BLOCK)
    assert (codes.dtype, codes.shape) == (np.uint8, (5, n * blocks.BYTES[kind]))
    assert (scales.dtype, scales.shape) == (np.float32, (5, n))
    whole = np.zeros((5, n * BLOCK), np.float32)
    whole[:, :columns] = w
    assert (blocks.dequantised(codes, scales, kind, columns) == blocks.rounded(whole, kind)[:, :columns]).all()


def test_low_bits_come_first() -> None:
    w = np.zeros((1, BLOCK), np.float32)
    w[0, 0], w[0, 3] = 2, -2
    codes, scales = blocks.codes(w, "nf4")
    assert codes[0, :3].tolist() == [15 | 7 << 4, 7 | 0 << 4, 7 | 7 << 4]
    assert scales.tolist() == [[2]]


def test_error_is_that_of_the_bits() -> None:
    """RMS of rounding normal numbers in blocks of 64: int8 0.6 %, nf4 9 %."""
    w = matrix(64, 1024)
    off = {kind: float(np.sqrt(np.square(blocks.rounded(w, kind) - w).mean())) for kind in KINDS}
    assert 0.005 < off["int8"] < 0.007
    assert 0.08 < off["nf4"] < 0.1


def test_refused() -> None:
    with pytest.raises(ValueError, match="choose from int8, nf4"):
        blocks.codes(matrix(), "fp4")
    for bad in (np.inf, np.nan):
        w = matrix()
        w[3, 3] = bad
        with pytest.raises(ValueError, match="infinity or NaN"):
            blocks.rounded(w, "int8")
