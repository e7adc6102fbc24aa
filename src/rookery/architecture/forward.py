"""The whole model: embedding, the residual loop over blocks, head. The same few lines for every version."""

from __future__ import annotations

from collections.abc import Sequence

from rookery.architecture import Version
from rookery.architecture.vocabulary import Array, LayerState, Params, Vocabulary


def embed(o: Vocabulary, m: Params, ids: Array) -> Array:
    """[R] -> [R,C]: the table's rows through ln0. Vectors of one's own may take their place in `blocks`."""
    return o.layer_norm(o.embed(m.emb.weight, ids), m.blocks[0].ln0)


def block(
    o: Vocabulary, version: Version, p: Params, x: Array, state: LayerState, v_first: Array | None
) -> tuple[Array, Array | None]:
    """One block: x += time mixing, x += channel mixing. `state` is replaced piece by piece."""
    y, v_first = version.time_mix(o, p.att, o.layer_norm(x, p.ln1), state, v_first)
    x = x + y
    x = x + version.channel_mix(o, p.ffn, o.layer_norm(x, p.ln2), state)
    return o.tap("resid", x), v_first


def blocks(o: Vocabulary, version: Version, m: Params, x: Array, states: Sequence[LayerState]) -> Array:
    """[R,C] -> [R,C] through all layers."""
    v_first = None
    for o.layer, (p, state) in enumerate(zip(m.blocks, states, strict=True)):
        x, v_first = block(o, version, p, x, state, v_first)
    return x


def head(o: Vocabulary, m: Params, x: Array) -> Array:
    """[R,C] -> logits [R,V]."""
    return o.linear(m.head, o.layer_norm(x, m.ln_out))
