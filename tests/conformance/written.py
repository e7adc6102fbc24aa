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


def write_gguf(source: Path, target: Path, version: str) -> None:
    """As llama.cpp's converter does, v6 rescaled after every layer: a head, the table of tensors, aligned data."""
    tensors = for_gguf(read_safetensors(source), version)
    tensors = {name: np.ascontiguousarray(value, "<f4") for name, value in tensors.items()}

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    sizes = [b"rwkv6.rescale_every_n_layers", 1, b"rwkv7.wkv.head_size", tensors.pop("head_size").size]
    head = text(b"general.architecture") + struct.pack("<I", 8) + text(b"rwkv" + version.encode())
    head += b"".join(text(key) + struct.pack("<II", 4, n) for key, n in zip(sizes[::2], sizes[1::2], strict=True))
    at = 0
    for name, value in tensors.items():
        head += text(name.encode()) + struct.pack("<I", value.ndim)
        head += struct.pack(f"<{value.ndim}QIQ", *value.shape[::-1], 0, at)
        at += -(-value.nbytes // 32) * 32
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3) + head)
        for value in tensors.values():
            file.write(bytes(-file.tell() % 32) + value.tobytes())


_OUTER = {"emb.": "token_embd.", "head.": "output.", "ln_out.": "output_norm.", "blocks.0.ln0.": "token_embd_norm."}
_INNER = {
    "ln1.": "attn_norm.", "ln2.": "attn_norm_2.", "att.ln_x.": "time_mix_ln.", "ffn.time_maa_": "channel_mix_lerp_",
    "ffn.x_": "channel_mix_lerp_", "ffn.": "channel_mix_", "att.time_maa_x": "time_mix_lerp_x",
    "att.time_maa_": "time_mix_", "att.time_faaaa": "time_mix_first", "att.time_": "time_mix_", "att.": "time_mix_",
}  # fmt: skip


def for_gguf(tensors: Tensors, version: str) -> dict[str, Array]:
    """BlinkDL's tensors as llama.cpp keeps them, and "head_size", of as many elements as a head has channels."""
    out: dict[str, Array] = {"head_size": tensors[f"blocks.0.att.{'r_k' if version == '7' else 'time_faaaa'}"][0]}
    prefix, order = ("time_maa_", "wkvrg") if version == "6" else ("x_", "rwkvag")
    for name, value in tensors.items():
        outer = next((theirs for ours, theirs in _OUTER.items() if name.startswith(ours)), None)
        if outer:
            out[outer + name.rsplit(".", 1)[1]] = value
            continue
        _, layer, base = name.split(".", 2)
        if base in [f"att.{prefix}{x}" for x in order]:
            stack = [tensors[f"blocks.{layer}.att.{prefix}{x}"].reshape(1, 1, -1) for x in order]
            out[f"blk.{layer}.time_mix_lerp_fused.weight"] = np.stack(stack)
            continue
        if base in ("att.output.weight", "ffn.value.weight") and version == "6":
            value = value / 2 ** int(layer)
        if base == "att.time_maa_w2":
            value = value.transpose(0, 2, 1)
        elif base[-1] in "12" and "ln" not in base:
            value = value.T
        elif value.shape[:2] == (1, 1) or base == "att.r_k":
            value = value.reshape(-1)
        ours = next(ours for ours in _INNER if base.startswith(ours))
        theirs = base.replace(ours, _INNER[ours], 1)
        out[f"blk.{layer}.{theirs}" + ("" if theirs.endswith((".weight", ".bias")) else ".weight")] = value
    if version == "7":
        for i in "012":
            out[f"blk.0.time_mix_v{i}.weight"] = np.full_like(out[f"blk.0.time_mix_a{i}.weight"], np.nan)  # unused
    return out
