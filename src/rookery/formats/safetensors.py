"""safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.

Ours rather than the library's, so that the base install needs NumPy alone, bf16 needs no torch, and a tensor is a view
of the mapped file. Format: https://github.com/huggingface/safetensors#format
Blocks and panels, which the format does not know, lie in it as bytes (U8); what they are, the metadata `PACKED` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from rookery import errors
from rookery.formats import blocks, panels
from rookery.formats.atomic import atomic_write
from rookery.formats.raw import brief, check_size, json_object, text_map
from rookery.formats.tensor import Array, Tensor

MAX_HEADER = 2**24  # the format allows 100 MB, which as JSON objects takes gigabytes; a large RWKV needs 0.3 MB
ALIGNMENT = 64  # of all tensors that are whole cache lines, panels among them, in a mapped file
METADATA = "__metadata__"
PACKED = (
    "rookery.packed"  # a JSON object, of each such tensor's name to [type, shape]; the reader's own, not handed out
)

TYPES = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16",
         "I8": "i8", "U8": "u8", "BOOL": "bool"}  # fmt: skip
NAMES = {ours: theirs for theirs, ours in TYPES.items()}
PACKABLE = (*blocks.BLOCKS, *panels.TYPES)


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
    if PACKED in metadata:
        tensors |= _packed(path, tensors, metadata.pop(PACKED))
    return tensors, metadata


def _packed(path: str, tensors: Mapping[str, Tensor], text: str) -> dict[str, Tensor]:
    """What the bytes are that the file says to be blocks or panels."""
    found: dict[str, Tensor] = {}
    for name, entry in json_object(path, text.encode("utf-8", "surrogatepass")).items():
        try:
            dtype, (*shape,) = entry
        except (TypeError, ValueError):
            raise errors.BadHeader(path, f"{PACKED}: {brief(name)} lacks a type and a shape") from None
        held = tensors.get(name)
        if held is None or held.dtype != "u8":
            what = "is no tensor of the file" if held is None else f"is {held.dtype}, and no bytes"
            raise errors.BadHeader(path, f"{PACKED}: {brief(name)} {what}")
        if not isinstance(dtype, str) or dtype not in PACKABLE:
            known = "block types and panels of " + ", ".join(panels.KINDS)
            raise errors.UnsupportedType(path, f"tensor {brief(name)} is {brief(str(dtype))}; known: {known}")
        size = check_size(path, name, dtype, tuple(shape))
        if size != held.nbytes:
            raise errors.BadHeader(path, f"tensor {brief(name)} has {held.nbytes} bytes; {dtype} {shape} takes {size}")
        found[name] = Tensor(dtype, tuple(shape), held.data)
    return found


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
    """Header in the given order. Data: whole cache lines first, the rest by falling element size, as torch cannot map
    a misaligned tensor and the native engine no misaligned panels.
    """
    if METADATA in tensors:
        raise errors.CannotWrite(path, f"no tensor can be called {METADATA} in a safetensors file")
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    packed = {name: [t.dtype, list(t.shape)] for name, t in tensors.items() if t.dtype in PACKABLE}

    def place(name: str) -> tuple[bool, int]:
        return sizes[name] % ALIGNMENT > 0, -1 if name in packed else -blocks.nbytes(tensors[name].dtype, (1,))

    order = sorted(tensors, key=place)
    begins = dict(zip(order, accumulate((sizes[name] for name in order), initial=0), strict=False))
    text = _header(path, tensors, packed, begins, metadata)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].data.data)


def _header(
    path: str,
    tensors: Mapping[str, Tensor],
    packed: Mapping[str, Any],
    begins: Mapping[str, int],
    metadata: dict[str, str],
) -> bytes:
    metadata = {key: value for key, value in metadata.items() if key != PACKED}
    if packed:
        metadata[PACKED] = json.dumps(packed, ensure_ascii=False, separators=(",", ":"))
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    for name, tensor in tensors.items():
        size = tensor.nbytes
        kind, shape = ("U8", [size]) if name in packed else (NAMES[tensor.dtype], list(tensor.shape))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begins[name], begins[name] + size]}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise errors.CannotWrite(path, "a name or a metadata text is not valid Unicode") from None
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise errors.CannotWrite(path, f"the header would take {len(text)} bytes; at most {MAX_HEADER} are allowed")
    return text
