"""The loss in chunks is the loss; L2Wrap adds its gradient and nothing to the value."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rookery.train.loss import loss_of

ROWS, WIDTH, VOCAB, FACTOR = 13, 8, 11, 1e-2


def pieces() -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(WIDTH, VOCAB, bias=False, dtype=torch.float64)
    head.weight = torch.nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64))
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    return head, x, torch.randint(VOCAB, (ROWS,), generator=generator)


@pytest.mark.parametrize("rows", [0, 1, 4, 13, 50])
@pytest.mark.parametrize("l2wrap", [0.0, FACTOR])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_of_any_size_give_the_same_loss_and_gradients(rows: int, l2wrap: float, weighted: bool) -> None:
    head, x, targets = pieces()
    weights = torch.arange(ROWS, dtype=torch.float64) % 3 if weighted else None
    loss = loss_of(head, x, targets, l2wrap, rows, weights)
    found = torch.autograd.grad(loss, (x, head.weight))

    logits = x @ head.weight.T
    each = torch.logsumexp(logits, -1) - logits.gather(1, targets[:, None])[:, 0]
    share = torch.full((ROWS,), 1 / ROWS, dtype=torch.float64) if weights is None else weights
    value = (each * share).sum()
    assert torch.allclose(loss.double(), value, rtol=1e-6)
    outside = (torch.softmax(logits, -1) - torch.nn.functional.one_hot(targets, VOCAB)) * share[:, None]
    top = logits.argmax(-1)
    outside[torch.arange(ROWS), top] += l2wrap * logits[torch.arange(ROWS), top] * share
    wanted = outside @ head.weight, outside.T @ x
    for mine, true in zip(found, wanted, strict=True):
        assert torch.allclose(mine, true.detach(), rtol=1e-6, atol=1e-9)


def test_l2wrap_scales_with_the_loss() -> None:
    """Under accumulation the loss is divided; its pull must be divided with it."""
    head, x, targets = pieces()
    (whole,) = torch.autograd.grad(loss_of(head, x, targets, FACTOR), x)
    (half,) = torch.autograd.grad(loss_of(head, x, targets, FACTOR) / 2, x)
    assert torch.allclose(half * 2, whole)
