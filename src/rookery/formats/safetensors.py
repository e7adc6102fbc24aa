"""safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.

Ours rather than the library's, so that the base install needs NumPy alone, bf16 needs no torch, and a tensor is a view
of the mapped file. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rookery import errors
from rookery.formats import blocks
from rookery.formats.atomic import atomic_write
from rookery.formats.raw import brief, check_size, json_object, text_map
from rookery.formats.tensor import Array, Tensor

MAX_HEADER = 2**24  # the format allows 100 MB, which as JSON objects takes gigabytes; a large RWKV needs 0.3 MB
ALIGNMENT = 64  # of the first tensor, so that a mapped file starts on a cache line
METADATA = "__metadata__"

TYPES = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16",
         "I8": "i8", "U8": "u8", "BOOL": "bool"}  # fmt: skip
NAMES = {ours: theirs for theirs, ours in TYPES.items()}


def parse(path: str, raw: Array) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in header order, and the metadata. Raises subclasses of DamagedFile."""
    if len(raw) < 8:
        raise errors.TruncatedFile(path, "ends inside its header length; download it again")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > MAX_HEADER:
        raise errors.TooLarge(path, f"claims a header of {length} bytes; at most {MAX_HEADER} are allowed")
    if 8 + length > len(raw):
        raise errors.TruncatedFile(path, f"ends inside its header of {length} bytes; download it again")
    text = raw[8 : 8 + length].tobytes()
    if text[:1] != b"{":
        raise errors.BadHeader(path, "the header does not start with '{'")
    header = json_object(path, text)
    metadata = text_map(path, header.pop(METADATA, {}))
    data = raw[8 + length :]
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    _check_layout(path, spans, len(data))
    tensors = {
        name: Tensor(TYPES[header[name]["dtype"]], tuple(header[name]["shape"]), data[begin:end])
        for name, (begin, end) in spans.items()
    }
    return tensors, metadata


def _span(path: str, name: str, entry: Any) -> tuple[int, int]:
    """Begin and end of one tensor in the data part, checked against its type and shape."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise errors.BadHeader(path, f"tensor {brief(name)} lacks dtype, shape or data_offsets") from None
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise errors.UnsupportedType(path, f"tensor {brief(name)} is {brief(str(dtype))}; known: {', '.join(TYPES)}")
    size = check_size(path, name, TYPES[dtype], shape)
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise errors.BadOffset(path, f"tensor {brief(name)} has no valid data_offsets")
    if end - begin != size:
        raise errors.BadHeader(path, f"tensor {brief(name)} has {end - begin} bytes; its type and shape take {size}")
    return begin, end


def _check_layout(path: str, spans: dict[str, tuple[int, int]], available: int) -> None:
    """No overlap, no hole (nothing can hide in the file), and the end of the last tensor is the end of the file."""
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < position:
            raise errors.OverlappingTensors(path, f"tensor {brief(name)} starts inside another one")
        if begin > position:
            outside = begin > available
            kind = errors.BadOffset if outside else errors.BadHeader
            raise kind(path, f"tensor {brief(name)} starts {'outside the file' if outside else 'behind a hole'}")
        position = end
    if position > available:
        raise errors.TruncatedFile(path, f"has {available} of {position} bytes of data; download it again")
    if position < available:
        raise errors.BadHeader(path, f"{available - position} bytes at the end belong to no tensor")


def write(path: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Header in the given order; data by falling element size, as torch cannot map a misaligned tensor."""
    for name, tensor in tensors.items():
        if name == METADATA:
            raise errors.CannotWrite(path, f"no tensor can be called {METADATA} in a safetensors file")
        if tensor.dtype not in NAMES:
            raise errors.UnsupportedType(path, f"tensor {brief(name)} is {tensor.dtype}, which safetensors cannot hold")
    order = sorted(tensors, key=lambda name: -blocks.nbytes(tensors[name].dtype, (1,)))
    begins: dict[str, int] = {}
    position = 0
    for name in order:
        begins[name] = position
        position += tensors[name].nbytes
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    for name, tensor in tensors.items():
        offsets = [begins[name], begins[name] + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise errors.CannotWrite(path, "a name or a metadata text is not valid Unicode") from None
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise errors.CannotWrite(path, f"the header would take {len(text)} bytes; at most {MAX_HEADER} are allowed")
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].data.data)
