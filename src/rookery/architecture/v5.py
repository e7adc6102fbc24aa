"""RWKV-5 (Eagle): matrix states. Heads of size N each keep an [N,N] matrix that decays and adds k v^T.

5.0 has one decay and bonus per head and no gate; 5.1 adds the gate; 5.2 (the released Eagle) one decay per channel.
Source: arXiv 2404.05892 section 3; RWKV-LM RWKV-v5/src/model.py and RWKV-v4neo/src/model.py (5.0, 5.1).
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from rookery.architecture import spec
from rookery.architecture.spec import Config, Param, Shapes, StatePiece
from rookery.architecture.v4 import channel_mix
from rookery.architecture.vocabulary import Array, LayerState, Params, Vocabulary

__all__ = ["channel_mix", "config", "params", "state", "time_mix"]


def time_mix(
    o: Vocabulary, p: Params, x: Array, state: LayerState, v_first: Array | None
) -> tuple[Array, Array | None]:
    gated = hasattr(p, "gate")
    mixes = [1 - p.time_mix_k, 1 - p.time_mix_v, 1 - p.time_mix_r]  # share of the previous token
    if gated:
        mixes.append(1 - p.time_mix_g)
    (x_k, x_v, x_r, *x_g), state.att_shift = o.shift_mix(x, state.att_shift, mixes)
    k = o.tap("att.k", o.linear(p.key, x_k))
    v = o.tap("att.v", o.linear(p.value, x_v))
    r = o.tap("att.r", o.linear(p.receptance, x_r))
    g = o.tap("att.g", o.silu(o.linear(p.gate, x_g[0]))) if gated else None
    w = o.tap("att.w", -o.exp(p.time_decay))  # the decay's logarithm
    u = p.time_faaaa if hasattr(p, "time_faaaa") else o.exp(p.time_first)
    y, state.wkv = o.wkv5(o.heads(r), o.heads(k), o.heads(v), w, u, state.wkv)
    return o.linear(p.output, o.head_out(o.tap("att.wkv_out", y), p.ln_x, g)), v_first


def config(shapes: Shapes) -> Config:
    decay = shapes["blocks.0.att.time_decay"]
    gated = "blocks.0.att.gate.weight" in shapes
    per_channel = len(decay) > 1 and decay[1] > 1
    version = "5.2" if per_channel else "5.1" if gated else "5.0"
    return replace(spec.sizes(shapes, version), n_head=decay[0])


def state(c: Config) -> list[StatePiece]:
    return spec.shift_pieces(c, StatePiece("wkv", (c.n_head, c.head_size, c.head_size)))


def params(c: Config) -> list[Param]:
    outer = spec.outer(c) if c.version == "5.2" else spec.outer(c, embedding=6e-4)
    return outer + [p for layer in range(c.n_layer) for p in layer_params(c, layer)]


def layer_params(c: Config, layer: int) -> list[Param]:
    n, f = c.n_embd, c.n_ffn
    r01, r10 = spec.depth(c, layer)
    att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
    gated = c.version != "5.0"
    per = (c.n_head, c.head_size) if c.version == "5.2" else (c.n_head,)
    name = "time_faaaa" if gated else "time_first"
    held = (*per, 1)[:2]  # one number per head broadcasts over its channels
    last = max(1, (n if c.version == "5.2" else c.n_head) - 1)

    def decay(i: int) -> float:
        return -6 + 5 * float((i / last) ** (0.7 + 1.3 * r01))

    def bonus(i: int) -> float:
        if c.version == "5.0":
            return -3.0  # of time_first: its exponential is the bonus
        return r01 * (1 - i / last) + (0.1 * ((i + 1) % 3 - 1) if c.version == "5.2" else 0.0)

    return [
        *spec.norm(f"blocks.{layer}.ln1", n),
        *spec.norm(f"blocks.{layer}.ln2", n),
        spec.vector(f"{att}.time_mix_k", n, lambda i: (i / n) ** r10),
        spec.vector(f"{att}.time_mix_v", n, lambda i: (i / n) ** r10 + 0.3 * r01),
        spec.vector(f"{att}.time_mix_r", n, lambda i: (i / n) ** (0.5 * r10)),
        *([spec.vector(f"{att}.time_mix_g", n, lambda i: (i / n) ** (0.5 * r10))] if gated else []),
        Param(f"{att}.time_decay", per, spec.Curve(decay), lr=2, held=held),
        Param(f"{att}.{name}", per, spec.Curve(bonus), lr=1 if gated else 3, held=held),
        spec.matrix(f"{att}.receptance", n, n, 1, "att"),
        spec.matrix(f"{att}.key", n, n, 0.1 if c.version == "5.2" else 1, "att"),
        spec.matrix(f"{att}.value", n, n, 1, "att"),
        *([spec.matrix(f"{att}.gate", n, n, 0.1 if c.version == "5.2" else 1, "att")] if gated else []),
        spec.matrix(f"{att}.output", n, n, 0, "att"),
        *spec.norm(f"{att}.ln_x", n, ((1 + layer) / c.n_layer) ** 0.7),
        *spec.tuned_state(c, layer),
        spec.vector(f"{ffn}.time_mix_k", n, lambda i: (i / n) ** r10),
        spec.vector(f"{ffn}.time_mix_r", n, lambda i: (i / n) ** r10),
        spec.matrix(f"{ffn}.key", f, n, 1 if c.version == "5.2" else sqrt(max(1.0, f / n)), "ffn"),
        spec.matrix(f"{ffn}.receptance", n, n, 0, "ffn"),
        spec.matrix(f"{ffn}.value", n, f, 0, "ffn"),
    ]
