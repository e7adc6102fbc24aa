"""The models that are compared, behind one interface: RWKV, Transformers, Mamba-2 and LSTM with random weights.

All run in torch on the same threads, so that the architecture is what differs; "-native" ones run RWKV on the native
core, a runtime that the others do not have, and say so.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from rookery.bench.context import lstm, mamba2, rwkv, transformer
from rookery.bench.context.match import Plan, Spec
from rookery.bench.context.peer import EXTRA, Peer, TorchPeer
from rookery.errors import InputError, MissingExtra

__all__ = ["KINDS", "NATIVE", "Peer", "Plan", "Spec", "build", "need", "plan"]

LOGITS = 1 << 24  # elements of logits that rookery.train.loss makes at a time
COPIES_OF_LOGITS = 4  # the logits, their logarithm, its gradient, and their sum
SAMPLE = 64  # tokens of the pass that is counted; all is linear in them

Planner = Callable[[str, Spec], Plan]
Maker = Callable[[str, Spec, int], Peer]

_MADE: dict[str, tuple[Planner, Maker]] = {
    **dict.fromkeys(rwkv.VERSIONS, (rwkv.plan, rwkv.Rwkv)),
    "transformer-gqa": (transformer.plan, transformer.Transformer),
    "transformer-mha": (transformer.plan, transformer.Transformer),
    "mamba2": (mamba2.plan, mamba2.Mamba2),
    "lstm": (lstm.plan, lstm.Lstm),
    **dict.fromkeys(rwkv.NATIVE, (rwkv.native_plan, rwkv.Native)),
}
NATIVE = tuple(rwkv.NATIVE)
KINDS = tuple(kind for kind in _MADE if kind not in NATIVE)


def plan(kind: str, spec: Spec) -> Plan:
    """What a peer is made of: sizes, tensors, bytes. Raises InputError for an unknown kind, and where none fits."""
    return _of(kind)[0](kind, spec)


def build(kind: str, spec: Spec, seed: int = 0) -> Peer:
    """The peer with random weights; torch is set to `spec.threads`. Raises InputError and MissingExtra."""
    maker = _of(kind)[1]
    try:
        import torch as torch
    except ImportError:
        raise MissingExtra("bench context", "train") from None
    return maker(kind, spec, seed)


def need(kind: str, spec: Spec, depth: int, train: bool = False) -> int:
    """Bytes that decode at `depth` needs at least, or (`train`) a training step on `depth` tokens; nothing is built."""
    found = plan(kind, spec)
    if not train:
        return found.weight_bytes + found.state_bytes(depth + EXTRA)
    if kind in NATIVE:
        raise rwkv.untrained(kind)
    logits = min(depth, LOGITS // spec.vocab) * spec.vocab * 4 * COPIES_OF_LOGITS
    one, two = (_kept(kind, spec, n * SAMPLE) for n in (1, 2))
    return 4 * found.weight_bytes + one + (two - one) * (depth - SAMPLE) // SAMPLE + logits


def _kept(kind: str, spec: Spec, length: int) -> int:
    """Bytes that a forward pass over so many tokens leaves for the backward pass, counted over fake tensors."""
    from rookery.train.count import Live, fake

    with fake():
        peer = build(kind, spec)
        assert isinstance(peer, TorchPeer)
        weights = [tensor.requires_grad_(True) for tensor in peer.weights()]
        ids = peer.random_ids(length)
        with Live([*weights, ids]) as live:
            graph = peer.hidden(ids)
        kept: int = live.now + peer.unseen(length)
        del graph
        return kept


def _of(kind: str) -> tuple[Planner, Maker]:
    if kind not in _MADE:
        near = difflib.get_close_matches(kind, _MADE, 1)
        meant = f"did you mean {near[0]}?" if near else f"wanted: {', '.join(_MADE)}"
        raise InputError(f"no peer {kind!r}; {meant}")
    return _MADE[kind]
