"""Panels: their bytes one by one, and that every type's values come back from them to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from rookery import _native
from rookery.formats import blocks, panels
from rookery.formats.tensor import Array, Tensor, plain, row_major

SHAPES = [(1, 256), (16, 256), (17, 512), (40, 256)]
PLAIN = ("f32", "f16", "bf16", "f64")


def random(dtype: str, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Any bytes at all, with scales that are numbers."""
    draw = np.random.default_rng(seed)
    if dtype not in blocks.BLOCKS:
        return Tensor.of(draw.standard_normal(shape), dtype)
    data = draw.integers(0, 256, blocks.nbytes(dtype, shape), np.uint8)
    block = data.view(blocks.LAYOUT[dtype])
    for name in {"d", "m"} & set(block.dtype.names or ()):
        block[name] = draw.standard_normal(len(block))
    return Tensor(dtype, shape, data)


def bits(values: Array) -> Array:
    return values.view(np.uint32)


@pytest.fixture(params=["core", "numpy"])
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(_native, "core", None)
        monkeypatch.setattr(_native, "reason", "not built")
        monkeypatch.delenv("ROOKERY_REQUIRE_NATIVE", raising=False)
    elif not hasattr(_native.core, "pack"):
        pytest.skip("the native core is not built")
    return str(request.param)


@pytest.mark.parametrize("dtype", [*PLAIN, *blocks.BLOCKS])
def test_values_come_back_to_the_bit(dtype: str, packer: str) -> None:
    for shape in SHAPES:
        source = random(dtype, shape)
        made = panels.of(source)
        assert made.dtype == f"panel_{panels.kind_of(dtype)}"
        assert made.shape == shape
        assert made.nbytes == panels.nbytes(made.dtype, shape) == blocks.nbytes(made.dtype, shape)
        assert made.nbytes % 64 == 0
        got, want = made.array(), source.float32()
        if dtype == "q6_k":  # the sign of a zero
            np.testing.assert_array_equal(got, want)
            got, want = got + np.float32(0), want + np.float32(0)
        np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (16, 7), (33, 31), (3, 17, 5)])
@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("turned", [False, True])
def test_any_rows_columns_stacks_and_the_transpose(
    shape: tuple[int, ...], dtype: str, turned: bool, packer: str
) -> None:
    source = random(dtype, shape)
    made = panels.of(source, turned)
    assert panels.parts(made.dtype) == (panels.kind_of(dtype), turned)
    assert made.shape == shape
    assert made.nbytes == blocks.nbytes(made.dtype, shape)
    np.testing.assert_array_equal(made.float32(), source.float32())


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_the_bytes_one_by_one(dtype: str, packer: str) -> None:
    """Two panels of 64 columns, 15 rows of the second beyond the matrix; written out as native/panels.h says it."""
    source = random(dtype, (17, 64))
    raw = panels.of(source).data
    kind = panels.kind_of(dtype)
    size = panels.panel_bytes(kind, 64)
    for row in range(17):
        panel, r = raw[row // 16 * size :][:size], row % 16
        values = source.float32()[row]
        for c in range(64):
            if kind in ("f32", "f16"):
                got = panel.view(f"<f{size // 1024}")[c * 16 + r]
            elif kind == "bf16":
                got = (panel.view("<u2")[(c // 2 * 16 + r) * 2 + c % 2 :][:1].astype(np.uint32) << 16).view("<f4")[0]
            else:
                scale = np.float32(panel[:64].view("<f2")[c // 32 * 16 + r])
                if kind == "q8":
                    code = int(panel[64 + (c // 4 * 16 + r) * 4 + c % 4]) - 128
                else:
                    j, b = c % 16 // 4, c % 4
                    byte = int(panel[64 + ((c // 32 * 4 + j) * 16 + r) * 4 + b])
                    code = (byte >> 4 if c % 32 >= 16 else byte & 15) - 8
                got = scale * np.float32(code)
            assert got == values[c]


def test_the_core_packs_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(_native.core, "pack"):
        pytest.skip("the native core is not built")
    made = {}
    for core in (_native.core, None):
        monkeypatch.setattr(_native, "core", core)
        kinds = [(dtype, shape) for dtype in ("f32", "f16", "bf16", *blocks.BLOCKS) for shape in SHAPES]
        kinds += [(dtype, (18, 7)) for dtype in ("f32", "f16", "bf16")]
        kinds += [(dtype, (18, 96)) for dtype, (_, size) in blocks.BLOCKS.items() if size == 32]
        made[core] = [panels.of(random(dtype, shape)).data for dtype, shape in kinds]
    for mine, theirs in zip(*made.values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_scales_that_are_no_numbers_stay_what_they_are() -> None:
    block = np.zeros(2, blocks.LAYOUT["q8_0"])
    block["d"], block["q"] = [np.inf, np.nan], 1
    source = Tensor("q8_0", (2, 32), block.view(np.uint8))
    np.testing.assert_array_equal(panels.of(source).array(), source.array())


def test_seen_otherwise() -> None:
    """A shape that would break a panel or a block, other axes, and plain numbers."""
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    for tensor in (panels.of(Tensor.of(values)), Tensor("q8_0", (2, 32), blocks.encode("q8_0", values))):
        decoded = tensor.array()
        np.testing.assert_array_equal(tensor.permuted(1, 0).array(), decoded.T)
        np.testing.assert_array_equal(tensor.reshape(64, 1).array(), decoded.reshape(64, 1))
        np.testing.assert_array_equal(tensor.reshape(64).array(), decoded.reshape(64))
        assert tensor.reshape(1, 2, 32).dtype == tensor.dtype
        assert plain(tensor).dtype == "f32"
    wide = random("bf16", (4, 32))
    assert [plain(panels.of(wide, turned)).dtype for turned in (False, True)] == ["bf16", "bf16"]
    source = random("q8_0", (4, 32))
    assert row_major(source) is source


@pytest.mark.parametrize("shape", [(), (32,), (16, 33), (2, 16, 48)])
def test_shapes_that_panels_cannot_have(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="panels"):
        panels.nbytes("panel_q8", shape)
    with pytest.raises(ValueError, match="panels"):
        panels.decode("panel_q8", np.zeros(8, np.uint8), shape)


def test_bytes_that_do_not_fit_the_shape() -> None:
    with pytest.raises(ValueError, match="takes 576 bytes, not 575"):
        panels.decode("panel_q8", np.zeros(575, np.uint8), (16, 32))


@pytest.mark.parametrize(("dtype", "want"), [
    ("f16", "f16"), ("bf16", "bf16"), ("f32", "f32"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q5_0", "q8_0"),
    ("q4_1", "f32"), ("q6_k", "f32"),
])  # fmt: skip
def test_back_in_rows(dtype: str, want: str) -> None:
    for shape in ((1, 256), (40, 512), (2, 17, 256)):
        source = random(dtype, shape)
        back = row_major(panels.of(source))
        assert (back.dtype, back.shape) == (want, shape)
        np.testing.assert_array_equal(back.array(), source.array())
        if dtype == want:
            np.testing.assert_array_equal(back.data, source.data)
    turned = panels.of(random("f32", (32, 64)), turned=True)
    assert row_major(turned).dtype == "f32"
    assert panels.to_blocks(Tensor("panel_q8", (0, 32), np.empty(0, np.uint8))).data.size == 0
