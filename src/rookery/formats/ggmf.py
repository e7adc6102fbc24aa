"""ggmf, the .bin files of rwkv.cpp: six int32, then tensors one behind the other until the file ends. Read only.

The header has no tensor count, so a file cut exactly between two tensors reads as a shorter one: `weights` finds what
is missing. Names and values are handed on as they lie; rwkv.cpp stores some parameters already transformed.
"""

from __future__ import annotations

import struct

from rookery import errors
from rookery.formats import blocks
from rookery.formats.raw import brief, check_name, check_size
from rookery.formats.tensor import Array, Tensor

TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q5_0", 8: "q5_1", 9: "q8_0"}
MAX_KEY = 1024
MAX_DIMS = 4  # ggml's own limit


def parse(path: str, raw: Array) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in file order, shapes row-major; metadata n_vocab, n_embd, n_layer, data_type.

    Raises subclasses of DamagedFile.
    """
    (_, version, n_vocab, n_embd, n_layer, file_type), position = _ints(path, raw, 0, 6)
    if version not in (100, 101):
        raise errors.BadHeader(path, f"ggmf version {version}; wanted 100 or 101: convert it again with rwkv.cpp")
    if min(n_vocab, n_embd, n_layer) <= 0:
        raise errors.BadHeader(path, f"header claims {n_vocab} tokens, width {n_embd}, {n_layer} layers")
    metadata = {"n_vocab": str(n_vocab), "n_embd": str(n_embd), "n_layer": str(n_layer)}
    metadata["data_type"] = _type(path, "the file", file_type, version)
    tensors: dict[str, Tensor] = {}
    while position < len(raw):
        name, tensor, position = _tensor(path, raw, position, version)
        if name in tensors:
            raise errors.BadHeader(path, f"tensor {brief(name)} appears twice")
        tensors[name] = tensor
    if not tensors:
        raise errors.TruncatedFile(path, "ends before its first tensor; download it again")
    return tensors, metadata


def _tensor(path: str, raw: Array, position: int, version: int) -> tuple[str, Tensor, int]:
    """The tensor that starts at `position`: its name, itself, and where the next one starts."""
    (n_dims, key_length, code), position = _ints(path, raw, position, 3)
    if not 1 <= n_dims <= MAX_DIMS or not 1 <= key_length <= MAX_KEY:
        raise errors.BadHeader(path, f"a tensor claims {n_dims} dimensions and a name of {key_length} bytes")
    dims, position = _ints(path, raw, position, n_dims)
    key, position = _take(path, raw, position, key_length)
    name = check_name(path, key.tobytes())
    dtype = _type(path, f"tensor {brief(name)}", code, version)
    shape = dims[::-1]
    data, position = _take(path, raw, position, check_size(path, name, dtype, shape))
    return name, Tensor(dtype, shape, data), position


def _type(path: str, what: str, code: int, version: int) -> str:
    if code not in TYPES:
        raise errors.UnsupportedType(path, f"{what} has ggml type {code}; known: {', '.join(TYPES.values())}")
    if version == 100 and TYPES[code] in blocks.BLOCKS:
        old = f"{TYPES[code]} in the old layout of ggmf version 100"
        raise errors.UnsupportedType(path, f"{what} is {old}: quantise it again with a newer rwkv.cpp")
    return TYPES[code]


def _ints(path: str, raw: Array, position: int, count: int) -> tuple[tuple[int, ...], int]:
    data, position = _take(path, raw, position, 4 * count)
    return struct.unpack(f"<{count}i", data.tobytes()), position


def _take(path: str, raw: Array, position: int, count: int) -> tuple[Array, int]:
    if count > len(raw) - position:
        wanted = f"{count} bytes wanted at {position}, {len(raw) - position} left"
        raise errors.TruncatedFile(path, f"ends inside a tensor ({wanted}); download it again")
    return raw[position : position + count], position + count
