"""safetensors: a file byte by byte, round trips, and the safetensors library as the oracle in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import forge
import numpy as np
import pytest

from rookery import errors, formats
from rookery.formats.tensor import Tensor


def test_a_small_file_byte_by_byte(tmp_path: Path) -> None:
    formats.write(tmp_path / "x.safetensors", {"a": Tensor.of(np.float32([1, -2]))}, {"k": "é"})
    header = '{"__metadata__":{"k":"é"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.encode()
    padded = header + b" " * (120 - len(header))
    want = b"\x78\0\0\0\0\0\0\0" + padded + b"\0\0\x80\x3f\0\0\0\xc0"
    assert (tmp_path / "x.safetensors").read_bytes() == want
    assert (len(want) - 8) % 64 == 0


def test_round_trip_of_every_type(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", forge.sample()
    formats.write(path, tensors, {"one": "1", "": "empty key"})
    file = formats.read(path)
    assert (file.format, file.path, file.metadata) == ("safetensors", str(path), {"one": "1", "": "empty key"})
    assert forge.equal(file.tensors, tensors)


def test_empty_file_of_no_tensors(tmp_path: Path) -> None:
    formats.write(tmp_path / "x.safetensors", {})
    assert formats.read(tmp_path / "x.safetensors").tensors == {}


def test_the_library_reads_ours(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    theirs = pytest.importorskip("safetensors.torch")
    library = pytest.importorskip("safetensors")
    path, tensors = tmp_path / "x.safetensors", forge.sample(1)
    formats.write(path, tensors, {"who": "us"})
    loaded = theirs.load_file(path)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert tuple(loaded[name].shape) == tensor.shape, name
        np.testing.assert_array_equal(loaded[name].double().numpy(), tensor.array(), err_msg=name)
    with library.safe_open(path, "np") as opened:
        assert opened.metadata() == {"who": "us"}


def test_we_read_the_librarys(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("safetensors.torch")
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool]  # fmt: skip
    tensors = {str(kind): (torch.arange(15) - 7).abs().to(kind).reshape(3, 5) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "nothing": torch.zeros(0, 3)}
    theirs.save_file(tensors, tmp_path / "x.safetensors", {"a": "b"})
    file = formats.read(tmp_path / "x.safetensors")
    assert file.metadata == {"a": "b"}
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(file.tensors[name].array(), tensor.double().numpy(), err_msg=name)


def test_header_order_is_kept_while_data_is_aligned(tmp_path: Path) -> None:
    tensors = {"b": Tensor.of(np.uint8([1, 2, 3])), "a": Tensor.of(np.float64([4])), "c": Tensor.of(np.float16([5]))}
    formats.write(tmp_path / "x.safetensors", tensors)
    data = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {name: entry["data_offsets"] for name, entry in header.items()} == {"b": [10, 13], "a": [0, 8], "c": [8, 10]}
    assert list(formats.read(tmp_path / "x.safetensors").tensors) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        ({"__metadata__": Tensor.of(np.float32([1]))}, {}, errors.CannotWrite),
        ({"q": Tensor("q8_0", (32,), np.zeros(34, np.uint8))}, {}, errors.UnsupportedType),
        ({"half\ud800": Tensor.of(np.float32([1]))}, {}, errors.CannotWrite),
        ({}, {"k": "\udfff"}, errors.CannotWrite),
    ],
)
@pytest.mark.parametrize("old", [None, b"old"])
def test_what_cannot_be_written(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], error: type[Exception], old: bytes | None
) -> None:
    path = tmp_path / "x.safetensors"
    if old:
        path.write_bytes(old)
    with pytest.raises(error):
        formats.write(path, tensors, metadata)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([old] if old else [])
