"""Files of named tensors: what each format's bytes mean, and nothing of what the tensors are for.

`read` knows a file by its first bytes, never by its name, and hands out views of the mapped file: no tensor is copied
unless it must be (compressed or strided), none is decoded until someone asks for numbers. `write` is atomic.
Readers trust nothing: each way for a file to be wrong is a class in `rookery.errors`, and no pickle is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from rookery import errors
from rookery.formats.blocks import nbytes
from rookery.formats.raw import brief, map_file
from rookery.formats.tensor import Array, Tensor

__all__ = ["File", "PathLike", "Tensor", "detect", "parse", "read", "size", "write"]

PathLike = str | os.PathLike[str]

READABLE = (".pth", ".pt", ".safetensors", ".bin", ".gguf")  # what model files are usually called
SUFFIXES = {".pth": "pth", ".pt": "pth", ".safetensors": "safetensors", ".gguf": "gguf"}

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# First bytes of things that are not ours, and what to say about them.
STRANGERS: list[tuple[bytes, str]] = [
    (LEGACY_TORCH, "a torch file of before torch 1.6: load and save it again with a current torch"),
    (b"\x80", "a bare pickle, which is never run; wanted a torch zip checkpoint: save it with torch.save"),
    (b"lmgg", "a GGML file without version; wanted ggmf (version 100 or 101): convert it again with rwkv.cpp"),
    (b"tjgg", "a GGJT file of llama.cpp, which never held RWKV"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x93NUMPY", "a single NumPy array; wanted named tensors"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull` or download it again"),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file's tensors in file order, and its metadata: text to text, in GGUF to typed values."""

    path: str
    format: str
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, Any]


def detect(path: PathLike) -> str:
    """ "pth", "safetensors", "gguf" or "ggmf", by the first bytes; "hf" for a folder with a config.json.

    Raises MissingFile, NotAFile, NoPermission, EmptyFile or UnknownFormat (which says what it looks like).
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        _folder().check(path)
        return "hf"
    return _detect(path, map_file(path))


def read(path: PathLike) -> File:
    """Open a file or folder of any known format. Raises those of `detect`, and subclasses of DamagedFile."""
    path = os.fspath(path)
    return File(path, "hf", *_folder().read(path)) if os.path.isdir(path) else parse(path, map_file(path))


def size(path: PathLike) -> int:
    """Bytes of a file, or of the files in a folder."""
    path = os.fspath(path)
    found: int = _folder().size(path) if os.path.isdir(path) else os.path.getsize(path)
    return found


def parse(path: str, raw: Array) -> File:
    """As `read`, of bytes already at hand (uint8 [n]); `path` is for messages only."""
    format = _detect(path, raw)
    tensors, metadata = import_module(f"rookery.formats.{format}").parse(path, raw)
    return File(path, format, tensors, metadata)


def write(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, format: str | None = None
) -> None:
    """Write all tensors, or leave the old file as it was.

    `format` ("pth", "safetensors" or "gguf") follows from the suffix unless given. Raises CannotWrite, or
    UnsupportedType for a tensor type that the format cannot hold.
    """
    path = os.fspath(path)
    if format not in (None, *SUFFIXES.values()):
        raise errors.CannotWrite(path, f"cannot be written as {format!r}; choose safetensors, pth, gguf or hf")
    format = format or suffix_format(path)
    if format is None:
        raise errors.CannotWrite(path, "no format that can be written; name it .safetensors, .pth or .gguf")
    for name, tensor in tensors.items():
        if tensor.nbytes != nbytes(tensor.dtype, tensor.shape):
            raise ValueError(f"tensor {brief(name)}: {tensor.nbytes} bytes do not fit {tensor.dtype} {tensor.shape}")
    import_module(f"rookery.formats.{format}").write(path, tensors, dict(metadata or {}))


def _folder() -> Any:
    return import_module("rookery.formats.folder")


def suffix_format(path: PathLike) -> str | None:
    """The format that a path's suffix asks for."""
    return SUFFIXES.get(os.path.splitext(os.fspath(path))[1].lower())


def _detect(path: str, raw: Array) -> str:
    head = raw[:512].tobytes()
    length = int.from_bytes(head[:8], "little")
    braced = head[8:9] == b"{"
    if braced and length < 2**32:
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        return "pth"
    if head.startswith(b"fmgg"):
        return "ggmf"
    if head.startswith(b"GGUF"):
        return "gguf"
    for magic, looks in STRANGERS:
        if head.startswith(magic):
            raise errors.UnknownFormat(path, f"looks like {looks}")
    if head.lstrip().lower().startswith((b"<!", b"<html", b"<?xml")):
        raise errors.UnknownFormat(path, "looks like a web page, not a model: was the download an error page?")
    if all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        raise errors.UnknownFormat(path, f"looks like text: {brief(head[:24].decode(errors='replace'))}")
    if braced:
        return "safetensors"
    wanted = "wanted a .pth, .safetensors, .gguf or rwkv.cpp .bin file"
    raise errors.UnknownFormat(path, f"unknown first bytes {head[:8].hex(' ')}; {wanted}")
