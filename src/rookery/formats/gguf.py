"""GGUF versions 2 and 3, little-endian: typed metadata, a table of tensors, then their bytes, each aligned.

Dimensions lie fastest first in the file and row-major in `Tensor`. The layout is the one that ggml itself asks for:
tensors in file order, without overlaps and without holes but for the padding.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from rookery import errors
from rookery.formats.atomic import atomic_write
from rookery.formats.raw import brief, check_name, check_size
from rookery.formats.tensor import Array, Tensor

MAGIC = b"GGUF"
ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 12: "q4_k", 13: "q5_k", 14: "q6_k",
    24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 30: "bf16",
}  # fmt: skip
CODES = {name: code for code, name in TYPES.items()}
# Types that ggml has and Rookery does not read: a message that names one tells more than a number.
FOREIGN = {
    9: "q8_1", 10: "q2_k", 11: "q3_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s",
    20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4",
}  # fmt: skip

# Codes of metadata values.
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
NUMBER_CODES = {np.dtype(name): code for code, name in NUMBERS.items()}
BOOL, STRING, ARRAY = 7, 8, 9

MAX_KEYS = 2**16
MAX_TENSORS = 2**16
MAX_TEXT = 2**24  # bytes of one string
MAX_STRINGS = 2**22  # of one array; the largest vocabularies have 2**18 tokens
MAX_NAME = 1024
MAX_DIMS = 4  # ggml's own limit
LONGEST_NAME = 63  # that ggml opens


class Strings(Sequence[str]):
    """An array of strings in a file: its lengths are checked, its texts are decoded when asked for."""

    def __init__(self, raw: bytes, starts: Sequence[int]) -> None:
        """`starts`: where each one's length (8 bytes) begins, and the end of the last."""
        self._raw, self._starts = raw, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def bytes(self, index: int) -> bytes:
        """One string's bytes, which need not be UTF-8."""
        index = range(len(self))[index]
        return self._raw[self._starts[index] + 8 : self._starts[index + 1]]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.bytes(index).decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"Strings({len(self)})"


def parse(path: str, raw: Array) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata in file order.

    Values are str, int, float, bool, Strings, or NumPy arrays (views of the file). Raises subclasses of DamagedFile.
    """
    cursor = _Cursor(path, raw)
    keys, count = _head(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = check_name(path, cursor.text("a metadata key", MAX_NAME))
        if key in metadata:
            raise errors.BadHeader(path, f"the metadata key {brief(key)} appears twice")
        metadata[key] = _value(cursor, key, cursor.number("I", f"metadata {brief(key)}"))
    infos = [_info(cursor) for _ in range(count)]
    alignment = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise errors.BadHeader(path, f"an alignment of {brief(str(alignment))}; wanted a power of two")
    start = min(_aligned(cursor.position, alignment), len(raw))
    return _place(path, infos, raw[start:], alignment), metadata


class _Cursor:
    """The header, read from its start; every step is checked against the end of the file."""

    def __init__(self, path: str, raw: Array) -> None:
        self.path, self.raw, self.view, self.position = path, raw, raw.data, 0

    @property
    def left(self) -> int:
        return len(self.raw) - self.position

    def take(self, size: int, what: str) -> int:
        """The position of the next `size` bytes, which are passed over."""
        if size > self.left:
            raise errors.TruncatedFile(
                self.path, f"ends inside {what} ({size} bytes wanted at {self.position}, {self.left} left)"
            )
        at, self.position = self.position, self.position + size
        return at

    def number(self, code: str, what: str) -> Any:
        code = "<" + code
        return struct.unpack_from(code, self.view, self.take(struct.calcsize(code), what))[0]

    def text(self, what: str, limit: int) -> bytes:
        size = self.number("Q", what)
        if size > limit:
            raise errors.TooLarge(self.path, f"{what} claims {size} bytes; at most {limit} are allowed")
        at = self.take(size, what)
        return bytes(self.view[at : at + size])

    def strings(self, count: int, what: str) -> Strings:
        """Walk over the lengths only."""
        if count > MAX_STRINGS or 8 * count > self.left:
            raise errors.TooLarge(self.path, f"{what} claims {count} strings, more than there is room for")
        read = struct.Struct("<Q").unpack_from
        view, at = self.view, self.position
        starts = [at]
        try:
            for _ in range(count):
                at += 8 + read(view, at)[0]
                starts.append(at)
        except (struct.error, OverflowError):
            at = len(view) + 1
        if at > len(view):
            raise errors.TruncatedFile(self.path, f"ends inside {what}, whose strings claim more bytes than there are")
        begin, self.position = self.position, at
        return Strings(bytes(view[begin:at]), [start - begin for start in starts])


def _head(cursor: _Cursor) -> tuple[int, int]:
    """How many metadata values and tensors follow."""
    cursor.take(4, "its header")
    version = cursor.number("I", "its header")
    if version in (2 << 24, 3 << 24):
        raise errors.UnsupportedType(cursor.path, "is a big-endian GGUF; convert it to little-endian with gguf-py")
    if version not in (2, 3):
        raise errors.BadHeader(cursor.path, f"GGUF version {version}; wanted 2 or 3: convert it again")
    count, keys = cursor.number("Q", "its header"), cursor.number("Q", "its header")
    # The smallest entry takes 13 bytes (an empty key, a type, a byte), the smallest tensor 24.
    for what, number, limit, size in (("metadata keys", keys, MAX_KEYS, 13), ("tensors", count, MAX_TENSORS, 24)):
        if number > limit:
            raise errors.TooLarge(cursor.path, f"claims {number} {what}; at most {limit} are allowed")
        if number * size > cursor.left:
            raise errors.TruncatedFile(cursor.path, f"has no room for the {number} {what} it claims; download it again")
    return keys, count


def _value(cursor: _Cursor, key: str, code: int) -> Any:
    what = f"metadata {brief(key)}"
    if code == STRING:
        try:
            return cursor.text(what, MAX_TEXT).decode("utf-8")
        except UnicodeDecodeError:
            raise errors.BadHeader(cursor.path, f"{what} is not UTF-8") from None
    if code == ARRAY:
        return _array(cursor, what)
    if code not in NUMBERS and code != BOOL:
        raise errors.BadHeader(cursor.path, f"{what} has the unknown type {code}")
    return _numbers(cursor, code, 1, what)[0].item()


def _array(cursor: _Cursor, what: str) -> Any:
    code, count = cursor.number("I", what), cursor.number("Q", what)
    if code == STRING:
        return cursor.strings(count, what)
    if code == ARRAY:
        raise errors.BadHeader(cursor.path, f"{what} is an array of arrays, which no model needs")
    if code not in NUMBERS and code != BOOL:
        raise errors.BadHeader(cursor.path, f"{what} is an array of the unknown type {code}")
    return _numbers(cursor, code, count, what)


def _numbers(cursor: _Cursor, code: int, count: int, what: str) -> Array:
    dtype = np.dtype(NUMBERS.get(code, "u1"))
    size = count * dtype.itemsize
    at = cursor.take(size, what)
    values = cursor.raw[at : at + size].view(dtype)
    if code == BOOL:
        if (values > 1).any():
            raise errors.BadHeader(cursor.path, f"{what} is neither true nor false")
        return values.view(np.bool_)
    return values


def _info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """One line of the tensor table: name, type, shape and offset."""
    name = check_name(cursor.path, cursor.text("a tensor's name", MAX_NAME))
    what = f"tensor {brief(name)}"
    n_dims = cursor.number("I", what)
    if n_dims > MAX_DIMS:
        raise errors.BadHeader(cursor.path, f"{what} claims {n_dims} dimensions; at most {MAX_DIMS} are allowed")
    dims = tuple(cursor.number("Q", what) for _ in range(n_dims))
    code, offset = cursor.number("I", what), cursor.number("Q", what)
    if code not in TYPES:
        raise errors.UnsupportedType(
            cursor.path, f"{what} is {FOREIGN.get(code, f'of ggml type {code}')}; known: {', '.join(CODES)}"
        )
    return name, TYPES[code], dims[::-1], offset


def _place(
    path: str, infos: list[tuple[str, str, tuple[int, ...], int]], data: Array, alignment: int
) -> dict[str, Tensor]:
    """Every tensor where the ones before it end, padded; the last one ends inside the file."""
    tensors: dict[str, Tensor] = {}
    expected = 0
    for name, dtype, shape, offset in infos:
        if name in tensors:
            raise errors.BadHeader(path, f"tensor {brief(name)} appears twice")
        size = check_size(path, name, dtype, shape)
        if offset % alignment:
            raise errors.BadOffset(path, f"tensor {brief(name)} is misaligned: offset {offset}, alignment {alignment}")
        if offset < expected:
            raise errors.OverlappingTensors(path, f"tensor {brief(name)} starts inside the one before it")
        if offset > expected:
            raise errors.BadOffset(path, f"tensor {brief(name)} lies at {offset}, not behind the others at {expected}")
        if offset + size > len(data):
            have = max(0, len(data) - offset)
            raise errors.TruncatedFile(path, f"has {have} of {size} bytes of tensor {brief(name)}; download it again")
        tensors[name] = Tensor(dtype, shape, data[offset : offset + size])
        expected = _aligned(offset + size, alignment)
    return tensors


def _aligned(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment


def write(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Version 3, alignment 32, tensors one at a time in the order given; the same input gives the same bytes.

    Metadata: str, bool, int (uint32 where it fits, else int32, uint64, int64), float (float32 where that is exact),
    NumPy scalars and arrays of their own type, and sequences of str or of numbers. Raises UnsupportedType, CannotWrite.
    """
    head = _head_bytes(path, tensors, {key: v for key, v in metadata.items() if key != ALIGNMENT_KEY})
    with atomic_write(path) as file:
        file.write(head)
        for tensor in tensors.values():
            file.write(tensor.data.data)
            file.write(bytes(-tensor.nbytes % ALIGNMENT))


def _head_bytes(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        try:
            out += _text(key)
            for piece in _encoded(value):
                out += piece
        except (ValueError, OverflowError, TypeError, struct.error) as error:
            raise errors.CannotWrite(path, f"metadata {brief(key)} cannot be held by GGUF ({error})") from None
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise errors.UnsupportedType(path, f"tensor {brief(name)} is {tensor.dtype}, which a GGUF cannot hold")
        if len(tensor.shape) > MAX_DIMS or len(name.encode()) > LONGEST_NAME:
            raise errors.CannotWrite(path, f"tensor {brief(name)}: a GGUF holds {MAX_DIMS} dimensions, 63-byte names")
        out += _text(name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape[::-1], CODES[tensor.dtype], offset)
        offset = _aligned(offset + tensor.nbytes, ALIGNMENT)
    return bytes(out + bytes(-len(out) % ALIGNMENT))


def _text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _encoded(value: Any) -> Iterator[bytes]:
    """A metadata value: its type code, then itself."""
    if isinstance(value, str):
        yield struct.pack("<I", STRING) + _text(value)
    elif isinstance(value, Strings) or (
        isinstance(value, list | tuple) and all(isinstance(item, str | bytes) for item in value)
    ):
        items = [value.bytes(i) for i in range(len(value))] if isinstance(value, Strings) else value
        yield struct.pack("<IIQ", ARRAY, STRING, len(items))
        yield from map(_text, items)
    else:
        numbers = value if isinstance(value, np.ndarray | np.generic) else np.asarray(value, _narrowest(value))
        code = BOOL if numbers.dtype == np.bool_ else NUMBER_CODES.get(numbers.dtype.newbyteorder("<"))
        if code is None or numbers.ndim > 1:
            raise TypeError(f"{type(value).__name__}")
        yield struct.pack("<IIQ", ARRAY, code, numbers.size) if numbers.ndim else struct.pack("<I", code)
        yield numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes()


def _narrowest(value: Any) -> str:
    """The type of a Python number, or of a list of them."""
    items = value if isinstance(value, list | tuple) else [value]
    kinds = {type(item) for item in items}
    if kinds == {bool}:
        return "?"
    if not kinds <= {int, float}:
        raise TypeError(", ".join(sorted(kind.__name__ for kind in kinds)))
    if float in kinds:
        return "<f4" if all(map(_is_single, items)) else "<f8"
    low, high = min(items), max(items)
    if low >= 0:
        return "<u4" if high < 2**32 else "<u8"
    return "<i4" if low >= -(2**31) and high < 2**31 else "<i8"


def _is_single(value: float) -> bool:
    """Whether float32 holds this number exactly."""
    with np.errstate(over="ignore"):
        return float(np.float32(value)) == value
