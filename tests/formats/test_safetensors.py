"""safetensors: a file byte by byte, round trips, and the safetensors library as the oracle in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import forge
import numpy as np
import pytest

from rookery import errors, formats
from rookery.formats import blocks, panels
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


def test_blocks_and_panels_lie_in_it_as_bytes_on_cache_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    blocks_of = Tensor("q8_0", (20, 32), blocks.encode("q8_0", values))
    tensors = {
        "odd": Tensor.of(np.float16([1])),
        "blocks": blocks_of,
        "vector": Tensor.of(np.zeros(16, np.float32)),
        "panels": panels.of(blocks_of),
        "turned": panels.of(Tensor.of(values), turned=True),
        "bytes": Tensor.of(np.uint8([1, 2, 3])),
    }
    formats.write(path, tensors, {"k": "v", "rookery.packed": "of another file"})
    file = formats.read(path)
    assert forge.equal(file.tensors, tensors)
    assert file.metadata == {"k": "v"}
    for name, tensor in file.tensors.items():
        np.testing.assert_array_equal(tensor.array(), tensors[name].array())
        assert tensor.nbytes % 64 or tensor.data.ctypes.data % 64 == 0, name
    assert file.tensors["panels"].shape == (20, 32)
    library = pytest.importorskip("safetensors")
    with library.safe_open(path, "np") as opened:  # to anyone else they are bytes
        assert opened.get_tensor("panels").tobytes() == tensors["panels"].data.tobytes()
    formats.write(path, {"odd": tensors["odd"]}, {"rookery.packed": "of another file"})
    assert formats.read(path).metadata == {}


def packed(entry: object, data: bytes = bytes(576), dtype: str = "U8", name: str = "a") -> bytes:
    said = entry if isinstance(entry, str) else json.dumps({name: entry})
    header = {"__metadata__": {"rookery.packed": said}, "a": forge.entry(0, len(data), dtype)}
    return forge.safetensors(header, data)


@pytest.mark.parametrize(("data", "error", "says"), [
    (packed("{"), errors.BadHeader, "not valid JSON"),
    (packed("[]"), errors.BadHeader, "not a JSON object"),
    (packed('{"a":1,"a":2}'), errors.BadHeader, "appears twice"),
    (packed("{}" + "[" * 100_000), errors.BadHeader, "not valid JSON"),
    (packed(7), errors.BadHeader, "'a' lacks a type and a shape"),
    (packed([]), errors.BadHeader, "'a' lacks a type and a shape"),
    (packed(["panel_q8", 7]), errors.BadHeader, "'a' lacks a type and a shape"),
    (packed(["panel_q8", [16, 32]], name="b"), errors.BadHeader, "'b' is no tensor of the file"),
    (packed(["panel_q8", [16, 32]], dtype="F32"), errors.BadHeader, "'a' is f32, and no bytes"),
    (packed(["panel_q9", [16, 32]]), errors.UnsupportedType, "'a' is 'panel_q9'"),
    (packed([["panel_q8"], [16, 32]]), errors.UnsupportedType, "'a' is"),
    (packed(["f32", [160]]), errors.UnsupportedType, "'a' is 'f32'"),
    (packed(["panel_q8", [16, 64]]), errors.BadHeader, "576 bytes; panel_q8 .* takes 1088"),
    (packed(["panel_q8", [17, 32]]), errors.BadHeader, "576 bytes; panel_q8 .* takes 1152"),
    (packed(["panel_q8", [16, 33]]), errors.BadHeader, "multiple of 32 columns, not 33"),
    (packed(["panel_q8_t", [16, 32]]), errors.BadHeader, "multiple of 32 columns, not 16"),
    (packed(["panel_q8", [512]]), errors.BadHeader, "panels hold matrices"),
    (packed(["panel_q8", []]), errors.BadHeader, "panels hold matrices"),
    (packed(["panel_q8", [16, -32]]), errors.BadHeader, "impossible shape"),
    (packed(["panel_q8", [16, True]]), errors.BadHeader, "impossible shape"),
    (packed(["panel_q8", [1] * 17]), errors.BadHeader, "impossible shape"),
    (packed(["panel_q8", [0, 2**62]]), errors.TooLarge, "'a' claims"),
    (packed(["panel_q8", [2**32, 2**32]]), errors.TooLarge, "'a' claims"),
    (packed(["q8_0", [16, 2**63]]), errors.TooLarge, "'a' claims"),
    (packed(["q8_0", [16, 33]]), errors.BadHeader, "q8_0 needs rows"),
    (packed(["q8_0", [16, 32]]), errors.BadHeader, "576 bytes; q8_0 .* takes 544"),
    (packed(["panel_q8", [16, 32]], bytes(575)), errors.BadHeader, "575 bytes; panel_q8 .* takes 576"),
])  # fmt: skip
def test_hostile_packed_files(data: bytes, error: type[errors.FileError], says: str) -> None:
    forge.refused(data, error, says)


@pytest.mark.parametrize("shape", [(0, 32), (16, 0), (0, 16, 32)])
def test_panels_of_nothing(shape: tuple[int, ...]) -> None:
    for kind in ("panel_f32", "panel_bf16", "panel_q8"):
        file = forge.parse(packed([kind, list(shape)], b""))
        assert file.tensors["a"].array().shape == shape


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        ({"__metadata__": Tensor.of(np.float32([1]))}, {}, errors.CannotWrite),
        ({"q\ud800": Tensor("q8_0", (32,), np.zeros(34, np.uint8))}, {}, errors.CannotWrite),
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
