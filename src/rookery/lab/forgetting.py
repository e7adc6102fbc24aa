"""How fast each layer's WKV state forgets while a model reads: exponents, growth, half-lives; in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rookery.lab import metrics
from rookery.lab.exponents import exponents
from rookery.lab.motion import short
from rookery.lab.taps import read_with_taps
from rookery.model import Model

WRITES = 8  # tokens whose writes are followed


def forgetting(model: Model, tokens: Sequence[int], skip: int) -> dict[str, dict[str, Any]]:
    """By component "layers.{i}.wkv", over the tokens after the first `skip`:

    exponent: the largest of all heads, per token. growth: the most that any disturbance grew, a factor. log_decay:
    each channel's mean ln w. writes: v7, half-lives of single writes [WRITES, heads], decay and removal together;
    infinite where it is longer than what was read after it.
    """
    found: dict[str, dict[str, Any]] = {}
    for layer, of in exponents(model, tokens, skip=skip).items():
        growth, largest = float(of.growth.largest.max()), float(of.qr.max())
        found[f"{layer}.wkv"] = {"exponent": short(largest), "growth": short(growth)}
    for i in range(model.config.n_layer):
        found[f"layers.{i}.wkv"] |= _of_layer(model, i, tokens, skip)
    return found


def _of_layer(model: Model, layer: int, tokens: Sequence[int], skip: int) -> dict[str, Any]:
    if model.config.version not in "67":
        static = metrics.static_log_decay(model)[f"layers.{layer}.att.w"]
        return {"log_decay": short(np.broadcast_to(static, np.shape(static)).reshape(-1))}
    names = [f"layers.{layer}.att.{x}" for x in ("wka" if model.config.version == "7" else "w")]
    heard = read_with_taps(model, tokens, names)[0]
    found = {"log_decay": short(heard[names[0]][skip:].astype(np.float64).mean(0).reshape(-1))}
    if model.config.version == "7":
        factors = metrics.v7_factors(model, layer, heard)
        steps = metrics.transitions(*factors[:3])
        last = max(skip + 1, len(tokens) // 2)  # of the writes that are followed: as many tokens come after it
        at = np.unique(np.linspace(skip, last, WRITES).astype(int))
        responses = [metrics.impulse_response(steps[t + 1 :], factors.key[t]) for t in at.tolist()]
        found["writes"] = short([metrics.response_half_life(response) for response in responses])
    return found
