"""The Transformer and Mamba-2 of `rookery bench context` against transformers' models of the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the peers run in torch, of the extra train")
transformers = pytest.importorskip("transformers", reason="the other side of the comparison, of the extra transformers")

from rookery.bench.context import mamba2, peers
from rookery.bench.context.peers import Spec
from tolerances import LOGITS_PEER

SPEC = Spec(400_000, 2, 96, head_size=16)  # 8 heads, 2 of them with keys and values
MAMBA = Spec(544_576, 2, 96, head_size=16)  # its inner width is twice the outer, which is all that transformers takes
TOKENS = np.random.default_rng(3).integers(96, size=150)


def loaded(model: Any, weights: dict[str, Any]) -> Any:
    model.load_state_dict(weights)
    return model.eval()


def llama(peer: Any) -> Any:
    c, w, size = peer.config, peer.w, SPEC.head_size
    queries, keys = c["heads"] * size, c["kv_heads"] * size
    mapped = {
        "model.embed_tokens.weight": w["embedding"],
        "model.norm.weight": w["norm"],
        "lm_head.weight": peer.head.weight,
    }
    for i in range(c["layers"]):
        here = f"model.layers.{i}"
        q, k, v = w[f"{i}.qkv"].split([queries, keys, keys])
        gate, up = w[f"{i}.gate_up"].chunk(2)
        mapped |= {f"{here}.self_attn.{name}_proj.weight": part for name, part in (("q", q), ("k", k), ("v", v))}
        mapped |= {f"{here}.mlp.gate_proj.weight": gate, f"{here}.mlp.up_proj.weight": up}
        mapped |= {
            f"{here}.self_attn.o_proj.weight": w[f"{i}.output"],
            f"{here}.mlp.down_proj.weight": w[f"{i}.down"],
            f"{here}.input_layernorm.weight": w[f"{i}.norm1"],
            f"{here}.post_attention_layernorm.weight": w[f"{i}.norm2"],
        }
    config = transformers.LlamaConfig(
        vocab_size=SPEC.vocab, hidden_size=c["width"], intermediate_size=c["ffn"], num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"], num_key_value_heads=c["kv_heads"], rms_norm_eps=1e-5,
    )  # fmt: skip
    return loaded(transformers.LlamaForCausalLM(config), mapped)


def mamba(peer: Any) -> Any:
    c, w = peer.config, peer.w
    mapped = {
        "backbone.embeddings.weight": w["embedding"],
        "backbone.norm_f.weight": w["norm"],
        "lm_head.weight": peer.head.weight,
    }
    for i in range(c["blocks"]):
        here = f"backbone.layers.{i}"
        names = {
            "norm": "norm.weight", "in": "mixer.in_proj.weight", "conv_bias": "mixer.conv1d.bias",
            "step": "mixer.dt_bias", "decay": "mixer.A_log", "skip": "mixer.D", "norm_out": "mixer.norm.weight",
            "out": "mixer.out_proj.weight",
        }  # fmt: skip
        mapped |= {f"{here}.{theirs}": w[f"{i}.{ours}"] for ours, theirs in names.items()}
        mapped[f"{here}.mixer.conv1d.weight"] = w[f"{i}.conv"].T[:, None]
    config = transformers.Mamba2Config(
        vocab_size=SPEC.vocab, hidden_size=c["width"], num_hidden_layers=c["blocks"], num_heads=c["heads"],
        head_dim=SPEC.head_size, state_size=mamba2.STATE, expand=mamba2.EXPAND, n_groups=1, chunk_size=32,
        conv_kernel=mamba2.KERNEL, layer_norm_epsilon=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    return loaded(transformers.Mamba2ForCausalLM(config), mapped)


@pytest.mark.parametrize(
    ("kind", "spec", "other"),
    [("transformer-gqa", SPEC, llama), ("transformer-mha", SPEC, llama), ("mamba2", MAMBA, mamba)],
)
def test_the_same_logits(kind: str, spec: Spec, other: Any) -> None:
    """Of a prompt, of steps after it, and of all rows as training makes them."""
    peer: Any = peers.build(kind, spec)
    assert kind != "transformer-gqa" or 1 < peer.kv_heads < peer.heads
    with torch.no_grad():
        wanted = other(peer)(torch.tensor(TOKENS[None])).logits[0].numpy()
        rows = peer.head(peer.hidden(torch.tensor(TOKENS))).numpy()
    assert wanted.std() > 0.5
    assert np.abs(rows - wanted).max() < LOGITS_PEER
    logits = [peer.prefill(TOKENS[:140]).copy(), *(peer.step(int(token)).copy() for token in TOKENS[140:])]
    assert np.abs(np.stack(logits) - wanted[139:]).max() < LOGITS_PEER


@pytest.mark.parametrize("kind", ["transformer-gqa", "transformer-mha"])
def test_the_kv_that_is_counted(kind: str) -> None:
    """transformers holds as many bytes for the same tokens."""
    peer: Any = peers.build(kind, SPEC)
    with torch.no_grad():
        cache = llama(peer)(torch.tensor(TOKENS[None]), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert peer.state_bytes(len(TOKENS)) == held
