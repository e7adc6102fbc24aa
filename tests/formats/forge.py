"""Files made byte by byte, right and wrong ones, for the tests of the readers."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from rookery import errors, formats
from rookery.formats.tensor import NUMPY, Tensor

# The pickle of {"x": float32 tensor [3] of storage "0"}, in pieces that a test can change.
OPEN = b"\x80\x02}(X\x01\x00\x00\x00x"
CLOSE = b"u."
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ"
HOOKS = b"\x89ccollections\nOrderedDict\n)R"
TENSOR = REBUILD + b"(" + STORAGE + b"K\x00K\x03\x85K\x01\x85" + HOOKS + b"tR"
PICKLE = OPEN + TENSOR + CLOSE


# Metadata of a GGUF: one value of every kind.
GGUF_VALUES = [
    (b"general.architecture", 8, struct.pack("<Q", 5) + b"rwkv7"),
    (b"u8", 0, b"\xff"), (b"i8", 1, b"\xff"), (b"u16", 2, b"\xff\xff"), (b"i16", 3, b"\xff\xff"),
    (b"u32", 4, b"\xff" * 4), (b"i32", 5, b"\xff" * 4), (b"f32", 6, struct.pack("<f", 0.5)), (b"yes", 7, b"\1"),
    (b"u64", 10, b"\xff" * 8), (b"i64", 11, b"\xff" * 8), (b"f64", 12, struct.pack("<d", 0.1)),
    (b"texts", 9, struct.pack("<IQQ", 8, 2, 1) + b"x" + struct.pack("<Q", 3) + "é".encode() + b"\xff"),
    (b"ints", 9, struct.pack("<IQ2i", 5, 2, -1, 7)), (b"bools", 9, struct.pack("<IQ", 7, 2) + b"\0\1"),
    (b"empty", 9, struct.pack("<IQ", 8, 0)),
]  # fmt: skip


def parse(data: bytes) -> formats.File:
    return formats.parse("forged", np.frombuffer(data, np.uint8))


def archive(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, data in records.items():
            out.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def checkpoint(pickle: bytes = PICKLE, method: int = zipfile.ZIP_STORED, **storages: bytes) -> bytes:
    """A .pth of this pickle; `_0=b"..."` is the content of storage "0"."""
    storages = storages or {"_0": np.arange(3, dtype="<f4").tobytes()}
    records = {"a/data.pkl": pickle, "a/byteorder": b"little"}
    return archive(records | {f"a/data/{key[1:]}": data for key, data in storages.items()}, method)


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    shape = [(end - begin) // {"F32": 4}.get(dtype, 1)] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def ggmf(tensors: Iterable[tuple[bytes, int, tuple[int, ...], bytes]], version: int = 101, file_type: int = 0) -> bytes:
    """Tensors as (name, type code, dims fastest first, data)."""
    out = struct.pack("<6i", 0x67676D66, version, 256, 4, 1, file_type)
    for name, code, dims, data in tensors:
        out += struct.pack(f"<{3 + len(dims)}i", len(dims), len(name), code, *dims) + name + data
    return out


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_array(code: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IQ", code, count) + data


def gguf(
    values: Iterable[tuple[bytes, int, bytes]] = (),
    tensors: Iterable[tuple[bytes, tuple[int, ...], int, int]] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """Metadata as (key, type code, bytes), tensors as (name, dims fastest first, type code, offset)."""
    values, tensors = list(values), list(tensors)
    n_tensors, n_values = counts or (len(tensors), len(values))
    out = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values)
    for key, code, value in values:
        out += gguf_text(key) + struct.pack("<I", code) + value
    for name, dims, code, offset in tensors:
        out += gguf_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)
    return out + bytes(-len(out) % alignment) + data


def valid() -> dict[str, bytes]:
    """One small file of each kind that the readers take."""
    row = np.arange(32, dtype="<f4").tobytes()
    return {
        "pth": checkpoint(),
        "pth-deflated": checkpoint(method=zipfile.ZIP_DEFLATED),
        "safetensors": safetensors({"__metadata__": {"k": "v"}, "a": entry(0, 8, "F32"), "b": entry(8, 11)}, row[:11]),
        "safetensors-packed": safetensors(
            {
                "__metadata__": {"rookery.packed": json.dumps({"a": ["panel_f32_t", [2, 1]], "q": ["q4_0", [1, 32]]})},
                "a": entry(0, 128),
                "q": entry(128, 146),
            },
            row + row[:18],
        ),
        "ggmf": ggmf([(b"a", 0, (4, 2), row[:32]), (b"q", 8, (32, 1), row[:24])]),
        "gguf": gguf(GGUF_VALUES, [(b"a", (4, 2), 0, 0), (b"q", (32, 1), 2, 32), (b"h", (3,), 1, 64)], row[:70]),
    }


def sample(seed: int = 0) -> dict[str, Tensor]:
    """One tensor of every plain type, of ranks 0 to 3, with odd sizes and an empty one."""
    rng = np.random.default_rng(seed)
    shapes: list[tuple[int, ...]] = [(), (3,), (2, 5), (1, 3, 7), (0, 4)]
    types = [*NUMPY, "bf16"]
    return {
        f"{dtype}.{i}": Tensor.of(rng.integers(0, 2, shape) if dtype == "bool" else rng.integers(0, 100, shape), dtype)
        for i, (dtype, shape) in enumerate((t, s) for t in types for s in shapes)
    }


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Same names in the same order, types, shapes and bytes."""
    return list(a) == list(b) and all(
        (a[n].dtype, a[n].shape, a[n].data.tobytes()) == (b[n].dtype, b[n].shape, b[n].data.tobytes()) for n in a
    )


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def refused(data: bytes, error: type[errors.FileError], says: str) -> None:
    with pytest.raises(errors.FileError, match=says) as caught:
        parse(data)
    assert type(caught.value) is error
    one_line(caught.value)


def one_line(error: errors.FileError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 250
