"""Hugging Face peft's adapters: a folder of adapter_config.json and adapter_model.safetensors, over a model of
BlinkDL's names or of Hugging Face's (`weights.names.hf`).

LoRA, rsLoRA, DoRA, PiSSA and MiSS are read. A setting that is not known to leave the computation as it is is refused.
Source: peft 0.21, tuners/lora, tuners/miss, utils/save_and_load.py.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np

from rookery import formats
from rookery.errors import AdapterError, UnknownFormat
from rookery.formats import folder
from rookery.formats.raw import brief, map_file
from rookery.formats.tensor import Array
from rookery.weights.adapters import foreign
from rookery.weights.adapters.adapter import Adapter, Dora, LowRank, Miss, Part, Pissa, Whole
from rookery.weights.adapters.file import numbers, told
from rookery.weights.names import hf

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FILES = (TENSORS, "adapter_model.bin")
PREFIX = "base_model.model."

# Settings that say how the adapter was made, not what it computes; what is in neither set must be off.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "megatron_core", "mini_r",
    "miss_dropout", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
READ = {
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "init_weights",
}
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga")  # inits that take their first product out of the base
BLOCKS = {"MISS": "miss_block", "BONE": "bone_block"}

_LEAF = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|miss_block|bone_block)"
    r"(?:\.default)?(?:\.weight)?"
)
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)")

Found = dict[str, dict[str, Array]]  # module -> leaf -> values


def is_one(path: str | os.PathLike[str]) -> bool:
    """Whether it is a folder with an adapter's config, and no model's weights."""

    def has(name: str) -> bool:
        return os.path.lexists(os.path.join(path, name))

    return has(CONFIG) and not any(map(has, folder.WEIGHTS))


def read(path: str | os.PathLike[str], init: formats.PathLike | None = None) -> Adapter:
    """The adapter in a folder. `init`: the folder of what a PiSSA (or OLoRA, CorDA, LoRA-GA) began as.

    Raises FileError subclasses, and AdapterError.
    """
    path = os.fspath(path)
    if not os.path.lexists(os.path.join(path, CONFIG)):
        raise AdapterError(f"{path}: a folder without {CONFIG}; wanted an adapter's")
    config = folder.json_file(path, CONFIG, folder.MAX_JSON)
    kind = config.get("peft_type")
    _check(path, config)
    found, whole, said = _tensors(path)
    name = config.get("base_model_name_or_path")
    more = {"rookery.base.name": name} if isinstance(name, str) and name else {}
    if kind == "LORA":
        parts = _lora(path, config, found)
        if init is not None or str(config.get("init_lora_weights")).split("_niter_")[0] in CHANGED_BASE:
            parts = _less(path, parts, init)
        made = _method(parts, config)
    elif init is not None:
        raise AdapterError(f"{path}: a MiSS, which began as nothing; --init (init=) is for a PiSSA and its kin")
    else:
        parts, made = _miss(path, config, found, BLOCKS[str(kind)]), "miss"
    for ours, value in whole.items():
        if ours in parts:
            raise AdapterError(f"{path}: holds {ours} and a low-rank change of it; wanted one of them")
        parts[ours] = Whole(value)
    return told(path, parts, made, said, **more)


def _check(path: str, config: dict[str, Any]) -> None:
    """Raises AdapterError for a kind of adapter, or a setting of it, that would compute something else."""
    kind = config.get("peft_type")
    if kind not in ("LORA", *BLOCKS):
        raise AdapterError(f"{path}: an adapter of peft_type {brief(str(kind))}; LORA and MISS are read")
    for key, value in config.items():
        if key not in HARMLESS | READ and value not in (None, False, {}, [], "none"):
            if key == "loftq_config" and config.get("init_lora_weights") != "loftq":
                continue  # peft writes the defaults of what was not used
            raise AdapterError(f"{path}: {CONFIG} sets {brief(key)} to {brief(str(value))}, which Rookery does not run")
    init = config.get("init_lora_weights" if kind == "LORA" else "init_weights")
    if init in ("bat", "mini"):
        raise AdapterError(
            f'{path}: a MiSS of peft\'s mode "{init}"; its usual one is read (peft counts the blocks of "bat" by rows, '
            "RWKV-PEFT by columns: neither says the other)"
        )
    if init not in PLAIN_INITS and str(init).split("_niter_")[0] not in CHANGED_BASE:
        raise AdapterError(f"{path}: init_lora_weights {brief(str(init))} is not known; its base would be another")
    for key in ("use_rslora", "use_dora"):
        if config.get(key) not in (None, True, False):
            raise AdapterError(f"{path}: {CONFIG} sets {key} to {brief(str(config[key]))}; wanted true or false")


def _tensors(path: str) -> tuple[Found, dict[str, Array], dict[str, Any]]:
    """Low-rank tensors by module and leaf, tensors tuned in full by BlinkDL's names, and the file's metadata."""
    name = next((name for name in FILES if os.path.lexists(os.path.join(path, name))), TENSORS)
    there = folder.inside(path, name)
    file = formats.parse(there, map_file(there))
    if file.format not in ("safetensors", "pth"):
        raise UnknownFormat(there, f"is a {file.format} file; wanted safetensors or a torch checkpoint")
    found: Found = {}
    whole: dict[str, Array] = {}
    for given, tensor in file.tensors.items():
        name = given.removeprefix(PREFIX)
        value = numbers(there, given, tensor)
        place: dict[str, Array]
        if match := _LEAF.fullmatch(name):
            place, key = found.setdefault(match[1], {}), match[2]
        elif ".base_layer." in name:
            continue  # the base's own, which peft adds where it cannot tell whether the vocabulary has grown
        else:
            key, turned = hf.parameter(_SAVED.sub("", name))
            place, value = whole, value.T if turned and value.ndim == 2 else value
        if key in place:
            raise AdapterError(f"{there}: holds {brief(given)} twice, under two names")
        place[key] = value
    return found, whole, file.metadata


def _lora(path: str, config: dict[str, Any], found: Found) -> dict[str, Part]:
    """LoRA and DoRA parts by BlinkDL's names; an embedding's pair is that of the transposed table."""
    parts: dict[str, Part] = {}
    for module, leaves in found.items():
        name, turned = hf.parameter(f"{module}.weight")
        table = {"lora_embedding_A", "lora_embedding_B"} <= set(leaves)
        kind = "lora_embedding_" if table else "lora_"
        a, b = leaves.pop(f"{kind}A", None), leaves.pop(f"{kind}B", None)
        magnitude = leaves.pop("lora_magnitude_vector", None)
        if a is None or b is None or leaves or a.ndim != 2 or b.ndim != 2 or (magnitude is None) == _dora(config):
            raise AdapterError(f"{path}: the tensors of {module} make no part of an adapter")
        scale = _scale(path, config, module, len(a))
        if turned or table:
            a, b = b.T, a.T
        if name in parts:
            raise AdapterError(f"{path}: changes {name} twice, under two names")
        if magnitude is None:
            parts[name] = LowRank(a, b, scale)
        elif turned or table:
            raise AdapterError(f"{path}: a DoRA on {module}, whose rows are columns here; retrain it without")
        else:
            parts[name] = Dora(a, b, scale, magnitude)
    return parts


def _dora(config: dict[str, Any]) -> bool:
    return config.get("use_dora") is True


def _scale(path: str, config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r), of one module, whose rank must be what the config says."""
    said = _setting(path, config, "rank_pattern", "r", module)
    if said != rank or rank < 1:
        raise AdapterError(f"{path}: the A of {module} has {rank} rows, where {CONFIG} says r {said:g}")
    alpha = _setting(path, config, "alpha_pattern", "lora_alpha", module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _setting(path: str, config: dict[str, Any], pattern: str, general: str, module: str) -> float:
    """What the first fitting key of a pattern says of a module, else the general setting.

    peft takes the keys for regular expressions; those that are plain names, as peft writes them, are understood.
    """
    patterns = config.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{path}: {CONFIG} lacks a {pattern} from names to numbers")
    for key, value in patterns.items():
        plain = key.replace("\\.", ".").removesuffix("$")
        if not re.fullmatch(r"\^?[\w.]+", plain):
            raise AdapterError(f"{path}: {pattern} has the key {brief(key)}; names of modules are understood")
        anchored = plain.startswith("^")
        if module == plain.removeprefix("^") or (not anchored and module.endswith(f".{plain}")):
            return foreign.number(path, f"{pattern} of {brief(key)}", value)
    return foreign.number(path, general, config.get(general))


def _less(path: str, parts: dict[str, Part], init: formats.PathLike | None) -> dict[str, Part]:
    """The parts beside a base from which their first product was taken, as parts beside the base itself."""
    if init is None:
        raise AdapterError(
            f"{path}: began by taking its first matrices out of the base (PiSSA or its kin), which it does not hold: "
            "give the folder they were saved to as --init FOLDER (init=), or save the adapter with peft's "
            "path_initial_model_for_weight_conversion"
        )
    first = _lora(os.fspath(init), *_first(os.fspath(init)))
    out: dict[str, Part] = {}
    for name, part in parts.items():
        was = first.get(name)
        if not isinstance(part, LowRank) or not isinstance(was, LowRank):
            raise AdapterError(f"{path}: {name} is no LoRA in it and in {init}; what it began as is wanted")
        if (part.a.shape, part.b.shape) != (was.a.shape, was.b.shape):
            raise AdapterError(f"{path}: {name} has another rank than in {init}; an adapter saved converted needs none")
        out[name] = Pissa(part.a, np.float32(part.scale) * part.b, was.a, np.float32(was.scale) * was.b)
    return out


def _first(init: str) -> tuple[dict[str, Any], Found]:
    config = folder.json_file(init, CONFIG, folder.MAX_JSON)
    _check(init, config)
    return config, _tensors(init)[0]


def _method(parts: dict[str, Part], config: dict[str, Any]) -> str:
    kinds = {foreign.METHODS[type(part)] for part in parts.values()}
    if kinds == {"lora"} and config.get("use_rslora"):
        return "rslora"
    return kinds.pop() if kinds else "whole"


def _miss(path: str, config: dict[str, Any], found: Found, leaf: str) -> dict[str, Part]:
    rank = foreign.number(path, "r", config.get("r"))
    parts: dict[str, Part] = {}
    for module, leaves in found.items():
        name, turned = hf.parameter(f"{module}.weight")
        if set(leaves) != {leaf} or turned or name in parts:
            raise AdapterError(f"{path}: the tensors of {module} make no part of a MiSS")
        if leaves[leaf].ndim != 2 or len(leaves[leaf]) != rank:
            raise AdapterError(f"{path}: {module}.{leaf} has shape {list(leaves[leaf].shape)}, where r is {rank:g}")
        parts[name] = Miss(leaves[leaf])
    return parts
