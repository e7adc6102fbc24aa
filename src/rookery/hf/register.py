"""What transformers' Auto classes are told."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from rookery.errors import TokenizerError
from rookery.formats import folder
from rookery.hf.config import CONFIGS, RwkvConfig
from rookery.hf.model import MODELS
from rookery.hf.tokenizer import RwkvTokenizer
from rookery.tokenizer.stored import TOKENIZER, VOCABULARY
from rookery.tokenizer.world import MODEL_ROWS

TYPES = {made.model_type for made in CONFIGS.values()}
HUB = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")


def register() -> None:
    for major, config in CONFIGS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, MODELS[major], exist_ok=True)
    AutoTokenizer.register(RwkvConfig, RwkvTokenizer, exist_ok=True)  # by its own name, for folders without a config
    if not hasattr(AutoTokenizer.from_pretrained, "__wrapped__"):
        AutoTokenizer.from_pretrained = classmethod(_ours_first(AutoTokenizer.from_pretrained.__func__))


def _ours_first(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """AutoTokenizer.from_pretrained, but that models of our types get our tokenizer.

    AutoTokenizer prefers a folder's Python to a registered class, other than AutoConfig and AutoModel; with
    trust_remote_code it would be run.
    """

    @wraps(theirs)
    def from_pretrained(cls: Any, name: Any, *inputs: Any, **kwargs: Any) -> Any:
        hub = {key: kwargs[key] for key in HUB if kwargs.get(key) is not None}
        said = _said(name, kwargs.get("config"), hub)
        if not (said.get("model_type") in TYPES or _bare_v4(name, said, hub)):
            return theirs(cls, name, *inputs, **kwargs)
        for key in ("config", "trust_remote_code", "code_revision", "use_fast", "tokenizer_type"):
            kwargs.pop(key, None)
        if _has(name, VOCABULARY, hub):
            return RwkvTokenizer.from_pretrained(name, *inputs, **kwargs)
        known = kwargs.pop("rookery_tokenizer", None) or get_tokenizer_config(name, **hub).get("rookery_tokenizer")
        if not known and _has(name, TOKENIZER, hub):
            return PreTrainedTokenizerFast.from_pretrained(name, *inputs, **kwargs)
        if not known and said.get("vocab_size") != MODEL_ROWS:
            raise TokenizerError(
                f"{name}: says nothing of its tokenizer ({said.get('vocab_size')} tokens); name it: "
                'AutoTokenizer.from_pretrained(folder, rookery_tokenizer="bytes"), or "utf16le" or "world"'
            )
        return RwkvTokenizer.from_pretrained(name, *inputs, rookery_tokenizer=known, **kwargs)

    return from_pretrained


def _bare_v4(name: Any, said: dict[str, Any], hub: dict[str, Any]) -> bool:
    """Whether it is a v4 that says nothing of its tokenizer: transformers would make one without any tokens."""
    files = (TOKENIZER, folder.TOKENIZER)
    return said.get("model_type") == "rwkv" and not any(_has(name, file, hub) for file in files)


def _said(name: Any, config: Any, hub: dict[str, Any]) -> dict[str, Any]:
    """What config.json says; nothing where there is none."""
    if config is not None:
        return {"model_type": getattr(config, "model_type", None), "vocab_size": getattr(config, "vocab_size", None)}
    try:
        said: dict[str, Any] = PreTrainedConfig.get_config_dict(name, **hub)[0]
    except (OSError, ValueError):
        return {}
    return said


def _has(name: Any, file: str, hub: dict[str, Any]) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub) is not None
