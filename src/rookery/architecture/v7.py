"""RWKV-7 (Goose): the generalised delta rule. Each token decays the state, rewrites the value at one key, adds one.

Source: arXiv 2503.14456 section 4; RWKV-LM RWKV-v7/train_temp/src/model.py. C width, H heads, N head size.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp

from rookery.architecture import spec
from rookery.architecture.spec import Config, Param, Shapes
from rookery.architecture.v5 import state
from rookery.architecture.vocabulary import Array, LayerState, Params, Vocabulary

STEEPEST = -exp(-0.5)  # the decay's logarithm lies in (-0.6065, 0): a token keeps at least 0.545 of a channel

__all__ = ["channel_mix", "config", "params", "state", "time_mix"]


def time_mix(
    o: Vocabulary, p: Params, x: Array, state: LayerState, v_first: Array | None
) -> tuple[Array, Array | None]:
    mixes = (p.x_r, p.x_w, p.x_k, p.x_v, p.x_a, p.x_g)
    (x_r, x_w, x_k, x_v, x_a, x_g), state.att_shift = o.shift_mix(x, state.att_shift, mixes)
    r = o.tap("att.r", o.linear(p.receptance, x_r))
    w = o.tap("att.w", STEEPEST * o.sigmoid(p.w0 + o.lora(x_w, p.w1, p.w2, o.tanh)))  # the decay's logarithm
    k = o.tap("att.k", o.linear(p.key, x_k))
    v = o.linear(p.value, x_v)
    a = o.tap("att.a", o.sigmoid(p.a0 + o.lora(x_a, p.a1, p.a2)))  # in-context learning rate
    g = o.tap("att.g", o.lora(x_g, p.g1, p.g2, o.sigmoid))
    if v_first is None:  # layer 0 gives its value to all later layers
        v_first = v
    else:
        v = v + (v_first - v) * o.sigmoid(p.v0 + o.lora(x_v, p.v1, p.v2))
    k, remove, add = o.kk_prepare(k, a, p.k_k, p.k_a)
    r, v = o.heads(r), o.heads(o.tap("att.v", v))
    y, state.wkv = o.wkv7(r, o.heads(w), k, v, remove, add, state.wkv)
    bonus = o.dot(r * k, p.r_k) * v
    return o.linear(p.output, o.head_out(o.tap("att.wkv_out", y), p.ln_x, g, bonus)), v_first


def channel_mix(o: Vocabulary, p: Params, x: Array, state: LayerState) -> Array:
    (x_k,), state.ffn_shift = o.shift_mix(x, state.ffn_shift, (p.x_k,))
    return o.tap("ffn.out", o.channel_mix(p.key, p.value, x_k))


def config(shapes: Shapes) -> Config:
    ranks = {x: shapes[f"blocks.0.att.{x}1"][1] for x in "wag"}
    if "blocks.1.att.v1" in shapes:
        ranks["v"] = shapes["blocks.1.att.v1"][1]
    c = spec.sizes(shapes, "7")
    return replace(c, n_head=shapes["blocks.0.att.r_k"][0], ranks=ranks)


def params(c: Config) -> list[Param]:
    return spec.outer(c) + [p for layer in range(c.n_layer) for p in layer_params(c, layer)]


def layer_params(c: Config, layer: int) -> list[Param]:
    """Sources of the curves: RWKV-LM RWKV-v7/train_temp/src/model.py."""
    n, f, size = c.n_embd, c.n_ffn, c.head_size
    r01, r10 = spec.depth(c, layer)
    att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
    unused = layer == 0  # v0, v1, v2 of the first layer may lie in a file and do nothing

    def ramp(i: int) -> float:
        return i / (n - 1) - 0.5

    def zigzag(i: int) -> float:
        z = ((i % size) - (size - 1) / 2) / ((size - 1) / 2)
        return z * abs(z)

    def pair(letter: str, optional: bool = False) -> list[Param]:
        rank = c.ranks.get(letter, 0)
        return [
            Param(f"{att}.{letter}1", (n, rank), spec.ZERO, "lora", optional=optional),
            Param(f"{att}.{letter}2", (rank, n), spec.Orthogonal(0.1), "lora", optional=optional),
        ]

    return [
        *spec.norm(f"blocks.{layer}.ln1", n),
        *spec.norm(f"blocks.{layer}.ln2", n),
        spec.vector(f"{att}.x_r", n, lambda i: 1 - (i / n) ** (0.2 * r10)),
        spec.vector(f"{att}.x_w", n, lambda i: 1 - (i / n) ** (0.9 * r10)),
        spec.vector(f"{att}.x_k", n, lambda i: 1 - (i / n) ** (0.7 * r10)),
        spec.vector(f"{att}.x_v", n, lambda i: 1 - (i / n) ** (0.7 * r10)),
        spec.vector(f"{att}.x_a", n, lambda i: 1 - (i / n) ** (0.9 * r10)),
        spec.vector(f"{att}.x_g", n, lambda i: 1 - (i / n) ** (0.2 * r10)),
        spec.vector(f"{att}.w0", n, lambda i: -5.5 + 6 * (i / (n - 1)) ** (1 + r01**0.3) + 2.5 * zigzag(i), lr=2),
        *pair("w"),
        spec.vector(f"{att}.a0", n, lambda i: -0.19 + 0.3 * zigzag(i) + 0.4 * ramp(i)),
        *pair("a"),
        spec.vector(f"{att}.v0", n, lambda i: 0.73 - 0.4 * ramp(i), optional=unused),
        *pair("v", unused),
        *pair("g"),
        spec.vector(f"{att}.k_k", n, lambda i: 0.71 - 0.1 * ramp(i)),
        spec.vector(f"{att}.k_a", n, lambda i: 1.02),
        Param(f"{att}.r_k", (c.n_head, size), spec.Fill(-0.04)),
        spec.matrix(f"{att}.receptance", n, n, 1, "att"),
        spec.matrix(f"{att}.key", n, n, 0.1, "att"),
        spec.matrix(f"{att}.value", n, n, 1, "att"),
        spec.matrix(f"{att}.output", n, n, 0, "att"),
        *spec.norm(f"{att}.ln_x", n, ((1 + layer) / c.n_layer) ** 0.7),
        *spec.tuned_state(c, layer),
        spec.vector(f"{ffn}.x_k", n, lambda i: 1 - (i / n) ** (r10**4)),
        spec.matrix(f"{ffn}.key", f, n, 1, "ffn"),
        spec.matrix(f"{ffn}.value", n, f, 0, "ffn"),
    ]
