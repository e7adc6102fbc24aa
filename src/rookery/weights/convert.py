"""Write a model in another format: the same tensors, bit for bit, with its lineage where the format has room."""

from __future__ import annotations

import os
from typing import Any

from rookery import formats
from rookery.errors import CannotWrite
from rookery.formats.tensor import Tensor, plain, row_major
from rookery.weights.load import Weights, load, locate
from rookery.weights.names import gguf

_TEMPLATE = "tokenizer.chat_template"
_KEPT = ("general.name", _TEMPLATE)  # of a GGUF's metadata, in formats that hold only text


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], to: str | None = None, force: bool = False
) -> None:
    """Read `source`, write `target` as `to` ("pth", "safetensors", "gguf"; default: by its suffix; "hf": a folder).

    Values never change. Types do where the target cannot hold them: blocks become float32 outside GGUF, panels plain
    numbers (in a GGUF Q8_0 and Q4_0 blocks again), and in the GGUF of a v6 or v7 vectors and small matrices become
    float32, as llama.cpp wants them (`names.gguf`).
    Raises CannotWrite when `target` exists and `force` is not set, or is `source` itself.
    """
    source = locate(source)
    if to == "hf":
        from rookery.formats import folder

        folder.check_target(os.fspath(target))
    else:
        check_target(source, target, force)
    weights = load(source)
    write(weights, target, to)


def check_target(source: str, target: str | os.PathLike[str], force: bool) -> None:
    """Raises CannotWrite when `target` exists and `force` is not set, or is `source` itself."""
    if os.path.exists(target):
        if os.path.exists(source) and os.path.samefile(source, target):
            raise CannotWrite(target, "is the source itself; name another file")
        if not force:
            raise CannotWrite(target, "exists already; --force overwrites it")


def provenance(weights: Weights) -> dict[str, str]:
    """What a written file says of the model it was made from."""
    return {"rookery.lineage": weights.lineage, "rookery.group_norm_eps": repr(weights.config.group_norm_eps)}


def texts(weights: Weights) -> dict[str, str]:
    """The metadata that goes along into a format that holds only text."""
    ours = {key: value for key, value in weights.metadata.items() if key.startswith("rookery.") or key in _KEPT}
    return {key: value for key, value in ours.items() if isinstance(value, str)} | provenance(weights) | _words(weights)


def _words(weights: Weights) -> dict[str, str]:
    """The vocabulary that a GGUF or a folder carries, unless its name says all, and a folder's chat template."""
    from rookery.formats import folder
    from rookery.tokenizer import CARRIED, World, stored
    from rookery.tokenizer.world import MODEL_ROWS

    known = {CARRIED, "rookery.tokenizer"} & weights.metadata.keys() or weights.config.n_vocab == MODEL_ROWS
    found = None if known else stored.find(weights.path, weights.format, weights.metadata)
    words = {CARRIED: found.text()} if isinstance(found, World) and found.end == 0 else {}
    template = folder.chat_template(weights.path) if weights.format == "hf" else None
    return words | ({_TEMPLATE: template} if template else {})


def to_gguf(weights: Weights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A GGUF's tensors and metadata; panels, which it cannot hold, as plain numbers."""
    tensors = {name: row_major(t) for name, t in weights.tensors.items()}
    words = {} if weights.format == "gguf" else _words(weights)
    return gguf.from_blinkdl(tensors, weights.config, weights.metadata | provenance(weights) | words)


def write(weights: Weights, target: str | os.PathLike[str], to: str | None = None) -> None:
    """Write a model, one tensor at a time. Raises CannotWrite and UnsupportedType."""
    metadata: dict[str, Any]
    if (to or formats.suffix_format(target)) == "gguf":
        tensors, metadata = to_gguf(weights)
    else:
        tensors = {name: plain(t) for name, t in weights.tensors.items()}
        metadata = texts(weights)
    if to == "hf":
        from rookery.weights import folders

        return folders.write(weights, target, tensors, metadata)
    formats.write(target, tensors, metadata, format=to)
