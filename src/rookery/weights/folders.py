"""A model as a Hugging Face folder: the config.json that its usual loader wants, and the files of its tokenizer.

The loaders are transformers' RwkvForCausalLM (v4), the remote code of the RWKV organisation (v5, v6; their Python files
are theirs and not written) and fla's RWKV7ForCausalLM (v7). fla's group norm takes the head size times 1e-5 for its
epsilon: the trained one for heads of 64, as all published models have, and another for others.
"""

from __future__ import annotations

import os
from typing import Any

from rookery.architecture import Config
from rookery.errors import TooLarge
from rookery.formats import folder
from rookery.formats.raw import map_file
from rookery.formats.tensor import Tensor
from rookery.weights.load import LAYER_NORM_EPS, Weights
from rookery.weights.names import hf

VOCABULARY = "rwkv_vocab_v20230424.txt"
COPIED = (
    VOCABULARY,
    "tokenizer.json",
    folder.TOKENIZER,
    "special_tokens_map.json",
    "chat_template.jinja",
)  # from folder to folder
MAX_COPY = 2**26
CLASSES = {"4": "Rwkv", "5": "Rwkv5", "6": "Rwkv6", "7": "RWKV7"}
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
ENDS = {"world": 0}  # the id that ends a text, by the tokenizer's name; others have none


def write(weights: Weights, path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` (the model's, in types that safetensors holds) into a new or empty folder, all or nothing.

    Raises CannotWrite.
    """
    from rookery.tokenizer import CARRIED

    tokenizer = tokenizer_name(weights)
    config = settings(weights, "world" if CARRIED in metadata else tokenizer)  # whose vocabulary says how a text ends
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    documents: dict[str, dict[str, Any] | bytes] = {folder.CONFIG: config, "generation_config.json": ids}
    documents |= _tokenizer_files(weights, tokenizer, metadata.get(CARRIED))
    major = weights.config.version[0]
    folder.write(os.fspath(path), hf.from_blinkdl(tensors, major), metadata, documents)


def settings(weights: Weights, tokenizer: str | None = None) -> dict[str, Any]:
    """config.json of the usual loader; ids of special tokens are those of the folder it came from, or the tokenizer's.

    An id that does not exist is null: a loader's own default would end texts at some letter.
    """
    major = weights.config.version[0]
    said = weights.metadata["hf.config"] if weights.format == "hf" else {}
    end = ENDS.get(str(tokenizer))
    length = "max_position_embeddings" if major == "7" else "context_length"
    return {
        "architectures": [f"{CLASSES[major]}ForCausalLM"],
        "model_type": CLASSES[major].lower(),
        **sizes(weights.config),
        "use_cache": True,
        **{f"{what}_token_id": said.get(f"{what}_token_id", end) for what in ("bos", "eos")},
        "pad_token_id": said.get("pad_token_id"),
        "torch_dtype": DTYPES.get(weights.tensors["emb.weight"].dtype, "float32"),
        length: said.get(length, 1024 if major == "4" else 4096),
    }


def sizes(c: Config) -> dict[str, Any]:
    """What config.json of the usual loader says of a model's shape."""
    made: dict[str, Any] = {
        "vocab_size": c.n_vocab,
        "hidden_size": c.n_embd,
        "num_hidden_layers": c.n_layer,
        "intermediate_size": c.n_ffn,
        "tie_word_embeddings": False,
    }
    if c.version == "7":
        return made | _fla(c)
    made |= {"attention_hidden_size": c.n_embd, "layer_norm_epsilon": LAYER_NORM_EPS, "rescale_every": 6}
    return made if c.version == "4" else made | {"head_size": c.head_size, "num_attention_heads": c.n_head}


def _fla(c: Config) -> dict[str, Any]:
    return {
        "attn_mode": "chunk",
        "hidden_ratio": c.n_ffn / c.n_embd,
        "hidden_act": "sqrelu",
        "head_dim": c.head_size,
        "num_heads": c.n_head,
        "value_dim": [c.n_embd] * c.n_layer,
        "decay_low_rank_dim": c.ranks["w"],
        "a_low_rank_dim": c.ranks["a"],
        "v_low_rank_dim": c.ranks.get("v", 32),
        "gate_low_rank_dim": c.ranks["g"],
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": LAYER_NORM_EPS,
    }


def tokenizer_name(weights: Weights) -> str | None:
    """The tokenizer that the model says it has, or that models of its vocabulary have."""
    named = weights.metadata.get("rookery.tokenizer")
    return str(named) if named else "world" if weights.config.n_vocab == 65536 else None


def _tokenizer_files(weights: Weights, name: str | None, carried: str | None) -> dict[str, dict[str, Any] | bytes]:
    """Those of the folder the model comes from; else the vocabulary that goes along with it, as text, or that of the
    tokenizer by its name; none for an unknown one."""
    if weights.format == "hf":
        there = [file for file in COPIED if os.path.lexists(os.path.join(weights.path, file))]
        if there:
            return {file: _content(folder.inside(weights.path, file)) for file in there}
    if carried is None and name is None:
        return {}
    vocabulary = carried.encode() if carried is not None else _shipped() if name == "world" else None
    end = "<|endoftext|>" if vocabulary is not None else None
    config: dict[str, Any] = {"tokenizer_class": "RwkvTokenizer", "bos_token": end, "eos_token": end}
    config |= {"add_prefix_space": False} | ({"rookery_tokenizer": name} if name else {})
    template = weights.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and "{" in template:  # Jinja, not a name
        config["chat_template"] = template
    if vocabulary is None:
        return {folder.TOKENIZER: config}
    config |= {"vocab_file": VOCABULARY, "model_max_length": 2**30}
    return {folder.TOKENIZER: config, VOCABULARY: vocabulary}


def _shipped() -> bytes:
    from rookery.tokenizer.world import shipped_vocabulary

    return shipped_vocabulary()


def _content(path: str) -> bytes:
    raw = map_file(path)
    if len(raw) > MAX_COPY:
        raise TooLarge(path, f"has {len(raw)} bytes; a tokenizer's file has at most {MAX_COPY}")
    return raw.tobytes()
