"""Adapters: what a tuned model has beside its base or in its place, read from files and applied to weights."""

from __future__ import annotations

import os

from rookery import formats
from rookery.errors import AdapterError, CannotWrite
from rookery.weights.adapters.adapter import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Side, Whole
from rookery.weights.adapters.apply import beside, merged

__all__ = [
    "Adapter", "Bat", "Dora", "LowRank", "Miss", "Part", "Pissa", "Side", "Whole", "beside",
    "is_one", "load", "merged", "write",
]  # fmt: skip


def is_one(path: str | os.PathLike[str]) -> bool:
    """Whether an adapter lies at `path`, in any known form. Raises FileError subclasses for a file that is damaged."""
    from rookery.weights.adapters import peft_folder, peft_pth

    if os.path.isdir(path):
        return peft_folder.is_one(path)
    if not os.path.exists(path) or formats.detect(path) not in ("safetensors", "pth"):
        return False
    found = formats.read(path)
    return found.metadata.get("rookery.kind") == "adapter" or peft_pth.is_one(found)


def load(
    path: str | os.PathLike[str], alpha: float | None = None, init: str | os.PathLike[str] | None = None
) -> Adapter:
    """Read an adapter: ours, a .pth of RWKV-PEFT, or a folder of Hugging Face's peft.

    `alpha`: of a LoRA of RWKV-PEFT, whose file does not hold it. `init`: what a PiSSA began as, RWKV-PEFT's
    init_pissa.pth or a folder of peft. Raises FileError subclasses, and AdapterError for a file that is none.
    """
    from rookery.weights.adapters import file, peft_folder, peft_pth

    if os.path.isdir(path):
        if alpha is not None:
            raise AdapterError(f"{os.fspath(path)}: says its own alpha; --alpha (alpha=) is for a .pth of RWKV-PEFT")
        return peft_folder.read(path, init)
    found = formats.read(path)
    if found.metadata.get("rookery.kind") == "adapter":
        if alpha is not None or init is not None:
            raise AdapterError(f"{found.path}: says all of itself; --alpha and --init are for files of others")
        return file.of_file(found)
    if peft_pth.is_one(found):
        return peft_pth.of_file(found, alpha, init)
    raise AdapterError(f"{found.path}: not an adapter; wanted Rookery's, a .pth of RWKV-PEFT or a folder of peft")


def write(adapter: Adapter, path: str | os.PathLike[str], to: str | None = None, force: bool = False) -> None:
    """Write an adapter as "rookery" (our safetensors), "pth" (RWKV-PEFT) or "hf" (a new folder for peft).

    By default the suffix says which: .pth, and ours for all others. `force` overwrites an init_pissa.pth, which a PiSSA
    has beside its .pth. Raises AdapterError where that form has no place for the adapter, CannotWrite.
    """
    from rookery.weights.adapters import file, peft_folder_write, peft_pth

    to = to or formats.suffix_format(path) or "rookery"
    if to == "hf":
        peft_folder_write.write(path, adapter)
    elif to == "pth":
        peft_pth.write(path, adapter, force)
    elif to in ("rookery", "safetensors"):
        file.write(path, adapter)
    else:
        raise CannotWrite(path, f"an adapter cannot be written as {to!r}; choose safetensors, pth or hf")
