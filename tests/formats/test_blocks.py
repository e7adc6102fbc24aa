"""Block decoding against scalar loops written from the layout table."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rookery import _native, formats
from rookery.formats import blocks, blocks_numpy

TYPES = list(blocks.BLOCKS)


@pytest.fixture(params=["native", "numpy"])
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two implementations runs."""
    if request.param == "numpy":
        monkeypatch.setattr(_native, "reason", "not built")
        monkeypatch.delenv("ROOKERY_REQUIRE_NATIVE", raising=False)
    elif not _native.available():
        pytest.skip("the native core is not built")
    return str(request.param)


def scalar(dtype: str, block: bytes) -> list[np.float32]:
    """One block, one element at a time."""

    def half(at: int) -> np.float32:
        return np.float32(struct.unpack_from("<e", block, at)[0])

    if dtype in ("q4_k", "q5_k"):
        return [scalar_k(dtype, block, half(0), half(2), i) for i in range(256)]
    if dtype == "q6_k":
        return [scalar_q6_k(block, half(208), i) for i in range(256)]
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


def scalar_k(dtype: str, block: bytes, d: np.float32, dmin: np.float32, i: int) -> np.float32:
    """Element i: group i // 64, its low or its high nibbles."""
    part, s = i // 32, block[4:16]
    if part < 4:
        scale, minimum = s[part] & 63, s[part + 4] & 63
    else:
        scale = s[part + 4] & 15 | s[part - 4] >> 6 << 4
        minimum = s[part + 4] >> 4 | s[part] >> 6 << 4
    codes = block[48:] if dtype == "q5_k" else block[16:]
    byte = codes[32 * (i // 64) + i % 32]
    q = byte >> 4 if part % 2 else byte & 15
    if dtype == "q5_k":
        q |= (block[16 + i % 32] >> part & 1) << 4
    return d * np.float32(scale) * np.float32(q) - dmin * np.float32(minimum)


def scalar_q6_k(block: bytes, d: np.float32, i: int) -> np.float32:
    half, run, at = i // 128, i % 128 // 32, i % 32
    low, high = block[64 * half :], block[128 + 32 * half :]
    q = [low[at] & 15, low[at + 32] & 15, low[at] >> 4, low[at + 32] >> 4][run] | (high[at] >> 2 * run & 3) << 4
    scale = struct.unpack_from("<b", block, 192 + 8 * half + 2 * run + at // 16)[0]
    return d * np.float32(scale) * np.float32(q - 32)


SIZES = [
    ("q4_0", 18),
    ("q4_1", 20),
    ("q5_0", 22),
    ("q5_1", 24),
    ("q8_0", 34),
    ("q4_k", 144),
    ("q5_k", 176),
    ("q6_k", 210),
]


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_decode_is_bit_equal_to_the_layout(core: str, dtype: str, size: int) -> None:
    elements = 256 if dtype.endswith("k") else 32
    assert blocks.BLOCKS[dtype] == (size, elements)
    data = np.random.default_rng(1).integers(0, 256, (300, size), dtype=np.uint8)
    for high in (209,) if dtype == "q6_k" else (1, 3):
        data[:, high] &= 0x7B | 0x80  # no inf or NaN among the scales
    got = blocks.decode(dtype, data.reshape(-1), (3, 100, elements))
    want = np.array([scalar(dtype, row.tobytes()) for row in data], np.float32).reshape(3, 100, elements)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_core_decodes_every_scale_as_numpy_does(dtype: str) -> None:
    if not _native.available():
        pytest.skip("the native core is not built")
    size, elements = blocks.BLOCKS[dtype]
    data = np.zeros((65536, size), np.uint8)
    data[:] = np.random.default_rng(2).integers(0, 256, size, dtype=np.uint8)
    at = 208 if dtype == "q6_k" else 0
    data[:, at : at + 2] = np.arange(65536, dtype="<u2")[:, None].view(np.uint8)
    got = blocks.decode(dtype, data.reshape(-1), (65536, elements))
    np.testing.assert_array_equal(got, blocks_numpy.decode(dtype, data.reshape(-1)).reshape(got.shape))


def test_one_block_by_hand() -> None:
    data = struct.pack("<eI16B", 0.5, 1 << 17, *([0x21] * 16))
    got = blocks.decode("q5_0", np.frombuffer(data, np.uint8), (32,))
    want = np.array([-7.5] * 16 + [-7.0] * 16)  # codes 1 and 2, minus 16, times a half
    want[17] += 8  # its fifth bit
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_scale_of_infinity_is_no_warning(core: str, dtype: str) -> None:
    size, elements = blocks.BLOCKS[dtype]
    data = np.zeros(size, np.uint8)
    at = 208 if dtype == "q6_k" else 0
    data[at : at + 2] = 0, 0x7C
    assert not np.isfinite(blocks.decode(dtype, data, (elements,))).all()


def test_the_core_checks_its_bounds() -> None:
    if not _native.available():
        pytest.skip("the native core is not built")
    data, values = np.zeros(34, np.uint8), np.zeros(64, np.float32)
    for run in (lambda: _native.core.decode_blocks("q8_0", data, values),
                lambda: _native.core.encode_blocks("q8_0", values, data)):  # fmt: skip
        with pytest.raises(ValueError, match="34 bytes do not hold 64 elements"):
            run()
    with pytest.raises(ValueError, match="no block type q3_k"):
        _native.core.decode_blocks("q3_k", data, values)
    with pytest.raises(TypeError):
        _native.core.encode_blocks("q8_0", values[:32].astype(np.float64), data)  # type: ignore[arg-type]
    values.flags.writeable = False
    with pytest.raises(TypeError):
        _native.core.decode_blocks("q8_0", data, values[:32])


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
