"""What one token wrote, left out: the same tokens with and without a single write into the WKV state.

Left out is the sum's one term k_t v_t^T of v5 to v7 (in v4 the token's part of numerator and denominator), in the state
that token t leaves behind. Kept are the decay and, in v7, the removal of that token; all it computes itself, its own
reading of what it writes included; and both token shifts, by which the next token still sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from rookery.errors import InputError
from rookery.lab import pieces
from rookery.lab.pieces import Array, Float64
from rookery.lab.taps import read_with_taps
from rookery.model import Model
from rookery.state import State


@dataclass(frozen=True)
class Skipped:
    """The two runs: logits [T,V] of all tokens, equal up to and including the one whose write was left out."""

    with_it: Array
    without: Array
    state_with: State
    state_without: State


def skip_write(
    model: Model,
    tokens: Sequence[int],
    at: int,
    state: State | None = None,
    layers: str = "layers.*",
    head: int | None = None,
) -> Skipped:
    """Read `tokens` from `state` twice, the second time without what tokens[at] writes in `layers` (a glob of
    "layers.0", "layers.1", ..) and, in v5 to v7, in one head or all of them.

    Raises InputError for a position or head that there is not, or a glob that fits no layer.
    """
    c, tokens = model.config, list(tokens)
    if not 0 <= at < len(tokens):
        raise InputError(f"token {at} of {len(tokens)}: 0 to {len(tokens) - 1} is wanted")
    if head is not None and not 0 <= head < c.n_head:
        raise InputError(f"head {head}: {c.name} of this size has {c.n_head}")
    chosen = [i for i in range(c.n_layer) if fnmatchcase(f"layers.{i}", layers)]
    if not chosen:
        raise InputError(f"no layer is named {layers!r}; there are layers.0 to layers.{c.n_layer - 1}")
    first, before = _read(model, tokens[:at], state)
    letters = {"4": "w", "5": "kv", "6": "kv", "7": "kva"}[c.version[0]]
    points = [f"layers.{i}.att.{x}" for i in chosen for x in letters]
    heard, own, after = read_with_taps(model, [tokens[at]], points, before)
    less = after.copy()
    for i in chosen:
        target, old = pieces.raw(less, f"layers.{i}.wkv"), pieces.raw(before, f"layers.{i}.wkv")
        if c.version == "4":
            target[...] = old + np.stack([0 * old[0], 0 * old[1], heard[f"layers.{i}.att.w"]])
        else:
            which = slice(None) if head is None else slice(head, head + 1)
            target[which] = (target.astype(np.float64) - written(model, i, heard))[which]
    rest, state_with = _read(model, tokens[at + 1 :], after)
    rest_less, state_without = _read(model, tokens[at + 1 :], less)
    return Skipped(
        np.concatenate([first, own, rest]), np.concatenate([first, own, rest_less]), state_with, state_without
    )


def written(model: Model, layer: int, heard: dict[str, Array]) -> Float64:
    """k v^T [H, key, value] that a single token adds to the WKV state of v5 to v7, by the taps of that layer."""
    c = model.config
    k, v = (heard[f"layers.{layer}.att.{x}"].astype(np.float64).reshape(c.n_head, -1) for x in "kv")
    if c.version == "7":
        a = heard[f"layers.{layer}.att.a"].astype(np.float64).reshape(c.n_head, -1)
        k_a = model.weights.tensors[f"blocks.{layer}.att.k_a"].float32().astype(np.float64).reshape(c.n_head, -1)
        k = k * (1 + (a - 1) * k_a)
    out: Float64 = k[:, :, None] * v[:, None, :]
    return out


def _read(model: Model, tokens: Sequence[int], state: State | None) -> tuple[Array, State]:
    """As `forward` with every row, of no tokens too."""
    if len(tokens):
        return model.forward(tokens, state, every=True)
    empty = np.empty((0, model.config.n_vocab), model.runner.dtype)
    return empty, model.state() if state is None else state
