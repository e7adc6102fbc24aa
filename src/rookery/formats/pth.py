"""torch checkpoints (.pth): a zip archive of one pickle, which names the tensors, and one file for each storage.

Read without torch and without running the pickle. Stored (uncompressed) storages are mapped in place, whatever device
they were saved from. Written so that torch.load(weights_only=True) reads them, in the layout that torch itself writes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from rookery import errors
from rookery.formats.archive import Budget, Entry, content, directory, write_archive
from rookery.formats.atomic import atomic_write
from rookery.formats.blocks import nbytes
from rookery.formats.raw import brief, check_size, json_object, text_map
from rookery.formats.tensor import Array, Tensor
from rookery.formats.unpickle import STORAGES, Pickled, Unpickler

WRAPPERS = ("model", "state_dict", "module")
METADATA = "rookery.json"  # our own record; torch ignores records that it does not know
MAX_METADATA = 2**20
NAMES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


def parse(path: str, raw: Array) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in the order of the pickle, and the metadata that `write` left. Raises subclasses of DamagedFile."""
    archive = _Archive(path, raw)
    pickled = _tensors_of(path, Unpickler(path, archive.record("data.pkl").tobytes()).load())
    tensors = {name: archive.tensor(name, tensor) for name, tensor in pickled.items()}
    return tensors, archive.metadata()


class _Archive:
    """The archive's records by their name inside its one top folder."""

    def __init__(self, path: str, raw: Array) -> None:
        self.path, self.raw = path, raw
        self.entries = directory(path, raw)
        self.budget = Budget(path, len(raw))
        self.unpacked: dict[str, Array] = {}
        roots = [name.removesuffix("data.pkl") for name in self.entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            what = "a NumPy .npz" if any(name.endswith(".npy") for name in self.entries) else "a zip archive"
            raise errors.UnknownFormat(path, f"looks like {what} that is no torch checkpoint; wanted a .pth")
        self.root = roots[0]
        if self.root + "constants.pkl" in self.entries:
            raise errors.UnknownFormat(path, "looks like a TorchScript program; wanted a state dict: torch.save it")
        if self.root + "byteorder" in self.entries and self.record("byteorder", 16).tobytes() != b"little":
            raise errors.UnsupportedType(path, "was saved on a big-endian machine; save it again on another")

    def record(self, name: str, limit: int = 2**26) -> Array:
        entry = self._entry(name)
        if entry.size > limit:
            raise errors.TooLarge(self.path, f"record {brief(name)} takes {entry.size} bytes; at most {limit} allowed")
        return content(self.path, self.raw, entry, self.budget)

    def metadata(self) -> dict[str, str]:
        if self.root + METADATA not in self.entries:
            return {}
        return text_map(self.path, json_object(self.path, self.record(METADATA, MAX_METADATA).tobytes()))

    def tensor(self, name: str, tensor: Pickled) -> Tensor:
        """Bounds first, then a view where the elements lie in a row, else a copy."""
        storage, shape, stride, offset = tensor.storage, tensor.shape, tensor.stride, tensor.offset
        size = check_size(self.path, name, tensor.dtype, shape)
        item = nbytes(tensor.dtype, (1,))
        bytes_there = storage.size * nbytes(storage.dtype, (1,))
        last = offset
        if len(stride) != len(shape) or any(type(x) is not int or x < 0 for x in (offset, *stride)):
            raise errors.BadHeader(self.path, f"tensor {brief(name)} has impossible strides")
        last += sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if size and (last + 1) * item > bytes_there:
            raise errors.BadOffset(self.path, f"tensor {brief(name)} reaches outside its storage")
        if self._entry(f"data/{storage.key}").size != bytes_there:
            raise errors.BadHeader(self.path, f"the storage of {brief(name)} is not of the size that the pickle claims")
        if not size:
            return Tensor(tensor.dtype, shape, np.empty(0, np.uint8))
        data = self._storage(storage.key)[offset * item :]
        if stride == _contiguous(shape, stride):
            return Tensor(tensor.dtype, shape, data[:size])
        self.budget.spend(f"tensor {brief(name)}", size)
        # A step over a dimension of one element is never taken, and may be too large for NumPy.
        steps = (0 if n == 1 else step * item for n, step in zip(shape, stride, strict=True))
        window = np.lib.stride_tricks.as_strided(data, (*shape, item), (*steps, 1), writeable=False)
        return Tensor(tensor.dtype, shape, np.ascontiguousarray(window).reshape(-1))

    def _entry(self, name: str) -> Entry:
        if self.root + name not in self.entries:
            raise errors.BadHeader(self.path, f"lacks its record {brief(name)}")
        return self.entries[self.root + name]

    def _storage(self, key: str) -> Array:
        """Unpacked at most once, however many tensors share it."""
        if key not in self.unpacked:
            self.unpacked[key] = content(self.path, self.raw, self._entry(f"data/{key}"), self.budget)
        return self.unpacked[key]


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major strides of `shape`; where a dimension has one element any stride will do, so `stride`'s own."""
    return tuple(stride[i] if n == 1 else prod(shape[i + 1 :]) for i, n in enumerate(shape))


def _tensors_of(path: str, value: Any) -> dict[str, Pickled]:
    """The tensors of a flat dict, or of the dict under one of the well-known keys; other values are dropped."""
    if not isinstance(value, dict):
        kind = "single tensor" if isinstance(value, Pickled) else type(value).__name__
        raise errors.BadHeader(path, f"holds a {kind}; wanted a dict of named tensors")
    for level in (*(value.get(key) for key in WRAPPERS), value):
        if not isinstance(level, dict):
            continue
        tensors = {name: tensor for name, tensor in level.items() if isinstance(tensor, Pickled)}
        if not all(isinstance(name, str) for name in tensors):
            raise errors.BadHeader(path, "a tensor's name is not text")
        if tensors:
            return tensors
    raise errors.BadHeader(path, "holds no tensor; wanted named tensors, bare or under 'model' or 'state_dict'")


def write(path: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A plain dict of contiguous tensors, each in a storage of its own, saved from the CPU."""
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise errors.UnsupportedType(path, f"tensor {brief(name)} is {tensor.dtype}, which a .pth cannot hold")
    try:
        text = _pickle(tensors)
        notes = json.dumps(metadata, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise errors.CannotWrite(path, "a name or a metadata text is not valid Unicode") from None
    with atomic_write(path) as file:
        write_archive(file, _records(text, notes if metadata else b"", tensors))


def _records(text: bytes, notes: bytes, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, bytes | memoryview]]:
    yield "archive/data.pkl", text
    yield "archive/byteorder", b"little"
    if notes:
        yield f"archive/{METADATA}", notes
    for key, tensor in enumerate(tensors.values()):
        yield f"archive/data/{key}", tensor.data.data
    yield "archive/version", b"3\n"


def _pickle(tensors: Mapping[str, Tensor]) -> bytes:
    """Protocol 2: {name: _rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())}."""
    text = bytearray(b"\x80\x02}(")
    for key, (name, tensor) in enumerate(tensors.items()):
        strides = tuple(prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))
        text += _string(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        text += b"(" + _string("storage") + f"ctorch\n{NAMES[tensor.dtype]}\n".encode()
        text += _string(str(key)) + _string("cpu") + _integer(tensor.size) + b"tQ" + _integer(0)
        text += b"(" + b"".join(map(_integer, tensor.shape)) + b"t"
        text += b"(" + b"".join(map(_integer, strides)) + b"t"
        text += b"\x89ccollections\nOrderedDict\n)RtR"
    return bytes(text + b"u.")


def _string(value: str) -> bytes:
    raw = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
