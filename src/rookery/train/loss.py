"""The training loss: cross-entropy over chunks of rows, and L2Wrap, which keeps logits from drifting upwards.

R rows, C width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LOGITS = 1 << 24  # elements of logits at a time: 64 MB


def loss_of(
    head: nn.Module, x: Tensor, targets: Tensor, l2wrap: float = 0.0, rows: int = 0, weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy in nats of head(x [R,C]) against targets [R]; a scalar, float32 or float64.

    Only `rows` rows (0: as many as make 64 MB) have logits at a time; where that takes more than one chunk, each is
    computed again in the backward pass. With `weights` [R] it is the sum of the rows' losses times their weights.
    """
    size = rows or max(1, LOGITS // int(head.out_features))  # type: ignore[arg-type]
    count = len(x) if weights is None else 1
    if len(x) <= size:
        return _sum(head, x, targets, weights, l2wrap) / count
    pieces = None if weights is None else torch.split(weights, size)
    total = x.new_zeros((), dtype=torch.float32)
    for i, (part, wanted) in enumerate(zip(torch.split(x, size), torch.split(targets, size), strict=True)):
        held = None if pieces is None else pieces[i]
        total = total + checkpoint(_sum, head, part, wanted, held, l2wrap, use_reentrant=False)
    return total / count


def _sum(head: nn.Module, x: Tensor, targets: Tensor, weights: Tensor | None, l2wrap: float) -> Tensor:
    logits = head(x)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    if l2wrap:
        # d/dlogit of l2wrap/2 max^2 is l2wrap * max at the largest logit; the value itself is not part of the loss.
        pull = 0.5 * l2wrap * logits.max(-1).values.square()
        losses = losses + (pull - pull.detach())
    return (losses if weights is None else losses * weights).sum()
