"""RWKV-6 (Finch): the decay and the token-shift mixes depend on the data, each through a low-rank pair.

Source: arXiv 2404.05892 section 4; RWKV-LM RWKV-v5/src/model.py (x060). C width, H heads, N head size.
"""

from __future__ import annotations

from dataclasses import replace

from rookery.architecture import spec
from rookery.architecture.spec import Config, Param, Shapes
from rookery.architecture.v5 import state
from rookery.architecture.vocabulary import Array, LayerState, Params, Vocabulary

__all__ = ["channel_mix", "config", "params", "state", "time_mix"]


def time_mix(
    o: Vocabulary, p: Params, x: Array, state: LayerState, v_first: Array | None
) -> tuple[Array, Array | None]:
    previous, state.att_shift = o.token_shift(x, state.att_shift)
    d = previous - x
    low = o.split(o.tanh(o.matmul(x + d * p.time_maa_x, p.time_maa_w1)), 5)
    mixes = (p.time_maa_w, p.time_maa_k, p.time_maa_v, p.time_maa_r, p.time_maa_g)
    x_w, x_k, x_v, x_r, x_g = (
        x + d * (mix + o.matmul(m, p.time_maa_w2[i])) for i, (mix, m) in enumerate(zip(mixes, low, strict=True))
    )
    w = p.time_decay + o.lora(x_w, p.time_decay_w1, p.time_decay_w2, o.tanh)
    w = o.tap("att.w", -o.exp(w))  # the decay's logarithm
    k = o.tap("att.k", o.linear(p.key, x_k))
    v = o.tap("att.v", o.linear(p.value, x_v))
    r = o.tap("att.r", o.linear(p.receptance, x_r))
    g = o.tap("att.g", o.silu(o.linear(p.gate, x_g)))
    y, state.wkv = o.wkv6(o.heads(r), o.heads(k), o.heads(v), o.heads(w), p.time_faaaa, state.wkv)
    return o.linear(p.output, o.head_out(o.tap("att.wkv_out", y), p.ln_x, g)), v_first


def channel_mix(o: Vocabulary, p: Params, x: Array, state: LayerState) -> Array:
    (x_k, x_r), state.ffn_shift = o.shift_mix(x, state.ffn_shift, (p.time_maa_k, p.time_maa_r))
    return o.tap("ffn.out", o.sigmoid(o.linear(p.receptance, x_r)) * o.channel_mix(p.key, p.value, x_k))


def config(shapes: Shapes) -> Config:
    ranks = {"maa": shapes["blocks.0.att.time_maa_w2"][1], "decay": shapes["blocks.0.att.time_decay_w1"][1]}
    return replace(spec.sizes(shapes, "6"), n_head=shapes["blocks.0.att.time_faaaa"][0], ranks=ranks)


def params(c: Config) -> list[Param]:
    return spec.outer(c) + [p for layer in range(c.n_layer) for p in layer_params(c, layer)]


def layer_params(c: Config, layer: int) -> list[Param]:
    n, f = c.n_embd, c.n_ffn
    r01, r10 = spec.depth(c, layer)
    att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
    maa, low = c.ranks["maa"], c.ranks["decay"]
    return [
        *spec.norm(f"blocks.{layer}.ln1", n),
        *spec.norm(f"blocks.{layer}.ln2", n),
        spec.vector(f"{att}.time_maa_x", n, lambda i: 1 - (i / n) ** r10),
        spec.vector(f"{att}.time_maa_w", n, lambda i: 1 - (i / n) ** r10),
        spec.vector(f"{att}.time_maa_k", n, lambda i: 1 - (i / n) ** r10),
        spec.vector(f"{att}.time_maa_v", n, lambda i: 1 - ((i / n) ** r10 + 0.3 * r01)),
        spec.vector(f"{att}.time_maa_r", n, lambda i: 1 - (i / n) ** (0.5 * r10)),
        spec.vector(f"{att}.time_maa_g", n, lambda i: 1 - (i / n) ** (0.5 * r10)),
        Param(f"{att}.time_maa_w1", (n, 5 * maa), spec.ZERO, "lora"),
        Param(f"{att}.time_maa_w2", (5, maa, n), spec.Uniform(0.01), "lora"),
        spec.vector(f"{att}.time_decay", n, lambda i: -6 + 5 * (i / (n - 1)) ** (0.7 + 1.3 * r01), lr=2),
        Param(f"{att}.time_decay_w1", (n, low), spec.ZERO, "lora"),
        Param(f"{att}.time_decay_w2", (low, n), spec.Uniform(0.01), "lora"),
        Param(
            f"{att}.time_faaaa",
            (c.n_head, c.head_size),
            spec.Curve(lambda i: r01 * (1 - i / (n - 1)) + 0.1 * ((i + 1) % 3 - 1)),
        ),
        spec.matrix(f"{att}.receptance", n, n, 1, "att"),
        spec.matrix(f"{att}.key", n, n, 0.1, "att"),
        spec.matrix(f"{att}.value", n, n, 1, "att"),
        spec.matrix(f"{att}.gate", n, n, 0.1, "att"),
        spec.matrix(f"{att}.output", n, n, 0, "att"),
        *spec.norm(f"{att}.ln_x", n, ((1 + layer) / c.n_layer) ** 0.7),
        *spec.tuned_state(c, layer),
        spec.vector(f"{ffn}.time_maa_k", n, lambda i: 1 - (i / n) ** (r10**3)),
        spec.vector(f"{ffn}.time_maa_r", n, lambda i: 1 - (i / n) ** (r10**3)),
        spec.matrix(f"{ffn}.key", f, n, 1, "ffn"),
        spec.matrix(f"{ffn}.receptance", n, n, 0, "ffn"),
        spec.matrix(f"{ffn}.value", n, f, 0, "ffn"),
    ]
