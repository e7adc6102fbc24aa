"""llama.cpp's names and values (GGUF), brought to BlinkDL's and back; v4 and v5, which it has not, under our own.

rwkv6 and rwkv7 are what llama.cpp opens: low-rank pairs transposed, mixes stacked, vectors and the tensors in `_WIDE`
in float32 (so bf16 and f16 come back as float32 of equal value), and v7's unused first v0, v1, v2 as copies of a0, a1,
a2. v6's `output` and `value` may lie divided by 2^(layer//n), for llama.cpp to halve its activations every n layers.
That is undone on reading, and done on writing where the model came from such a file and no bit is lost; else n is 0,
never, for LayerNorm's epsilon makes halved activations another computation, and llama.cpp keeps them in float32.
rwkv4 and rwkv5 are names of ours: BlinkDL's tensors as they are, under his names.
A tuned `time_state` keeps his name too; llama.cpp refuses a file that has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rookery.architecture import Config
from rookery.errors import BadHeader, MissingTensor, UnknownArchitecture, WrongShape
from rookery.formats import blocks
from rookery.formats.raw import brief
from rookery.formats.tensor import Deferred, Tensor, plain, round_bf16, widen_bf16
from rookery.weights.names import Tensors, gguf_vocabulary

_RESCALE_KEY = "rwkv6.rescale_every_n_layers"
_HYBRIDS = {
    "arwkv7": "an ARWKV-7 hybrid (RWKV-7 time mixing inside a Qwen Transformer's blocks)",
    "rwkv6qwen2": "a QRWKV-6 hybrid (a linear attention like RWKV-6's inside a Qwen 2 Transformer's blocks)",
}
_OUTER = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
_NORMS = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln"}
_COMMON = {
    **{f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in _NORMS.items() for leaf in ("weight", "bias")},
    **{f"att.{m}.weight": f"time_mix_{m}.weight" for m in ("receptance", "key", "value", "gate", "output")},
    **{f"ffn.{m}.weight": f"channel_mix_{m}.weight" for m in ("receptance", "key", "value")},
}
_LAYER = {
    "6": _COMMON
    | {f"att.time_maa_{x}": f"time_mix_lerp_{x}.weight" for x in "xwkvrg"}
    | {f"att.time_maa_{x}": f"time_mix_{x}.weight" for x in ("w1", "w2")}
    | {f"att.time_decay{x}": f"time_mix_decay{x}.weight" for x in ("", "_w1", "_w2")}
    | {f"ffn.time_maa_{x}": f"channel_mix_lerp_{x}.weight" for x in "kr"}
    | {"att.time_faaaa": "time_mix_first.weight"},
    "7": _COMMON
    | {f"att.{x}{i}": f"time_mix_{x}{i}.weight" for x in "wavg" for i in "012"}
    | {f"att.{x}": f"time_mix_{x}.weight" for x in ("k_k", "k_a", "r_k")}
    | {"ffn.x_k": "channel_mix_lerp_k.weight"},
}
_THEIRS = {major: {theirs: ours for ours, theirs in table.items()} for major, table in _LAYER.items()}
_FUSED = "time_mix_lerp_fused.weight"
_MIXES = {"6": [f"att.time_maa_{x}" for x in "wkvrg"], "7": [f"att.x_{x}" for x in "rwkvag"]}
_AXES = {
    "att.time_maa_w1": (1, 0), "att.time_maa_w2": (0, 2, 1), "att.time_decay_w1": (1, 0), "att.time_decay_w2": (1, 0),
    **{f"att.{x}{i}": (1, 0) for x in "wavg" for i in "12"},
}  # fmt: skip
_WIDE = {f"time_mix_{x}.weight" for x in ("first", "w1", "w2", "decay_w1", "decay_w2", "lerp_fused")}
# Where the float16 scales lie in a block, to which all its values are proportional.
_SCALES = {"q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q4_k": (0, 2), "q5_k": (0, 2),
           "q6_k": (208,)}  # fmt: skip
_RESCALED = ("att.output.weight", "ffn.value.weight")
_UNUSED = ("att.v0", "att.v1", "att.v2")  # of v7's first layer
_KEPT_V = "rookery.first_v"  # says that those are the model's own
_THEIR_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)")
_OUR_LAYER = re.compile(r"blocks\.([0-9]+)\.(.+)")


def to_blinkdl(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Tensors:
    """BlinkDL's tensors from those of a GGUF. Raises UnknownArchitecture, MissingTensor, WrongShape, BadHeader."""
    major = _major(path, metadata)
    for key, value in metadata.items():
        if key.startswith("rookery.") and not isinstance(value, str):
            raise BadHeader(path, f"metadata {brief(key)} is not text")
    if major in "45":
        return dict(tensors)
    n_rescale = _whole(path, metadata, _RESCALE_KEY, 0)
    head_size = _whole(path, metadata, f"rwkv{major}.wkv.head_size", 64)
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    out: Tensors = {}
    for name, tensor in tensors.items():
        layer = _THEIR_LAYER.fullmatch(name)
        base = layer and _THEIRS[major].get(layer[2])
        if name in outer:
            out[outer[name]] = tensor
        elif layer and layer[2] == _FUSED:
            for ours, row in zip(_MIXES[major], _rows(path, name, tensor, len(_MIXES[major])), strict=True):
                out[f"blocks.{layer[1]}.{ours}"] = row
        elif layer and base:
            if major == "7" and layer[1] == "0" and base in _UNUSED and _KEPT_V not in metadata:
                continue
            exponent = int(layer[1]) // n_rescale if n_rescale and major == "6" and base in _RESCALED else 0
            out[f"blocks.{layer[1]}.{base}"] = _raised(_shaped(path, name, base, tensor, head_size), exponent)
        elif name.endswith(".att.time_state"):
            out[name] = tensor
        else:
            raise UnknownArchitecture(f"{path}: a variant that Rookery does not run; unknown tensor {brief(name)}")
    return out


def _major(path: str, metadata: Mapping[str, Any]) -> str:
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise BadHeader(path, "lacks the metadata 'general.architecture'")
    if metadata.get("general.type") == "adapter":
        raise UnknownArchitecture(f"{path}: an adapter of {brief(name)}, no model; merge it into its base first")
    if name in _HYBRIDS:
        raise UnknownArchitecture(f"{path}: {_HYBRIDS[name]}, which Rookery does not run")
    if name not in ("rwkv4", "rwkv5", "rwkv6", "rwkv7"):
        raise UnknownArchitecture(f"{path}: a GGUF of the architecture {brief(name)}, which is no RWKV v4 to v7")
    parts = metadata.get("split.count", 0)
    if type(parts) is int and parts > 1:
        raise MissingTensor(f"{path}: one of {parts} parts of a model; join them: llama-gguf-split --merge")
    return name[-1]


def _whole(path: str, metadata: Mapping[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if type(value) is not int or not 0 <= value < 2**31:
        raise BadHeader(path, f"metadata {brief(key)} is {brief(str(value))}; wanted a whole number")
    return value


def _rows(path: str, name: str, tensor: Tensor, count: int) -> Iterator[Tensor]:
    """The mixes that lie stacked in one tensor: views of it."""
    if tensor.shape[:1] != (count,) or tensor.dtype in blocks.BLOCKS:
        raise WrongShape(f"{path}: {brief(name)} is {tensor.dtype} {list(tensor.shape)}; wanted {count} plain rows")
    size = tensor.nbytes // count
    for i in range(count):
        row = tensor.data[i * size : (i + 1) * size]
        yield Tensor(tensor.dtype, (1, 1, tensor.size // count), row)


def _shaped(path: str, name: str, base: str, tensor: Tensor, head_size: int) -> Tensor:
    if base in _AXES:
        if len(tensor.shape) != len(_AXES[base]):
            raise WrongShape(f"{path}: {brief(name)} has shape {list(tensor.shape)}")
        return _moved(tensor, _AXES[base])
    if base == "att.r_k":
        if not head_size or tensor.size % head_size:
            raise WrongShape(f"{path}: {brief(name)} of {tensor.size} elements makes no heads of {head_size}")
        return tensor.reshape(tensor.size // head_size, head_size)
    vector = base.count(".") == 1 and not base.startswith("ln") and base != "att.time_faaaa"
    return tensor.reshape(1, 1, tensor.size) if vector else tensor


def _moved(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Axes in another order; blocks, whose rows would break, as float32."""
    tensor = plain(tensor)
    return Deferred(tensor.dtype, tuple(tensor.shape[i] for i in axes), lambda: tensor.permuted(*axes))


def _raised(tensor: Tensor, exponent: int) -> Tensor:
    """`tensor` times 2^exponent, in its own type."""
    if not exponent:
        return tensor
    return Deferred(tensor.dtype, tensor.shape, lambda: _times(tensor, 2.0**exponent))


def _times(tensor: Tensor, factor: float) -> Tensor:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if tensor.dtype in blocks.BLOCKS:
            size = blocks.BLOCKS[tensor.dtype][0]
            scaled = tensor.data.reshape(-1, size).copy()
            for at in _SCALES[tensor.dtype]:
                scaled[:, at : at + 2].view("<f2")[:] *= np.float16(factor)
            return Tensor(tensor.dtype, tensor.shape, scaled.reshape(-1))
        stored = tensor.stored()
        if tensor.dtype == "bf16":
            values = round_bf16(widen_bf16(stored) * np.float32(factor))
        else:
            values = stored * stored.dtype.type(factor)
    return Tensor(tensor.dtype, tensor.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def from_blinkdl(
    tensors: Mapping[str, Tensor], config: Config, metadata: Mapping[str, Any]
) -> tuple[Tensors, dict[str, Any]]:
    """A GGUF's tensors and metadata from BlinkDL's. What `metadata` says of name, tokenizer and lineage is kept."""
    major = config.version[0]
    kept = {
        key: value
        for key, value in metadata.items()
        if key.partition(".")[0] in ("general", "tokenizer", "rookery") and key not in _OURS
    }
    if major in "45":
        return dict(tensors), _header(config, tensors, kept, {})
    facts = _facts(config, tensors)
    if major == "6":
        n_rescale = _rescale(tensors, metadata)
        facts["rescale_every_n_layers"] = n_rescale
        return _renamed(tensors, major, n_rescale, False), _header(config, tensors, kept, facts)
    own_v = all(_fits(tensors, base) for base in _UNUSED)
    if own_v:
        kept[_KEPT_V] = "own"
    return _renamed(tensors, major, 0, own_v), _header(config, tensors, kept, facts)


def _fits(tensors: Mapping[str, Tensor], base: str) -> bool:
    """Whether v7's first layer has this unused tensor, in the shape of its twin, which llama.cpp wants."""
    own, twin = tensors.get(f"blocks.0.{base}"), tensors[f"blocks.0.{base.replace('v', 'a')}"]
    return own is not None and own.shape == twin.shape


def _renamed(tensors: Mapping[str, Tensor], major: str, n_rescale: int, own_v: bool) -> Tensors:
    out: Tensors = {}
    for name, tensor in tensors.items():
        layer = _OUR_LAYER.fullmatch(name)
        if name in _OUTER or layer is None:
            out[_OUTER[name]] = _wide(tensor, _OUTER[name])
            continue
        i, base = int(layer[1]), layer[2]
        if base in _MIXES[major]:
            if base == _MIXES[major][0]:
                rows = [tensors[f"blocks.{i}.{mix}"] for mix in _MIXES[major]]
                out[f"blk.{i}.{_FUSED}"] = _stacked(rows)
        elif base == "att.time_state":
            out[name] = tensor
        elif major == "6" or i or own_v or base not in _UNUSED:
            theirs = _LAYER[major][base]
            moved = _moved(tensor, _AXES[base]) if base in _AXES else tensor
            exponent = -(i // n_rescale) if n_rescale and base in _RESCALED else 0
            out[f"blk.{i}.{theirs}"] = _wide(_raised(moved, exponent), theirs)
            if major == "7" and i == 0 and not own_v and base in ("att.a0", "att.a1", "att.a2"):
                out["blk.0." + theirs.replace("_a", "_v")] = out["blk.0." + theirs]
    return out


def _stacked(rows: list[Tensor]) -> Tensor:
    def make() -> Tensor:
        return Tensor.of(np.stack([row.float32().reshape(1, 1, -1) for row in rows]))

    return Deferred("f32", (len(rows), 1, 1, rows[0].size), make)


def _wide(tensor: Tensor, theirs: str) -> Tensor:
    """In float32 what llama.cpp wants so: vectors, without their empty axes, and `_WIDE`."""
    vector = sum(n != 1 for n in tensor.shape) < 2 or theirs == "time_mix_r_k.weight"
    shape = (tensor.size,) if vector else tensor.shape
    if (vector or theirs in _WIDE) and tensor.dtype in ("f16", "bf16", *blocks.BLOCKS):
        return Deferred("f32", shape, lambda: Tensor.of(tensor.float32().reshape(shape)))
    return tensor.reshape(*shape) if vector else tensor


def _rescale(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """After how many layers v6 is to be rescaled: what the source said, if that loses no bit, else never (0)."""
    n = metadata.get(_RESCALE_KEY, 0)
    if type(n) is not int or n < 1:
        return 0
    for name, tensor in tensors.items():
        layer = _OUR_LAYER.fullmatch(name)
        exponent = int(layer[1]) // n if layer and layer[2] in _RESCALED else 0
        if exponent:
            there = _times(tensor, 2.0**-exponent)
            if not np.array_equal(_times(there, 2.0**exponent).data, tensor.data):
                return 0
    return n


_OURS = {"general.architecture", "general.type", "general.file_type", "general.quantization_version",
         "general.alignment", _KEPT_V}  # fmt: skip
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k": 15, "q5_k": 17,
               "q6_k": 18, "bf16": 32}  # fmt: skip


def _facts(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """llama.cpp's keys, without the architecture's name before them."""
    facts = {"wkv.head_size": config.head_size, "token_shift_count": 2}
    if config.version == "6":
        return facts | {"time_mix_extra_dim": config.ranks["maa"], "time_decay_extra_dim": config.ranks["decay"]}
    letters = {"decay": "w", "iclr": "a", "value_residual_mix": "v", "gate": "g"}
    ranks = {"v": config.ranks["a"]} | dict(config.ranks)  # a single layer has no v
    return facts | {f"attention.{what}_lora_rank": ranks[x] for what, x in letters.items()}


def _header(
    config: Config, tensors: Mapping[str, Tensor], kept: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    arch = f"rwkv{config.version[0]}"
    out: dict[str, Any] = {"general.architecture": arch, "general.type": "model"}
    out |= {"general.name": config.name} | {k: v for k, v in kept.items() if k.startswith("general.")}
    out |= file_type(tensors)
    sizes = {
        "context_length": 2**20,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_ffn,
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": np.float32(1e-5),
        "vocab_size": config.n_vocab,
    }
    out |= {f"{arch}.{key}": value for key, value in (sizes | dict(facts)).items()}
    out |= gguf_vocabulary.entries(kept, config.n_vocab)
    from rookery.tokenizer import CARRIED

    said = ("general.", CARRIED)
    return out | {k: v for k, v in kept.items() if not k.startswith(said)}


def file_type(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The metadata that says in which type most of a file's numbers are."""
    held: dict[str, int] = {}
    for tensor in tensors.values():
        held[tensor.dtype] = held.get(tensor.dtype, 0) + tensor.size
    out = {"general.file_type": _FILE_TYPES.get(max(held, key=lambda dtype: held[dtype]), 0)}
    if any(dtype in blocks.BLOCKS for dtype in held):
        out["general.quantization_version"] = 2
    return out


def blinkdl_name(name: str, version: str) -> str:
    """BlinkDL's name of a tensor of a GGUF; of the stacked mixes, which have none, the GGUF's own."""
    if version[0] in "45":
        return name
    layer = _THEIR_LAYER.fullmatch(name)
    if layer:
        base = _THEIRS[version[0]].get(layer[2])
        return f"blocks.{layer[1]}.{base}" if base else name
    return next((ours for ours, theirs in _OUTER.items() if theirs == name), name)
