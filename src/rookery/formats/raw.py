"""What all readers share: mapping a file, and the checks of things that a header claims."""

from __future__ import annotations

import json
import mmap
import os
import stat
from math import prod
from typing import Any

import numpy as np

from rookery import errors
from rookery.formats import blocks
from rookery.formats.tensor import Array

MAX_DIMS = 16


def map_file(path: str | os.PathLike[str]) -> Array:
    """The file's bytes, uint8 [size], read-only and mapped: nothing is read before it is touched.

    Raises MissingFile, NotAFile, NoPermission, EmptyFile.
    """
    try:
        # Looked at before it is opened: opening a FIFO would wait for ever, opening a device can do anything.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise errors.NotAFile(path, f"is {kind}; wanted a file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise errors.EmptyFile(path, "has no bytes; was the download cut off?")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except PermissionError:
        raise errors.NoPermission(path, "the system does not let you read it; check its permissions") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise errors.MissingFile(path, f"cannot be opened ({why}); check the path") from None


def is_mapped(data: Array) -> bool:
    """Whether these bytes are a view of a file that `map_file` opened."""
    base: Any = data
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def brief(text: str) -> str:
    """`text` quoted for a one-line message, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def check_name(path: str, name: bytes) -> str:
    """A tensor's name from its bytes. Raises BadHeader."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.BadHeader(path, f"a name is not UTF-8: {name[:24].hex(' ')}") from None


def check_size(path: str, name: str, dtype: str, shape: tuple[Any, ...]) -> int:
    """The bytes that a tensor of this type and shape takes.

    Raises BadHeader (not a shape at all), TooLarge (more than any file holds).
    """
    if len(shape) > MAX_DIMS or any(type(size) is not int or size < 0 for size in shape):
        raise errors.BadHeader(path, f"tensor {brief(name)} has the impossible shape {brief(str(shape[:20]))}")
    # Zeros are left out of this product: a shape like (0, 2**62, 2**62) is refused too.
    if any(size >= 2**62 for size in shape) or prod(size or 1 for size in shape) >= 2**59:
        raise errors.TooLarge(path, f"tensor {brief(name)} claims more elements than any file holds")
    try:
        return blocks.nbytes(dtype, shape)
    except ValueError as error:
        raise errors.BadHeader(path, f"tensor {brief(name)}: {error}") from None


def json_object(path: str, text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 without repeated keys. Raises BadHeader."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in text:  # an escape can smuggle in half a surrogate pair, which cannot be printed or written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise errors.BadHeader(path, f"the header is not valid JSON ({brief(str(error))})") from None
    if not isinstance(value, dict):
        raise errors.BadHeader(path, "the header is not a JSON object")
    return value


def text_map(path: str, value: Any) -> dict[str, str]:
    """Metadata: a dict of text to text. Raises BadHeader."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise errors.BadHeader(path, "the metadata must map text to text")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
