"""The committed fixtures in other formats, written without the package."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle import read_safetensors

Array = npt.NDArray[Any]
Tensors = dict[str, npt.NDArray[np.float32]]


def write_pth(source: Path, target: Path) -> None:
    import torch

    torch.save({name: torch.from_numpy(value.copy()) for name, value in read_safetensors(source).items()}, target)


def write_ggmf(source: Path, target: Path, version: str) -> None:
    """As rwkv.cpp's converter does: six int32, then dims, key length, type, the dims fastest first, key and data."""
    tensors = for_ggmf(read_safetensors(source), version)
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    vocabulary, width = tensors["emb.weight"].shape
    with target.open("wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 101, vocabulary, width, layers, 0))
        for name, value in tensors.items():
            file.write(struct.pack(f"<{3 + value.ndim}i", value.ndim, len(name), 0, *value.shape[::-1]))
            file.write(name.encode() + np.ascontiguousarray(value, "<f4").tobytes())


def for_ggmf(tensors: Tensors, version: str) -> dict[str, Array]:
    """BlinkDL's tensors as rwkv.cpp keeps them."""
    out: dict[str, Array] = {}
    for name, value in tensors.items():
        base = name.rsplit(".", 1)[-1]
        heads = tensors.get("blocks.0.att.time_faaaa", np.empty(0)).shape[:1]
        if version == "7" and base in ("v0", "v1", "v2") and name.startswith("blocks.0."):
            continue
        if version == "7" and ".att.x_" in name:
            if base == "x_r":
                block = name.removesuffix("x_r")
                out[block + "x_rwkvag"] = np.stack([tensors[f"{block}x_{c}"].reshape(1, -1) for c in "rwkvag"])
            continue
        squeezed = value.squeeze() if ".time_" in name or value.ndim == 3 else value
        match version[0], base:
            case "4", "time_decay":
                squeezed = -np.exp(squeezed)
            case "5", "time_decay":
                squeezed = np.exp(-np.exp(squeezed)).reshape(len(squeezed), -1, 1)
            case "5", "time_first":
                squeezed = np.exp(squeezed).reshape(len(squeezed), -1, 1)
            case "6", "time_decay":
                squeezed = squeezed.reshape(*heads, -1, 1)
            case "5" | "6", "time_faaaa":
                squeezed = squeezed.reshape(*heads, -1, 1)
            case "6", "time_maa_w1" | "time_decay_w1" | "time_decay_w2" | "time_maa_w2":
                squeezed = squeezed.swapaxes(-1, -2)
            case "7", "w1" | "w2" | "a1" | "a2" | "v1" | "v2" | "g1" | "g2":
                squeezed = squeezed.T
            case _:
                pass
        out[name] = squeezed
    return out
