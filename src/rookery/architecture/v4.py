"""RWKV-4 (Dove; Raven is its chat tuning): one exponential decay per channel, and a bonus for the present token.

Source: arXiv 2305.13048 section 3; RWKV-LM RWKV-v4neo/src/model.py. C width.
"""

from __future__ import annotations

from math import log, sqrt

from rookery.architecture import spec
from rookery.architecture.spec import Config, Param, Shapes, StatePiece
from rookery.architecture.vocabulary import Array, LayerState, Params, Vocabulary


def time_mix(
    o: Vocabulary, p: Params, x: Array, state: LayerState, v_first: Array | None
) -> tuple[Array, Array | None]:
    mixes = (1 - p.time_mix_k, 1 - p.time_mix_v, 1 - p.time_mix_r)  # share of the previous token
    (x_k, x_v, x_r), state.att_shift = o.shift_mix(x, state.att_shift, mixes)
    k = o.tap("att.k", o.linear(p.key, x_k))
    v = o.tap("att.v", o.linear(p.value, x_v))
    r = o.tap("att.r", o.sigmoid(o.linear(p.receptance, x_r)))
    w = o.tap("att.w", -o.exp(p.time_decay))  # the decay's logarithm
    y, state.wkv = o.wkv4(k, v, w, p.time_first, state.wkv)
    return o.linear(p.output, r * o.tap("att.wkv_out", y)), v_first


def channel_mix(o: Vocabulary, p: Params, x: Array, state: LayerState) -> Array:
    (x_k, x_r), state.ffn_shift = o.shift_mix(x, state.ffn_shift, (1 - p.time_mix_k, 1 - p.time_mix_r))
    return o.tap("ffn.out", o.sigmoid(o.linear(p.receptance, x_r)) * o.channel_mix(p.key, p.value, x_k))


def config(shapes: Shapes) -> Config:
    return spec.sizes(shapes, "4")


def state(c: Config) -> list[StatePiece]:
    """wkv [3,C]: numerator, denominator and the exponent both are scaled by (-1e30: nothing seen yet)."""
    return spec.shift_pieces(c, StatePiece("wkv", (3, c.n_embd), (0.0, 0.0, -1e30)))


def params(c: Config) -> list[Param]:
    return spec.outer(c, embedding=6e-4) + [p for layer in range(c.n_layer) for p in layer_params(c, layer)]


def layer_params(c: Config, layer: int) -> list[Param]:
    """Sources of the curves: RWKV-LM RWKV-v4neo/src/model.py. Matrices begin orthogonal, louder where they widen."""
    n, f = c.n_embd, c.n_ffn
    r01, r10 = spec.depth(c, layer)
    att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
    return [
        *spec.norm(f"blocks.{layer}.ln1", n),
        *spec.norm(f"blocks.{layer}.ln2", n),
        Param(f"{att}.time_decay", (n,), spec.Curve(lambda i: -5 + 8 * (i / (n - 1)) ** (0.7 + 1.3 * r01)), lr=2),
        Param(f"{att}.time_first", (n,), spec.Curve(lambda i: log(0.3) + 0.5 * ((i + 1) % 3 - 1)), lr=3),
        spec.vector(f"{att}.time_mix_k", n, lambda i: (i / n) ** r10),
        spec.vector(f"{att}.time_mix_v", n, lambda i: (i / n) ** r10 + 0.3 * r01),
        spec.vector(f"{att}.time_mix_r", n, lambda i: (i / n) ** (0.5 * r10)),
        spec.matrix(f"{att}.key", n, n, 0, "att"),
        spec.matrix(f"{att}.value", n, n, 1, "att"),
        spec.matrix(f"{att}.receptance", n, n, 0, "att"),
        spec.matrix(f"{att}.output", n, n, 0, "att"),
        spec.vector(f"{ffn}.time_mix_k", n, lambda i: (i / n) ** r10),
        spec.vector(f"{ffn}.time_mix_r", n, lambda i: (i / n) ** r10),
        spec.matrix(f"{ffn}.key", f, n, sqrt(max(1.0, f / n)), "ffn"),
        spec.matrix(f"{ffn}.receptance", n, n, 0, "ffn"),
        spec.matrix(f"{ffn}.value", n, f, 0, "ffn"),
    ]
