"""Exact backpropagation through a text of any length, with the memory of one slice of it.

A recurrent model knows of its past only the states, so the gradient of a long text can be taken slice by slice from
its end: each slice is run again from the states it began with, which are leaves, and the gradient that arrives there
is given to the slice before, at the states it ended with. Nothing is cut off, as truncated backpropagation does
(RWKV-infctx-trainer and RWKV-PEFT's infctx detach the states): the sum is that of one pass over all. The price is a
second forward pass, as with activation checkpointing. Kept besides one slice are the states between the slices: a few
vectors and the WKV matrices, per sequence and layer.
B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.backends.torch import Network
from rookery.backends.torch.module import States
from rookery.train.loss import loss_of


def backward(
    network: Network,
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    resets: Tensor | None = None,
    *,
    size: int,
    l2wrap: float = 0.0,
    rows: int = 0,
    states: States | None = None,
) -> Tensor:
    """Add the gradient of sum(weights * nll) over all T tokens to `.grad`, `size` tokens at a time; gives that sum.

    tokens, targets int64 [B,T], weights float [B,T], resets bool [B,T]; l2wrap and rows as `train.loss.loss_of` has
    them. The text begins with `states`, else with the network's own start; trained ones get their gradient too.
    Autocast is the caller's, around this call. Dropout draws the same numbers in both runs of a slice. The gradients
    are this process's own: under DDP nothing is exchanged.
    """
    begin = network.start(len(tokens)) if states is None else states
    parts = [torch.split(x, size, 1) for x in (tokens, targets, weights)]
    marks = [None] * len(parts[0]) if resets is None else torch.split(resets, size, 1)
    slices = list(zip(*parts, marks, strict=True))
    random = _Random(tokens.device)
    # One tensor for the states of all slices, and one for the losses: small ones kept among a slice's temporaries would
    # hold the heap open around them (measured: 5 MB a slice for states of 0.2 MB).
    starts = _vector(begin).detach().new_empty(len(slices), _vector(begin).numel())
    draws, states = [], begin
    with torch.no_grad():
        for i, (ids, _, _, reset) in enumerate(slices):
            starts[i] = _vector(states)
            draws.append(random.now())
            if i + 1 < len(slices):
                states = network.hidden(ids, states, reset)[1]
    losses: Tensor | None = None
    arriving: list[Tensor | None] = [None] * len(_flat(begin))
    for i, (ids, wanted, weight, reset) in reversed([*enumerate(slices)]):
        random.go_on(draws[i])
        start = _leaves(starts[i], begin, needed=i > 0)
        x, after = network.hidden(ids, start, reset)
        draws[i] = random.now()
        loss = loss_of(network.head, x.flatten(0, 1), wanted.flatten(), l2wrap, rows, weights=weight.flatten())
        losses = loss.new_empty(len(slices)) if losses is None else losses
        losses[i] = loss.detach()
        _backward([loss, *_flat(after)], [torch.ones_like(loss), *arriving])
        del x, loss, after  # a slice's graph must be gone before the next one's is built
        arriving = [piece.grad for piece in _flat(start)]
    _backward(_flat(begin), arriving)
    random.go_on(draws[-1])  # where the last slice ended
    assert losses is not None
    return sum(losses, torch.zeros_like(losses[0]))


def _vector(states: States) -> Tensor:
    return torch.cat([x.flatten() for x in _flat(states)])


def _leaves(vector: Tensor, like: States, needed: bool) -> States:
    """The pieces of a vector of states; with a gradient where it is `needed` or `like` has one."""
    pieces = iter(torch.split(vector, [x.numel() for x in _flat(like)]))
    return [
        {
            name: next(pieces).view(x.shape).detach().requires_grad_(needed or x.requires_grad)
            for name, x in layer.items()
        }
        for layer in like
    ]


def _flat(states: States) -> list[Tensor]:
    return [x for layer in states for x in layer.values()]


def _backward(outputs: list[Tensor], gradients: list[Tensor | None]) -> None:
    """From those outputs that have a graph and are given a gradient, in the types that the forward pass chose."""
    pairs = [(x, g) for x, g in zip(outputs, gradients, strict=True) if g is not None and x.requires_grad]
    with torch.autocast(outputs[0].device.type, enabled=False):
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])


class _Random:
    """Where torch's generators stand: the CPU's, and the device's where it has its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device if device.type == "cuda" else None

    def now(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), None if self.device is None else torch.cuda.get_rng_state(self.device)

    def go_on(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None and self.device is not None:
            torch.cuda.set_rng_state(state[1], self.device)
