"""An adapter as a folder that Hugging Face's peft opens around a model of BlinkDL's module names."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np

from rookery.errors import AdapterError
from rookery.formats import folder
from rookery.formats.tensor import Tensor
from rookery.weights.adapters import foreign
from rookery.weights.adapters.adapter import Adapter, Bat, Dora, LowRank, Miss, Part, Pissa, Whole
from rookery.weights.adapters.peft_folder import CONFIG, PREFIX, TENSORS

OTHER_FORM = "Rookery's own .safetensors holds it"


def write(path: str | os.PathLike[str], adapter: Adapter) -> None:
    """Write `adapter` into a new or empty folder, by BlinkDL's names, float32, all or nothing.

    A PiSSA becomes the LoRA of twice its rank that does the same. Raises AdapterError for what peft cannot hold: "bat",
    tensors tuned in full that are no module of their own, several methods; CannotWrite.
    """
    path = os.fspath(path)
    folder.check_target(path)
    foreign.main_kind(adapter, path)
    parts: dict[str, Part] = {name: _as_peft(path, name, part) for name, part in adapter.parts.items()}
    low = {name.removesuffix(".weight"): p for name, p in parts.items() if not isinstance(p, Whole)}
    if not low:
        raise AdapterError(f"{path}: peft knows no adapter of tensors tuned in full alone; {OTHER_FORM}")
    config = _config(path, adapter, low) | {
        "modules_to_save": _saved(path, [name for name, p in parts.items() if isinstance(p, Whole)]) or None,
        "target_modules": list(low),
        "base_model_name_or_path": adapter.metadata.get("rookery.base.name"),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        module = PREFIX + name.removesuffix(".weight")
        if isinstance(part, LowRank | Dora):
            tensors |= {f"{module}.lora_A.weight": Tensor.of(part.a), f"{module}.lora_B.weight": Tensor.of(part.b)}
        if isinstance(part, Dora):
            tensors[f"{module}.lora_magnitude_vector"] = Tensor.of(part.magnitude)
        elif isinstance(part, Miss):
            tensors[f"{module}.miss_block"] = Tensor.of(part.d)
        elif isinstance(part, Whole):
            tensors[PREFIX + name] = Tensor.of(part.value)
    folder.write(path, tensors, foreign.story(adapter), {CONFIG: config}, TENSORS)


def _as_peft(path: str, name: str, part: Part) -> Part:
    """The part of the same effect that peft has a place for."""
    if isinstance(part, Pissa):
        return LowRank(np.concatenate([part.a, part.a0]), np.concatenate([part.b, -part.b0], axis=1), 1.0)
    if isinstance(part, Bat):
        raise AdapterError(f'{path}: peft counts the blocks of "bat" by rows, {name} has them by columns; {OTHER_FORM}')
    if name == "emb.weight" and not isinstance(part, Whole):
        raise AdapterError(f"{path}: peft has no place for a low-rank change of {name} in RWKV; {OTHER_FORM}")
    return part


def _config(path: str, adapter: Adapter, low: dict[str, Part]) -> dict[str, Any]:
    """adapter_config.json; the commonest rank and alpha, and what differs from them by module."""
    pairs = {module: part for module, part in low.items() if isinstance(part, LowRank | Dora)}
    if not pairs:
        ranks = {len(part.d) for part in low.values() if isinstance(part, Miss)}
        return {"peft_type": "MISS", "r": foreign.one(adapter, path, "rank", ranks, OTHER_FORM), "init_weights": True}
    ranks_of = {module: len(part.a) for module, part in pairs.items()}
    alphas = {module: foreign.alpha_of(part) for module, part in pairs.items()}
    rank, alpha = _commonest(ranks_of), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_dora": any(isinstance(part, Dora) for part in pairs.values()),
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {module: r for module, r in ranks_of.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
    }


def _commonest(values: dict[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _saved(path: str, names: list[str]) -> list[str]:
    """The modules of tensors tuned in full: peft saves modules, and each whole."""
    modules = sorted({name.rpartition(".")[0] for name in names})
    for module in modules:
        wanted = {f"{module}.{leaf}" for leaf in (("weight", "bias") if "ln" in module else ("weight",))}
        if not wanted <= set(names) or module.endswith((".att", ".ffn")):
            raise AdapterError(f"{path}: peft saves modules, and {module} is not tuned as a whole; {OTHER_FORM}")
    return modules
