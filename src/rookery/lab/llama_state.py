"""llama.cpp's saved state of a sequence, read into a State and written from one (RWKV-6 and 7).

Four wrappings of the same rows are read, known by their first bytes:
- what `llama_state_seq_get_data` gives (magic 0xaf143cd8);
- the file of `llama_state_seq_save_file`, which is what a server's slot save writes ("ggsq", version 3);
- what `llama_state_get_data` gives (the architecture's name first);
- the file of `llama_state_save_file`, a prompt cache ("ggsn", version 10).

All numbers are little endian. Rows: u32 cells (1) | i32 position of the last token | u32 count of sequence ids, and the
ids | u32 transposed (0) | u32 layers | then for every layer i32 type (0: float32), u64 bytes and the token-shift row
[2C] (after ln1, after ln2), and again for every layer type, bytes and the WKV row: [H, key, value] in v6,
[H, value, key] in v7. llama.cpp keeps both in float32 whatever the weights are.

The format is llama.cpp's own affair and changes with it (this is that of llama-cpp-python 0.3.36): what does not fit
is refused. It does not say which model made it, only, in two of the four, of which architecture.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import BadHeader, DamagedFile, InputError, NewerFile, StateError, TruncatedFile, UnsupportedType
from rookery.formats.raw import map_file
from rookery.model import Model
from rookery.state import State, layers

Array = npt.NDArray[Any]

SEQUENCE = 0xAF143CD8
FILES = {0x67677371: ("sequence file", 3), 0x6767736E: ("session", 10)}  # "ggsq", "ggsn": kind and version
TYPES = {0: "float32", 1: "float16", 8: "q8_0", 30: "bfloat16"}
MOST_NAME, MOST_IDS = 64, 256  # bytes of an architecture's name; sequences of a context (llama.cpp's own limit)


@dataclass(frozen=True)
class Saved:
    """What such a file holds. `shifts`: L rows [2C]; `wkv`: L rows [H*N*N], in llama.cpp's order of axes."""

    path: str
    position: int  # of the last token read; one less than the number of tokens
    shifts: list[Array] = field(repr=False)
    wkv: list[Array] = field(repr=False)
    architecture: str | None = None  # "rwkv7", where the file says it
    tokens: tuple[int, ...] | None = None  # what was read, where the file says it


class _Reader:
    """Takes numbers off the front; every way to run out is a TruncatedFile."""

    def __init__(self, path: str, raw: Array) -> None:
        self.path, self.raw, self.at = path, raw, 0

    @property
    def left(self) -> int:
        return len(self.raw) - self.at

    def take(self, count: int, what: str) -> Array:
        if count > self.left:
            raise TruncatedFile(self.path, f"ends inside {what}: {count} bytes wanted at {self.at}, {self.left} left")
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(code), what).tobytes())[0])

    def exactly(self, code: str, what: str, wanted: int) -> None:
        if (value := self.number(code, what)) != wanted:
            raise BadHeader(self.path, f"{what} is {value} where {wanted} is wanted; not a state of llama.cpp's RWKV")


def read(path: str | os.PathLike[str]) -> Saved:
    """Open such a file. Raises MissingFile and its like, DamagedFile subclasses, NewerFile."""
    return parse(os.fspath(path), map_file(path))


def parse(path: str, raw: Array) -> Saved:
    """As `read`, of bytes at hand (uint8 [n]); `path` is for messages."""
    r = _Reader(path, raw)
    magic = r.number("I", "the magic number")
    tokens: tuple[int, ...] | None = None
    if magic in FILES:
        tokens = _tokens(r, *FILES[magic])
    architecture = None
    if magic == SEQUENCE:
        r.number("i", "the sequence's id")
    elif magic not in FILES:
        r.at = 0
        architecture = _architecture(r)
    elif FILES[magic][0] == "session":
        architecture = _architecture(r)
    position = _cell(r)
    r.exactly("I", "the mark of transposed rows", 0)
    n_layer = r.number("I", "the number of layers")
    if not 1 <= n_layer <= r.left // 24:
        raise BadHeader(path, f"claims {n_layer} layers in {r.left} bytes")
    shifts = [_row(r, f"the token shift of layer {i}") for i in range(n_layer)]
    wkv = [_row(r, f"the WKV state of layer {i}") for i in range(n_layer)]
    if r.left:
        raise BadHeader(
            path, f"{r.left} bytes after the last row; a state of another kind of model, or of two contexts"
        )
    for rows, what in ((shifts, "token shift"), (wkv, "WKV")):
        if len({len(row) for row in rows}) > 1:
            raise BadHeader(path, f"{what} rows of several lengths; not a plain RWKV")
    return Saved(path, position, shifts, wkv, architecture, tokens)


def _tokens(r: _Reader, kind: str, wanted: int) -> tuple[int, ...]:
    version = r.number("I", "the version")
    if version != wanted:
        error = NewerFile if version > wanted else DamagedFile
        raise error(
            r.path, f"version {version} of llama.cpp's {kind}; wanted {wanted}, as llama-cpp-python 0.3.36 writes"
        )
    count = r.number("I", "the number of tokens")
    ids = r.take(4 * count, f"its {count} tokens").tobytes()
    return struct.unpack(f"<{count}i", ids)


def _architecture(r: _Reader) -> str:
    length = r.number("I", "the length of the architecture's name")
    if not 1 <= length <= MOST_NAME:
        raise BadHeader(r.path, "its first bytes are of no state that llama.cpp writes")
    name = r.take(length, "the architecture's name").tobytes()
    if not (name.isascii() and name.decode("ascii").isprintable()):
        raise BadHeader(r.path, "its first bytes are of no state that llama.cpp writes")
    return name.decode("ascii")


def _cell(r: _Reader) -> int:
    """The one cell's position."""
    cells = r.number("I", "the number of cells")
    if cells == 0:
        raise BadHeader(r.path, "holds no cell: it was saved before the first token was read")
    if cells > 1:
        raise BadHeader(r.path, f"holds {cells} cells; wanted 1: save one sequence (llama_state_seq_get_data)")
    position = r.number("i", "the position")
    ids = r.number("I", "the number of sequence ids")
    if position < 0 or ids > MOST_IDS:
        raise BadHeader(r.path, f"claims position {position} and {ids} sequence ids")
    r.take(4 * ids, "the sequence ids")
    return position


def _row(r: _Reader, what: str) -> Array:
    kind = r.number("i", what)
    if kind != 0:
        raise UnsupportedType(r.path, f"{what} is of type {TYPES.get(kind, kind)}; wanted float32, as RWKV's always is")
    size = r.number("Q", what)
    if size == 0 or size % 4:
        raise BadHeader(r.path, f"{what} claims {size} bytes")
    return np.frombuffer(r.take(size, what).tobytes(), "<f4")


def to_state(saved: Saved, model: Model) -> State:
    """The state of `model` that a file holds. That the same weights made it cannot be seen from the file.

    Warns of numbers that are not finite, and keeps them. Raises StateError where the sizes or the architecture are
    another model's.
    """
    state, c = model.state(), model.config
    _check_version(c.version)
    if saved.architecture not in (None, f"rwkv{c.version}"):
        raise StateError(f"{saved.path}: a state of {saved.architecture!r}, not of {c.name}")
    found = (len(saved.shifts), len(saved.shifts[0]), len(saved.wkv[0]))
    if found != (wanted := (c.n_layer, 2 * c.n_embd, c.n_embd * c.head_size)):
        raise StateError(
            f"{saved.path}: {found[0]} layers of {found[1]} + {found[2]} numbers, where {c.name} of this size has "
            f"{wanted[0]} of {wanted[1]} + {wanted[2]}; a state of another model"
        )
    for views, shift, wkv in zip(layers(c, state.flat), saved.shifts, saved.wkv, strict=True):
        views["att_shift"][...], views["ffn_shift"][...] = shift.reshape(2, -1)
        views["wkv"][...] = _turned(c.version, wkv.reshape(views["wkv"].shape))
    if bad := int((~np.isfinite(state.flat)).sum()):
        warnings.warn(f"{saved.path}: {bad} of its {state.flat.size} numbers are not finite", UserWarning, stacklevel=2)
    return state


def import_llama(path: str | os.PathLike[str], model: Model) -> State:
    """The state that llama.cpp saved at `path`, as `model`'s; see `read` and `to_state` for what is refused."""
    return to_state(read(path), model)


def to_bytes(state: State, tokens: int, sequence: int = 0) -> bytes:
    """The bytes that `llama_state_seq_set_data` takes, for a state that has read so many tokens (1 or more)."""
    c = state.config
    _check_version(c.version)
    if tokens < 1:
        raise InputError(f"a state after {tokens} tokens: llama.cpp keeps none before the first")
    out = [struct.pack("<IiIiIII", SEQUENCE, sequence, 1, tokens - 1, 0, 0, c.n_layer)]
    each = layers(c, state.flat)
    rows = [np.concatenate([views["att_shift"], views["ffn_shift"]]) for views in each]
    rows += [_turned(c.version, views["wkv"]) for views in each]
    for row in rows:
        data = np.ascontiguousarray(row, "<f4").tobytes()
        out += [struct.pack("<iQ", 0, len(data)), data]
    return b"".join(out)


def _turned(version: str, wkv: Array) -> Array:
    """Between our [H, key, value] and llama.cpp's order, which is [H, value, key] in v7."""
    return wkv.swapaxes(1, 2) if version == "7" else wkv


def _check_version(version: str) -> None:
    if version not in ("6", "7"):
        raise StateError(f"llama.cpp runs RWKV-6 and 7 alone, and has no states of an RWKV-{version}")
