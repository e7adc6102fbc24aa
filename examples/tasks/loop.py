"""The training loop that the tasks share: the recipe's groups, schedule, clip and loss, over batches made on the fly.

B sequences, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rookery.backends.torch import Network
from rookery.train import optimiser, shape
from rookery.train.config import DataSettings, ModelSettings, OptimiserSettings, Settings
from rookery.train.loss import loss_of

Batch = tuple[Tensor, Tensor]  # tokens [B,T], targets [B,T]; a target below zero is not asked for
Draw = Callable[[int, torch.Generator], Batch]  # the batch of a step


def settings(model: ModelSettings, length: int, batch: int, steps: int, rate: float) -> Settings:
    """A run of `steps` batches, `batch` sequences of `length` tokens each; a cosine from `rate` to a fiftieth of it."""
    o = OptimiserSettings(
        tokens=steps * batch * length, batch=batch, lr_init=rate, lr_final=rate / 50, lr_schedule="cosine"
    )
    return Settings(model, DataSettings(ctx_len=length), o)


def train(s: Settings, draw: Draw, seed: int, say: Callable[[int, float], None] | None = None) -> Network:
    """A fresh network of `s.model` after all steps; `say` hears the step and its loss (nats per answer)."""
    network = Network.fresh(shape.config(s, s.model.vocab_size), seed)
    adam = optimiser.adamw(network, network.config, s.optimiser)
    generator = torch.Generator().manual_seed(seed)
    for step in range(s.steps):
        tokens, targets = (x.flatten() if i else x for i, x in enumerate(draw(step, generator)))
        x, _ = network.hidden(tokens)
        asked = (targets >= 0).float()
        share = asked / asked.sum()
        loss = loss_of(network.head, x.flatten(0, 1), targets.clamp(min=0), s.optimiser.l2wrap, weights=share)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), s.optimiser.grad_clip or math.inf)
        optimiser.set_rate(adam, optimiser.rate(s, step))
        adam.step()
        if say:
            say(step, loss.item())
    return network


@torch.no_grad()
def right(network: Network, batch: Batch) -> Tensor:
    """bool [answers]: which of a batch's answers are the likeliest token."""
    tokens, targets = batch
    logits, _ = network(tokens)
    return (logits.argmax(-1) == targets)[targets >= 0]
