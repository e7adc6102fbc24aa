"""torch checkpoints: bytes of our own, round trips, and torch as the oracle in both directions."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest

from rookery import errors, formats
from rookery.formats.archive import directory
from rookery.formats.raw import map_file
from rookery.formats.tensor import Tensor
from rookery.formats.unpickle import DTYPES


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def saved(torch: Any, value: Any, **options: Any) -> formats.File:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return forge.parse(file.getvalue())


def same(file: formats.File, tensors: dict[str, Any]) -> None:
    """The file holds exactly torch's tensors, in their order."""
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name].shape == tuple(tensor.shape), name
        assert file.tensors[name].dtype == DTYPES[str(tensor.dtype).removeprefix("torch.")], name
        np.testing.assert_array_equal(file.tensors[name].array(), tensor.detach().double().numpy(), err_msg=name)


def test_the_small_pickle_byte_by_byte(tmp_path: Path) -> None:
    formats.write(tmp_path / "x.pth", {"é": Tensor.of(np.float32([[1, 2]]))})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"archive/{n}" for n in ("data.pkl", "byteorder", "data/0", "version")]
        assert archive.read("archive/data/0") == b"\0\0\x80\x3f\0\0\0\x40"
        text = archive.read("archive/data.pkl")
    assert text == (
        b"\x80\x02}(X\x02\0\0\0\xc3\xa9ctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0000X\x03\0\0\0cpuJ\x02\0\0\0tQ"
        b"J\0\0\0\0(J\x01\0\0\0J\x02\0\0\0t(J\x02\0\0\0J\x01\0\0\0t\x89ccollections\nOrderedDict\n)RtRu."
    )


def test_round_trip_of_every_type_deterministic_and_aligned(tmp_path: Path) -> None:
    tensors = forge.sample()
    for name in ("x.pth", "y.pt"):
        formats.write(tmp_path / name, tensors, {"k": "v é"})
    assert (tmp_path / "x.pth").read_bytes() == (tmp_path / "y.pt").read_bytes()
    file = formats.read(tmp_path / "x.pth")
    assert (file.format, file.metadata) == ("pth", {"k": "v é"})
    assert forge.equal(file.tensors, tensors)
    entries = directory("x", map_file(tmp_path / "x.pth"))
    assert all(entry.start % 64 == 0 for entry in entries.values())


def test_torch_reads_ours(tmp_path: Path, torch: Any) -> None:
    tensors = forge.sample(2)
    formats.write(tmp_path / "x.pth", tensors, {"k": "v"})
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "x.pth", weights_only=True, **options)
        assert type(loaded) is dict
        same(formats.read(tmp_path / "x.pth"), loaded)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_we_read_torchs(torch: Any, protocol: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = model.state_dict()  # an OrderedDict with an attribute, an int64 scalar among its tensors
    same(saved(torch, state, pickle_protocol=protocol), state)
    parameters = dict(model.named_parameters())
    same(saved(torch, parameters, pickle_protocol=protocol), parameters)


def test_every_type_of_torchs(torch: Any) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool]  # fmt: skip
    tensors = {str(kind): (torch.arange(15) - 7).abs().to(kind).reshape(3, 5) for kind in kinds}
    same(saved(torch, tensors), tensors)


def test_strides_offsets_and_shared_storages(torch: Any) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base, "transposed": base.transpose(0, 2), "second": base[1:], "stepped": base[:, ::2, 1::2],
        "expanded": base[:, :1].expand(2, 5, 4), "empty": base[:0], "scalar": base[1, 2, 3],
        "ones": torch.ones(1, 1, 5).transpose(0, 1), "row": base.reshape(-1)[::7],
    }  # fmt: skip
    same(saved(torch, tensors), tensors)


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_one_level_of_wrapper_and_other_values(torch: Any, key: str) -> None:
    tensors = {"a": torch.ones(2)}
    other = {"epoch": 3, "lr": 1e-3, "betas": (0.9, 0.95), "size": torch.Size([2, 3]), "none": None, "list": [1, "x"]}
    same(saved(torch, {**other, key: tensors}), tensors)
    same(saved(torch, {**other, **tensors}), tensors)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda t: [t.ones(2)], errors.BadHeader, "holds a list"),
        (lambda t: t.ones(2), errors.BadHeader, "holds a single tensor"),
        (lambda t: {"epoch": 1}, errors.BadHeader, "holds no tensor"),
        (lambda t: {"deep": {"model": {"a": t.ones(2)}}}, errors.BadHeader, "holds no tensor"),
        (lambda t: {1: t.ones(2)}, errors.BadHeader, "name is not text"),
        (lambda t: t.nn.Linear(2, 2), errors.UnsafePickle, "torch.nn.modules.linear.Linear"),
        (lambda t: {"a": t.ones(2, dtype=t.complex64)}, errors.UnsupportedType, "torch.ComplexFloatStorage"),
        (lambda t: {"a": t.ones(2, dtype=t.uint16)}, errors.UnsupportedType, "torch.uint16"),
        (lambda t: {"a": t.ones(2).to_sparse()}, errors.UnsafePickle, "_rebuild_sparse_tensor"),
    ],
)
def test_what_torch_saves_and_we_do_not_read(torch: Any, make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        saved(torch, make(torch))


def test_legacy_torch_files_are_named(torch: Any) -> None:
    with pytest.raises(errors.UnknownFormat, match="current torch"):
        saved(torch, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)


def test_every_fixture_equals_torch_load(torch: Any, shared: Path) -> None:
    paths = sorted((shared / "fixtures" / "models").glob("*.pth"))
    assert len(paths) >= 10
    for path in paths:
        same(formats.read(path), torch.load(path, weights_only=True, map_location="cpu"))


def test_compressed_entries_are_read() -> None:
    for name in ("pth", "pth-deflated"):
        tensor = forge.parse(forge.valid()[name]).tensors["x"]
        np.testing.assert_array_equal(tensor.array(), np.float32([0, 1, 2]))


def test_cuda_storages_are_read_as_they_lie() -> None:
    pickle = forge.PICKLE.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    np.testing.assert_array_equal(forge.parse(forge.checkpoint(pickle)).tensors["x"].array(), np.float32([0, 1, 2]))


def test_zip64_fields_are_followed(tmp_path: Path) -> None:
    """Files beyond 4 GiB, without 4 GiB: the 32-bit fields of storage 0 are moved into a 64-bit extra field."""
    data = forge.checkpoint()
    end = data.rindex(b"PK\5\6")
    at = data.rindex(b"PK\1\2")
    size, header = struct.unpack_from("<I", data, at + 24)[0], struct.unpack_from("<I", data, at + 42)[0]
    entry = bytearray(data[at:end])
    entry[20:28] = b"\xff" * 8
    entry[42:46] = b"\xff" * 4
    extra = struct.pack("<2H3Q", 1, 24, size, size, header)
    entry[30:32] = struct.pack("<H", len(extra))
    begin = struct.unpack_from("<I", data, end + 16)[0]
    central = data[begin:at] + bytes(entry) + extra
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, len(central), begin)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, begin + len(central), 1)
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    wide = data[:begin] + central + record + locator + tail
    assert zipfile.ZipFile(io.BytesIO(wide)).read("a/data/0") == np.float32([0, 1, 2]).tobytes()
    np.testing.assert_array_equal(forge.parse(wide).tensors["x"].array(), np.float32([0, 1, 2]))


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"q": Tensor("q8_0", (32,), np.zeros(34, np.uint8))}, errors.UnsupportedType),
        ({"half\ud800": Tensor.of(np.float32([1]))}, errors.CannotWrite),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, tensors: dict[str, Tensor], error: type[Exception]) -> None:
    with pytest.raises(error):
        formats.write(tmp_path / "x.pth", tensors)
    assert list(tmp_path.iterdir()) == []
