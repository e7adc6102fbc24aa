"""rwkv.cpp's files: layout by hand, and the fixtures against the .pth files made from them."""

from __future__ import annotations

from pathlib import Path

import forge
import numpy as np
import pytest

from rookery import errors, formats


def test_a_file_by_hand() -> None:
    values = np.arange(6, dtype="<f4")
    block = np.arange(22, dtype=np.uint8).tobytes()
    file = forge.parse(
        forge.ggmf([(b"emb", 0, (3, 2), values.tobytes()), (b"h", 1, (2,), b"\0\x3c\0\x40"), (b"q", 7, (32,), block)])
    )
    assert file.metadata == {"n_vocab": "256", "n_embd": "4", "n_layer": "1", "data_type": "f32"}
    assert [(name, t.dtype, t.shape) for name, t in file.tensors.items()] == [
        ("emb", "f32", (2, 3)),  # dims lie fastest first
        ("h", "f16", (2,)),
        ("q", "q5_0", (32,)),
    ]
    np.testing.assert_array_equal(file.tensors["emb"].array(), values.reshape(2, 3))
    np.testing.assert_array_equal(file.tensors["h"].array(), [1, 2])
    assert file.tensors["q"].data.tobytes() == block


@pytest.mark.parametrize(("code", "dtype"), [(2, "q4_0"), (3, "q4_1"), (7, "q5_0"), (8, "q5_1"), (9, "q8_0")])
def test_quantised_data_of_version_100_is_refused(code: int, dtype: str) -> None:
    tensors = [(b"a", 0, (1,), b"\0" * 4), (b"q", code, (32,), b"\0" * 34)]
    with pytest.raises(errors.UnsupportedType, match=f"tensor 'q' is {dtype} in the old layout"):
        forge.parse(forge.ggmf(tensors, version=100))
    with pytest.raises(errors.UnsupportedType, match=f"the file is {dtype} in the old layout"):
        forge.parse(forge.ggmf(tensors, version=100, file_type=code))
    assert forge.parse(forge.ggmf(tensors[:1], version=100)).metadata["data_type"] == "f32"


def test_ggmf_is_not_written(tmp_path: Path) -> None:
    for path, format in [("x.bin", None), ("x.pth", "ggmf"), ("x", None)]:
        with pytest.raises(errors.CannotWrite, match="safetensors, "):
            formats.write(tmp_path / path, {}, format=format)


@pytest.mark.parametrize(
    ("name", "count"),
    [("4v0-660K-FP32", 78), ("5v2-730K-FP32", 270), ("5v2-730K-FP16", 270), ("5v2-730K-Q5_0", 270),
     ("5v2-730K-Q5_1", 270), ("6v0-1m-FP32", 342), ("7v0-834K-FP32", 339), ("7v0-834K-Q5_1", 339)],
)  # fmt: skip
def test_fixtures_hold_the_values_of_their_pth(shared: Path, name: str, count: int) -> None:
    """Of the tensors that rwkv.cpp leaves as they were; the transformed ones are the business of `weights`."""
    models = shared / "fixtures" / "models"
    file = formats.read(models / f"tiny-rwkv-{name}.bin")
    assert (file.format, len(file.tensors)) == ("ggmf", count)
    model, kind = name.rsplit("-", 1)
    source = formats.read(models / f"tiny-rwkv-{model}.pth").tensors
    assert file.metadata["data_type"] == {"FP32": "f32", "FP16": "f16"}.get(kind, kind.lower())
    assert (int(file.metadata["n_vocab"]), int(file.metadata["n_embd"])) == file.tensors["emb.weight"].shape
    tolerance = {"FP32": 0.0, "FP16": 2e-3}.get(kind, 0.07)
    linears = [name for name in source if name.endswith(("key.weight", "value.weight", "ln1.bias", "emb.weight"))]
    assert len(linears) > 12
    for linear in linears:
        want, got = source[linear].float32(), file.tensors[linear].float32()
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), linear
