"""The slow truth: RWKV v4 to v7 in float64 NumPy, one token at a time, straight from the formulas.

Written apart from the package and importing nothing of it, so that agreement means something. Clarity is its only aim.

C width, H heads, N head size, V vocabulary. Tensors bear BlinkDL's names and have the shapes of his .pth files
(linears [out, in], low-rank pairs [in, rank] and [rank, out], mix vectors [1, 1, C]).

Sources: the RWKV papers (v4: 2305.13048; v5, v6: 2404.05892; v7: 2503.14456) and BlinkDL's published inference code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
LayerState = dict[str, Array]  # att_shift [C], ffn_shift [C], wkv: v4 [3, C], later [H, N_key, N_value]

LAYER_NORM_EPS = 1e-5
V7_DECAY = np.exp(-0.5)  # inference code writes 0.606531, which moves logits by up to 2e-6
GROUP_NORM_EPS = 64e-5  # BlinkDL divides by 8 and uses 1e-5, which is 8 * 8 * 1e-5 undivided

V5 = ("5.0", "5.1", "5.2")
# Mistakes that have been made in the wild, and the versions in which each can be made.
PLANTED = {
    "eps": (*V5, "6", "7"),  # group norm with 1e-5
    "lerp_order": ("4", *V5, "6", "7"),  # now and before swapped; v7: x_w and x_k swapped
    "transposed_state": (*V5, "6", "7"),  # time_state as it lies in the file; without one, the carried state
    "no_bonus": ("4", *V5, "6", "7"),  # the current token gets no extra weight
    "no_v_first": ("7",),  # later layers ignore the first layer's value
}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + LAYER_NORM_EPS) * weight + bias


def version_of(names: set[str]) -> str:
    """The architecture version that a set of BlinkDL names belongs to; 5.x needs the decay's shape too, see Oracle."""
    if "blocks.0.att.r_k" in names:
        return "7"
    if "blocks.0.att.time_maa_x" in names:
        return "6"
    if "blocks.0.att.ln_x.weight" in names:
        return "5"
    return "4"


class Oracle:
    """`tensors` -> logits and states in float64. `planted` (a key of PLANTED) makes it wrong on purpose."""

    def __init__(
        self,
        tensors: dict[str, npt.NDArray[Any]],
        group_norm_eps: float | None = None,
        planted: str | None = None,
    ) -> None:
        self.p = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
        self.version = version_of(set(self.p))
        if self.version == "5":
            per_channel = self.p["blocks.0.att.time_decay"].ndim > 1
            self.version = "5.2" if per_channel else "5.1" if "blocks.0.att.gate.weight" in self.p else "5.0"
        if planted is not None and self.version not in PLANTED[planted]:
            raise ValueError(f"v{self.version} cannot go wrong by {planted!r}")
        self.planted = planted
        self.eps = 1e-5 if planted == "eps" else GROUP_NORM_EPS if group_norm_eps is None else group_norm_eps
        self.n_layer = 1 + max(int(name.split(".")[1]) for name in self.p if name.startswith("blocks."))
        self.width = self.p["emb.weight"].shape[1]
        by_head = {"4": "time_decay", "6": "time_faaaa", "7": "r_k"}.get(self.version, "time_decay")
        self.heads = self.p["blocks.0.att." + by_head].shape[0]  # v4 has none and does not ask
        self.v_first: Array | None = None  # v7: the first layer's value of the token in work
        self.layers = self.state()

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> list[LayerState]:
        """The state before the first token: zero, or what `att.time_state` says."""
        layers = []
        for i in range(self.n_layer):
            name = f"blocks.{i}.att.time_state"
            if self.version == "4":
                wkv = np.zeros((3, self.width))
                wkv[2] = -1e30
            elif name in self.p:
                wkv = self.p[name].copy()  # [H, value, key]
                if self.planted != "transposed_state":
                    wkv = wkv.transpose(0, 2, 1)
            else:
                size = self.width // self.heads
                wkv = np.zeros((self.heads, size, size))
            layers.append({"att_shift": np.zeros(self.width), "ffn_shift": np.zeros(self.width), "wkv": wkv})
        return layers

    # -- the model -----------------------------------------------------------------------------------------------------

    def run(self, tokens: list[int] | npt.NDArray[np.integer]) -> Array:
        """Logits [T, V] of `tokens` from the start; `self.layers` is then the state after them."""
        self.layers = self.state()
        return np.array([self.step(int(token)) for token in tokens])

    def step(self, token: int) -> Array:
        """Logits [V] after one more token."""
        x = layer_norm(self.p["emb.weight"][token], self.p["blocks.0.ln0.weight"], self.p["blocks.0.ln0.bias"])
        time_mix = {"4": self.time_mix_4, "6": self.time_mix_6, "7": self.time_mix_7}.get(self.version, self.time_mix_5)
        channel_mix = {"6": self.channel_mix_6, "7": self.channel_mix_7}.get(self.version, self.channel_mix_4)
        self.v_first = None
        for i, state in enumerate(self.layers):
            block = f"blocks.{i}."
            now = layer_norm(x, self.p[block + "ln1.weight"], self.p[block + "ln1.bias"])
            x = x + time_mix(block + "att.", now, state["att_shift"], state)
            state["att_shift"] = now
            now = layer_norm(x, self.p[block + "ln2.weight"], self.p[block + "ln2.bias"])
            x = x + channel_mix(block + "ffn.", now, state["ffn_shift"])
            state["ffn_shift"] = now
        return self.p["head.weight"] @ layer_norm(x, self.p["ln_out.weight"], self.p["ln_out.bias"])

    def blend(self, now: Array, before: Array, mix: Array) -> Array:
        """v4, v5: `mix` is the share of the current token."""
        if self.planted == "lerp_order":
            now, before = before, now
        return now * mix.reshape(-1) + before * (1 - mix.reshape(-1))

    def shift(self, now: Array, before: Array, mix: Array) -> Array:
        """v6, v7: `mix` is the share of the previous token."""
        if self.planted == "lerp_order" and self.version == "6":
            now, before = before, now
        return now + (before - now) * mix.reshape(-1)

    def group_norm(self, y: Array, name: str) -> Array:
        """y [H, N], each head normalised alone -> [C]."""
        mean, var = y.mean(axis=1, keepdims=True), y.var(axis=1, keepdims=True)
        normed = (y - mean) / np.sqrt(var + self.eps)
        return normed.reshape(-1) * self.p[name + "ln_x.weight"] + self.p[name + "ln_x.bias"]

    # -- version 4 -----------------------------------------------------------------------------------------------------

    def time_mix_4(self, name: str, now: Array, before: Array, state: LayerState) -> Array:
        p = self.p
        r = sigmoid(p[name + "receptance.weight"] @ self.blend(now, before, p[name + "time_mix_r"]))
        k = p[name + "key.weight"] @ self.blend(now, before, p[name + "time_mix_k"])
        v = p[name + "value.weight"] @ self.blend(now, before, p[name + "time_mix_v"])
        u, w = p[name + "time_first"], -np.exp(p[name + "time_decay"])
        if self.planted == "no_bonus":
            u = np.zeros_like(u)
        # numerator and denominator are both held divided by exp(top)
        numerator, denominator, top = state["wkv"]
        q = np.maximum(top, u + k)
        old, new = np.exp(top - q), np.exp(u + k - q)
        wkv = (old * numerator + new * v) / (old * denominator + new)
        q = np.maximum(top + w, k)
        old, new = np.exp(top + w - q), np.exp(k - q)
        state["wkv"] = np.stack([old * numerator + new * v, old * denominator + new, q])
        return p[name + "output.weight"] @ (r * wkv)

    def channel_mix_4(self, name: str, now: Array, before: Array) -> Array:
        p = self.p
        k = p[name + "key.weight"] @ self.blend(now, before, p[name + "time_mix_k"])
        r = p[name + "receptance.weight"] @ self.blend(now, before, p[name + "time_mix_r"])
        return sigmoid(r) * (p[name + "value.weight"] @ np.maximum(k, 0) ** 2)

    # -- version 5 -----------------------------------------------------------------------------------------------------

    def time_mix_5(self, name: str, now: Array, before: Array, state: LayerState) -> Array:
        p = self.p
        r = p[name + "receptance.weight"] @ self.blend(now, before, p[name + "time_mix_r"])
        k = p[name + "key.weight"] @ self.blend(now, before, p[name + "time_mix_k"])
        v = p[name + "value.weight"] @ self.blend(now, before, p[name + "time_mix_v"])
        w = np.exp(-np.exp(p[name + "time_decay"]))
        u = p[name + "time_faaaa"] if name + "time_faaaa" in p else np.exp(p[name + "time_first"])
        y = self.group_norm(self.linear_attention(r, k, v, w, u, state), name)
        if self.version != "5.0":
            g = p[name + "gate.weight"] @ self.blend(now, before, p[name + "time_mix_g"])
            y = y * (g * sigmoid(g))
        return p[name + "output.weight"] @ y

    def linear_attention(self, r: Array, k: Array, v: Array, w: Array, u: Array, state: LayerState) -> Array:
        """v5, v6: y [H, N]; w and u are one number per head [H] or one per channel [H, N]."""
        size = self.width // self.heads
        r, k, v = (x.reshape(self.heads, size) for x in (r, k, v))
        w, u = (np.broadcast_to(x.reshape(self.heads, -1), (self.heads, size)) for x in (w, u))
        if self.planted == "no_bonus":
            u = np.zeros_like(u)
        if self.planted == "transposed_state" and "blocks.0.att.time_state" not in self.p:
            state["wkv"] = state["wkv"].transpose(0, 2, 1)
        y, after = np.empty((self.heads, size)), np.empty_like(state["wkv"])
        for h in range(self.heads):
            update = np.outer(k[h], v[h])  # [key, value]
            y[h] = r[h] @ (np.diag(u[h]) @ update + state["wkv"][h])
            after[h] = update + np.diag(w[h]) @ state["wkv"][h]
        state["wkv"] = after
        return y

    # -- version 6 -----------------------------------------------------------------------------------------------------

    def time_mix_6(self, name: str, now: Array, before: Array, state: LayerState) -> Array:
        p = self.p
        z = np.tanh(self.shift(now, before, p[name + "time_maa_x"]) @ p[name + "time_maa_w1"])
        mixed = {}
        for i, letter in enumerate("wkvrg"):
            own = np.split(z, 5)[i] @ p[name + "time_maa_w2"][i]
            mixed[letter] = self.shift(now, before, p[name + "time_maa_" + letter].reshape(-1) + own)
        r = p[name + "receptance.weight"] @ mixed["r"]
        k = p[name + "key.weight"] @ mixed["k"]
        v = p[name + "value.weight"] @ mixed["v"]
        g = p[name + "gate.weight"] @ mixed["g"]
        raw = p[name + "time_decay"].reshape(-1)
        raw = raw + np.tanh(mixed["w"] @ p[name + "time_decay_w1"]) @ p[name + "time_decay_w2"]
        w = np.exp(-np.exp(raw))
        y = self.group_norm(self.linear_attention(r, k, v, w, p[name + "time_faaaa"], state), name)
        return p[name + "output.weight"] @ (y * (g * sigmoid(g)))

    def channel_mix_6(self, name: str, now: Array, before: Array) -> Array:
        p = self.p
        k = p[name + "key.weight"] @ self.shift(now, before, p[name + "time_maa_k"])
        r = p[name + "receptance.weight"] @ self.shift(now, before, p[name + "time_maa_r"])
        return sigmoid(r) * (p[name + "value.weight"] @ np.maximum(k, 0) ** 2)

    # -- version 7 -----------------------------------------------------------------------------------------------------

    def time_mix_7(self, name: str, now: Array, before: Array, state: LayerState) -> Array:
        p, heads, size = self.p, self.heads, self.width // self.heads
        sources = dict(zip("rwkvag", "rkwvag" if self.planted == "lerp_order" else "rwkvag", strict=True))
        x = {letter: self.shift(now, before, p[name + "x_" + source]) for letter, source in sources.items()}
        r = p[name + "receptance.weight"] @ x["r"]
        k0 = p[name + "key.weight"] @ x["k"]
        v = p[name + "value.weight"] @ x["v"]
        raw = p[name + "w0"].reshape(-1) + np.tanh(x["w"] @ p[name + "w1"]) @ p[name + "w2"]
        decay = np.exp(-V7_DECAY * sigmoid(raw))
        a = sigmoid(p[name + "a0"].reshape(-1) + x["a"] @ p[name + "a1"] @ p[name + "a2"])
        g = sigmoid(x["g"] @ p[name + "g1"]) @ p[name + "g2"]
        if self.v_first is None:
            self.v_first = v
        elif self.planted != "no_v_first":
            v = v + (self.v_first - v) * sigmoid(p[name + "v0"].reshape(-1) + x["v"] @ p[name + "v1"] @ p[name + "v2"])
        kk = (k0 * p[name + "k_k"].reshape(-1)).reshape(heads, size)
        kk = kk / np.maximum(np.sqrt((kk * kk).sum(axis=1, keepdims=True)), 1e-12)
        k = k0 * (1 + (a - 1) * p[name + "k_a"].reshape(-1))
        r, k, v, a, decay = (z.reshape(heads, size) for z in (r, k, v, a, decay))

        if self.planted == "transposed_state" and "blocks.0.att.time_state" not in p:
            state["wkv"] = state["wkv"].transpose(0, 2, 1)
        y, bonus, after = np.empty((heads, size)), np.empty((heads, size)), np.empty_like(state["wkv"])
        for h in range(heads):
            s = state["wkv"][h].T  # the formula is written for [value, key]
            s = s @ np.diag(decay[h]) - np.outer(s @ kk[h], kk[h] * a[h]) + np.outer(v[h], k[h])
            y[h] = s @ r[h]
            bonus[h] = (r[h] * k[h] * p[name + "r_k"][h]).sum() * v[h]
            after[h] = s.T
        state["wkv"] = after
        out = self.group_norm(y, name)
        if self.planted != "no_bonus":
            out = out + bonus.reshape(-1)
        return p[name + "output.weight"] @ (out * g)

    def channel_mix_7(self, name: str, now: Array, before: Array) -> Array:
        p = self.p
        k = p[name + "key.weight"] @ self.shift(now, before, p[name + "x_k"])
        return p[name + "value.weight"] @ np.maximum(k, 0) ** 2


def read_safetensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 tensors of a safetensors file, read without the package or the library."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(raw[start + begin : start + end], "<f4").reshape(entry["shape"])
    return tensors
