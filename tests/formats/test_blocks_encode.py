"""Encoding: the same bytes with and without the core, small errors, and blocks that survive being encoded again."""

from __future__ import annotations

import numpy as np
import pytest

from rookery import _native
from rookery.errors import BackendError
from rookery.formats import blocks, blocks_numpy
from rookery.formats.tensor import Array

SIMPLE = [dtype for dtype in blocks.BLOCKS if not dtype.endswith("k")]
native = pytest.mark.skipif(not _native.available(), reason="the native core is not built")
random = np.random.default_rng(7)
DATA: dict[str, Array] = {
    "normal": random.normal(size=(40, 256)),
    "heavy tails": random.standard_t(2, (40, 256)) * 1e-3,
    "of the size of float16's last bit": random.normal(size=(40, 256)) * 1e-7,
    "too large for any scale": random.normal(size=(40, 256)) * 1e7,
    "so large that squares overflow": random.normal(size=(8, 256)) * 1e25,
    "few whole numbers": random.integers(-3, 4, (40, 256)),
    "all positive": random.uniform(3, 4, (8, 256)),
    "zeros": np.zeros((2, 256)),
    "one outlier": np.eye(8, 256) * 5 + 1e-3,
}
DATA = {name: values.astype(np.float32) for name, values in DATA.items()}
# Root mean square of what is lost of normal numbers; llama.cpp's own (plain formula or search) loses 0.5 to 9 % more.
LOSS = {
    "q8_0": 0.0054, "q4_0": 0.083, "q4_1": 0.0743, "q5_0": 0.041, "q5_1": 0.0364,
    "q4_k": 0.0723, "q5_k": 0.0356, "q6_k": 0.0174,
}  # fmt: skip


@native
@pytest.mark.parametrize("dtype", SIMPLE)
@pytest.mark.parametrize("name", DATA)
def test_the_stand_in_gives_the_same_bytes(dtype: str, name: str) -> None:
    values = DATA[name]
    np.testing.assert_array_equal(blocks.encode(dtype, values), blocks_numpy.encode(dtype, values))


@pytest.mark.parametrize("dtype", blocks.BLOCKS)
def test_little_is_lost(dtype: str) -> None:
    if dtype.endswith("k") and not _native.available():
        pytest.skip("the native core is not built")
    values = np.random.default_rng(8).normal(size=(200, 512)).astype(np.float32)
    data = blocks.encode(dtype, values)
    assert data.dtype == np.uint8
    assert data.shape == (blocks.nbytes(dtype, values.shape),)
    rest = blocks.decode(dtype, data, values.shape) - values
    assert np.sqrt(np.mean(rest**2)) < LOSS[dtype]


@native
@pytest.mark.parametrize("dtype", blocks.BLOCKS)
def test_every_number_is_within_a_step_of_its_block(dtype: str) -> None:
    for name in ("normal", "heavy tails", "few whole numbers", "zeros", "one outlier"):
        values = DATA[name].reshape(-1, 32)
        back = blocks.decode(dtype, blocks.encode(dtype, DATA[name]), DATA[name].shape).reshape(-1, 32)
        step = 2 * np.abs(values).max(1) / {"4": 15, "5": 31, "6": 63, "8": 254}[dtype[1]]
        slack = 1e-3 * np.abs(values).max() if dtype.endswith("k") else 1e-6
        assert (np.abs(back - values).max(1) <= 1.25 * step + slack).all(), name


@pytest.mark.parametrize("dtype", SIMPLE)
def test_what_came_out_of_blocks_goes_back_unchanged(dtype: str) -> None:
    once = blocks.decode(dtype, blocks.encode(dtype, DATA["normal"]), (40, 256))
    again = blocks.decode(dtype, blocks.encode(dtype, once), (40, 256))
    np.testing.assert_allclose(again, once, rtol=0, atol=2e-7 * np.abs(once).max())


@native
@pytest.mark.parametrize("dtype", blocks.BLOCKS)
def test_any_finite_number_encodes_to_something_finite(dtype: str) -> None:
    for name, values in DATA.items():
        back = blocks.decode(dtype, blocks.encode(dtype, values), values.shape)
        assert np.isfinite(back).all(), name
        assert not back[values.sum(1) == 0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    values = np.zeros((2, 32), np.float32)
    values[1, 5] = bad
    with pytest.raises(ValueError, match="infinity or NaN"):
        blocks.encode("q4_0", values)


def test_without_the_core_k_types_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    values = DATA["normal"]
    with_core = blocks.encode("q5_1", values)
    monkeypatch.setattr(_native, "reason", "not built")
    monkeypatch.delenv("ROOKERY_REQUIRE_NATIVE", raising=False)
    np.testing.assert_array_equal(blocks.encode("q5_1", values), with_core)
    with pytest.raises(BackendError, match="encoding q4_k needs the native core"):
        blocks.encode("q4_k", values)
    monkeypatch.setenv("ROOKERY_REQUIRE_NATIVE", "1")
    for run in (lambda: blocks.encode("q5_1", values), lambda: blocks.decode("q5_1", with_core, values.shape)):
        with pytest.raises(BackendError, match="ROOKERY_REQUIRE_NATIVE is set"):
            run()


def test_rows_that_are_no_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        blocks.encode("q6_k", np.zeros((4, 128), np.float32))
    assert blocks.encode("q8_0", np.zeros((0, 32), np.float32)).size == 0
