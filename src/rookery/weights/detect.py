"""Which RWKV is this? Answered by tensor names alone; for anything else, what it looks like."""

from __future__ import annotations

from collections.abc import Iterable

from rookery.errors import UnknownArchitecture

# (a part of a tensor name, what has it): the first that fits names the stranger
_STRANGERS = (
    (".lora_A", "a LoRA adapter (merge it into its base first)"),
    (".lora_B", "a LoRA adapter (merge it into its base first)"),
    ("qkv.", "RWKV-7b (DEA), which Rookery does not run yet"),
    ("ffn.s_emb", "RWKV-7a (DeepEmbed), which Rookery does not run yet"),
    ("model.layers.0.attn.r_proj", "an RWKV folder of the fla library (its names are not read yet)"),
    ("rwkv.blocks.", "a Hugging Face RWKV file (its names are not read yet)"),
    ("mixer.A_log", "Mamba"),
    ("mixer.in_proj", "Mamba"),
    ("self_attn.q_proj", "a Llama-like Transformer"),
    ("attention.query_key_value", "GPT-NeoX"),
    ("attn.c_attn", "GPT-2"),
    ("attention.self.query", "BERT"),
    ("encoder.block.0.layer.0.SelfAttention", "T5"),
    ("weight_ih_l0", "an LSTM or GRU"),
)


def major(names: Iterable[str], path: str) -> str:
    """ "4" .. "7" from tensor names; UnknownArchitecture says what else it looks like."""
    names = list(names)
    looks = next((what for part, what in _STRANGERS if any(part in name for name in names)), None)
    if looks is None and all(n in names for n in ("emb.weight", "head.weight", "blocks.0.att.key.weight")):
        att = {n.removeprefix("blocks.0.att.") for n in names if n.startswith("blocks.0.att.")}
        if "r_k" in att:
            return "7"
        if "time_maa_x" in att:
            return "6"
        return "5" if "ln_x.weight" in att else "4"
    if looks is None and names and all(n.endswith(".time_state") for n in names):
        looks = "a tuned RWKV state without its model"
    if looks is None and any(n.startswith("layers.") and n.endswith("att_shift") for n in names):
        looks = "a saved state (open it with rookery.State.load)"
    some = ", ".join(names[:3]) or "none at all"
    raise UnknownArchitecture(f"{path}: no RWKV v4 to v7; looks like {looks or 'nothing known'} (tensors: {some}, ...)")
