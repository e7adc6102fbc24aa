"""Which RWKV is this? Answered by tensor names alone; for anything else, what it looks like."""

from __future__ import annotations

from collections.abc import Iterable

from rookery.errors import UnknownArchitecture

_SAID = {"rwkv": "4", "rwkv5": "5", "rwkv6": "6", "rwkv7": "7"}  # the version by model_type

_HYBRID = "a Qwen-RWKV hybrid (RWKV in place of a Qwen's attention), which Rookery does not run"

_REMEDY = "(give it as --adapter beside its base, or `rookery merge` them)"

# (a part of a tensor name, what has it): the first that fits names the stranger
_STRANGERS = (
    (".lora_A", f"a LoRA adapter {_REMEDY}"),
    (".lora_B", f"a LoRA adapter {_REMEDY}"),
    *((f".{part}", f"a MiSS adapter {_REMEDY}") for part in ("disha", "bone", "miss_block")),
    *((part, f"an adapter of Rookery {_REMEDY}") for part in (".weight:", ":value")),
    ("qkv.", "RWKV-7b (DEA), which Rookery does not run yet"),
    ("ffn.s_emb", "RWKV-7a (DeepEmbed), which Rookery does not run yet"),
    ("layers.0.attn.x_proj.0.mu", "an RWKV-6 of the fla library, which Rookery does not read: take its .pth"),
    ("layers.0.attn.r_proj", "a part or a variant of a model of the fla library"),
    *((f"self_attn.{part}", _HYBRID) for part in ("time_", "x_r", "r_k", "w0")),
    ("mixer.A_log", "Mamba"),
    ("mixer.in_proj", "Mamba"),
    ("self_attn.q_proj", "a Llama-like Transformer"),
    ("attention.query_key_value", "GPT-NeoX"),
    ("attn.c_attn", "GPT-2"),
    ("attention.self.query", "BERT"),
    ("encoder.block.0.layer.0.SelfAttention", "T5"),
    ("weight_ih_l0", "an LSTM or GRU"),
)


def major(names: Iterable[str], path: str, said: object = None) -> str:
    """ "4" .. "7" from tensor names; UnknownArchitecture says what else it looks like.

    `said` is the model_type of a config.json, which must not claim another version.
    """
    names = list(names)
    looks = next((what for part, what in _STRANGERS if any(part in name for name in names)), None)
    if looks is None and all(n in names for n in ("emb.weight", "head.weight", "blocks.0.att.key.weight")):
        found = _of_attention({n.removeprefix("blocks.0.att.") for n in names if n.startswith("blocks.0.att.")})
        if _SAID.get(str(said), found) != found:
            raise UnknownArchitecture(f"{path}: config.json says {said}, but its tensors are those of RWKV-{found}")
        return found
    if looks is None and "blocks.0.att.key.weight" in names:
        looks = "a part of an RWKV, without emb.weight or head.weight"
    if looks is None and names and all(n.endswith(".time_state") for n in names):
        looks = "a tuned RWKV state without its model (give it as --state beside it)"
    if looks is None and any(n.startswith("layers.") and n.endswith("att_shift") for n in names):
        looks = "a saved state (give it as --state beside its model, or open it with rookery.State.load)"
    some = f"tensors: {', '.join(names[:3]) or 'none at all'}, ..."
    if said is not None:
        some = f"model_type {str(said)[:40]!r}; {some}"
    raise UnknownArchitecture(f"{path}: no RWKV v4 to v7; looks like {looks or 'nothing known'} ({some})")


def _of_attention(names: set[str]) -> str:
    if "r_k" in names:
        return "7"
    if "time_maa_x" in names:
        return "6"
    return "5" if "ln_x.weight" in names else "4"
