"""from_pretrained: transformers' machinery for types and devices, over weights that Rookery has read and checked."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from rookery import tokenizer as tokenizers
from rookery import weights as weights_room
from rookery.errors import InputError
from rookery.formats import folder
from rookery.hf import tensors
from rookery.hf.config import CONFIGS, describe
from rookery.weights import Weights
from rookery.weights.folders import settings, tokenizer_name

ADAPTER, GENERATION = "adapter_config.json", "generation_config.json"
LEFT_OUT = ("model_type", "transformers_version")  # of a config.json: the class says them
# what transformers would do with a folder's files or the hub's, and Rookery does itself
NOT_OURS = ("trust_remote_code", "use_safetensors", "weights_only", "variant", "force_download", "proxies", "cache_dir",
            "local_files_only", "token", "low_cpu_mem_usage", "code_revision")  # fmt: skip


def opened(cls: Any, models: dict[str, Any], name: Any, *args: Any, **kwargs: Any) -> Any:
    """The model `name` as an instance of its version's class in `models`, or of `cls` if that is of one version."""
    for key in NOT_OURS:
        kwargs.pop(key, None)
    path = os.path.join(os.fspath(name), kwargs.pop("subfolder", None) or "").rstrip(os.sep)
    adapter = (kwargs.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")
    if base := _base_of_adapter(path):
        adapter, path = path, base
    revision = kwargs.pop("revision", None)
    at = "" if os.path.exists(path) or revision in (None, "main") else f"@{revision}"
    weights = weights_room.load(path + at)

    version = weights.config.version[0]
    made = cls if cls.config_class.model_type else models[version]
    dtype = kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None)
    config, kwargs = _config(weights, kwargs)
    if not isinstance(config, CONFIGS[version]) or made.config_class.version != version:
        raise InputError(
            f"{weights.path}: is {weights.config.name}, no {made.__name__}; RwkvForCausalLM opens any version"
        )
    describe(config, weights.config)
    kwargs["dtype"] = next((said for said in dtype if said is not None), "auto")
    state = tensors.of_weights(weights)
    found = PreTrainedModel.from_pretrained.__func__(made, None, *args, config=config, state_dict=state, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"{weights.path}: device_map leaves parts of it to the CPU's memory or the disk, from where they are not "
            'run; give it more devices, or device_map="cpu"'
        )
    model.name_or_path = model.config.name_or_path = os.fspath(name)
    if kwargs.get("generation_config") is None and os.path.isfile(os.path.join(weights.path, GENERATION)):
        model.generation_config = GenerationConfig.from_pretrained(weights.path)
    if adapter:
        model.load_adapter(adapter)
    return found


def _config(weights: Weights, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config that was given, or the one beside the weights with what `kwargs` change in it; the other kwargs."""
    config = kwargs.pop("config", None)
    if config is None:
        said = weights.metadata["hf.config"] if weights.format == "hf" else settings(weights, _tokenizer(weights))
        plain = {key: value for key, value in said.items() if key not in LEFT_OUT}
        config, kwargs = CONFIGS[weights.config.version[0]].from_dict(plain, return_unused_kwargs=True, **kwargs)
    if config.dtype is None:
        config.dtype = tensors.DTYPES.get(weights.tensors["emb.weight"].dtype, torch.float32)
    return config, kwargs


def _tokenizer(weights: Weights) -> str | None:
    found = tokenizers.of_model(weights.path, weights.format, weights.metadata)
    return "world" if found is not None and found.end == 0 else tokenizer_name(weights)


def _base_of_adapter(path: str) -> str | None:
    """Where the model is that the adapter in a folder was made for; None for a folder of another kind."""
    if not os.path.isfile(os.path.join(path, ADAPTER)) or os.path.isfile(os.path.join(path, folder.CONFIG)):
        return None
    said = folder.json_file(path, ADAPTER, folder.MAX_JSON).get("base_model_name_or_path")
    if not isinstance(said, str):
        raise InputError(f"{path}: the adapter does not say of which model; open that and call load_adapter")
    return said
