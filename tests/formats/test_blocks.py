"""Block decoding against scalar loops written from the layout table."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rookery import formats
from rookery.formats import blocks


def scalar(dtype: str, block: bytes) -> list[np.float32]:
    """One block, one element at a time."""

    def half(at: int) -> np.float32:
        return np.float32(struct.unpack_from("<e", block, at)[0])

    d, values = half(0), []
    if dtype == "q8_0":
        return [d * np.float32(q) for q in struct.unpack_from("<32b", block, 2)]
    minimum = dtype.endswith("_1")
    at = 4 if minimum else 2
    high = 0
    if dtype.startswith("q5"):
        (high,) = struct.unpack_from("<I", block, at)
        at += 4
    for j in range(32):
        byte = block[at + j % 16]
        q = (byte >> 4 if j >= 16 else byte & 15) | (high >> j & 1) << 4
        if minimum:
            values.append(d * np.float32(q) + half(2))
        else:
            values.append(d * np.float32(q - (16 if dtype == "q5_0" else 8)))
    return values


@pytest.mark.parametrize(("dtype", "size"), [("q4_0", 18), ("q4_1", 20), ("q5_0", 22), ("q5_1", 24), ("q8_0", 34)])
def test_decode_is_bit_equal_to_the_layout(dtype: str, size: int) -> None:
    assert blocks.BLOCKS[dtype] == (size, 32)
    data = np.random.default_rng(1).integers(0, 256, (300, size), dtype=np.uint8)
    data[:, 1] &= 0x7B | 0x80  # no inf or NaN among the scales
    data[:, 3] &= 0x7B | 0x80
    got = blocks.decode(dtype, data.reshape(-1), (3, 100, 32))
    want = np.array([scalar(dtype, row.tobytes()) for row in data], np.float32).reshape(3, 100, 32)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_one_block_by_hand() -> None:
    data = struct.pack("<eI16B", 0.5, 1 << 17, *([0x21] * 16))
    got = blocks.decode("q5_0", np.frombuffer(data, np.uint8), (32,))
    want = np.array([-7.5] * 16 + [-7.0] * 16)  # codes 1 and 2, minus 16, times a half
    want[17] += 8  # its fifth bit
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", list(blocks.BLOCKS))
def test_a_scale_of_infinity_is_no_warning(dtype: str) -> None:
    data = np.zeros(blocks.BLOCKS[dtype][0], np.uint8)
    data[:2] = 0, 0x7C
    assert not np.isfinite(blocks.decode(dtype, data, (32,))).all()


def test_sizes() -> None:
    assert blocks.nbytes("q5_1", (3, 64)) == 3 * 2 * 24
    assert blocks.nbytes("bf16", (3, 5)) == 30
    assert blocks.nbytes("i64", ()) == 8
    for shape in [(3, 31), (), (32, 1)]:
        with pytest.raises(ValueError, match="multiple of 32"):
            blocks.nbytes("q8_0", shape)
    with pytest.raises(ValueError, match="takes 34 bytes, not 33"):
        blocks.decode("q8_0", np.zeros(33, np.uint8), (32,))


@pytest.mark.parametrize(("dtype", "bound"), [("q5_0", 0.066), ("q5_1", 0.034)])
def test_real_file_lies_within_half_a_step_of_its_source(shared: Path, dtype: str, bound: float) -> None:
    """The order of elements too: with halves swapped or the fifth bit lost, errors are of the size of the weights."""
    models = shared / "fixtures" / "models"
    exact = formats.read(models / "tiny-rwkv-5v2-730K-FP32.bin").tensors
    coarse = formats.read(models / f"tiny-rwkv-5v2-730K-{dtype.upper()}.bin").tensors
    quantised = [name for name, tensor in coarse.items() if tensor.dtype == dtype]
    assert len(quantised) > 80
    for name in quantised:
        source = exact[name].float32().reshape(-1, 32)
        error = np.abs(coarse[name].float32().reshape(-1, 32) - source).max(1)
        assert (error <= bound * np.abs(source).max(1) + 1e-7).all(), name
