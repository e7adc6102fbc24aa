"""Learning from preferences: DPO, ORPO, SimPO and KTO, as functions of log-probabilities and as losses of a batch.

The functions take what a row's replies are given by the model that is tuned ("policy") and by the base it began as
("reference"), and give a loss for each row. Column 0 is the chosen reply, column 1 the rejected one.
B rows, S sequences of a row (2), T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rookery.backends.torch import Network
from rookery.train.loss import LOGITS
from rookery.train.parallel import Parallel
from rookery.tune import references
from rookery.tune.config import ObjectiveSettings, Settings
from rookery.tune.pairs import PairData

BETA = MappingProxyType({"dpo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.0})  # the papers' own; orpo has none


def dpo(policy: Tensor, reference: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Sums of log-probabilities [B,2] each -> [B]. Rafailov et al., arXiv 2305.18290, equation 7.

    label_smoothing: the share of the pairs that are taken to be the wrong way round (Mitchell's conservative DPO).
    """
    margin = beta * _margin(policy - reference)
    right, wrong = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def orpo(means: Tensor, odds: float = 0.1) -> Tensor:
    """Log-probabilities per token [B,2] -> [B]: the chosen reply's loss, and `odds` times that of the odds ratio.

    Hong et al., arXiv 2403.07691, equations 4 to 7. The loss is that of the reply's tokens; the paper's code adds the
    prompt's.
    """
    return odds * -functional.logsigmoid(_margin(means - _log_not(means))) - means[:, 0]


def simpo(means: Tensor, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """Log-probabilities per token [B,2] -> [B]. Meng et al., arXiv 2405.14734, equation 6: gamma is within the
    sigmoid, beside beta times the margin.
    """
    return -functional.logsigmoid(beta * _margin(means) - gamma)


def kto(
    policy: Tensor,
    reference: Tensor,
    good: Tensor,
    point: Tensor,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """Sums of log-probabilities [B] x2, bool [B], [B] -> [B]. Ethayarajh et al., arXiv 2402.01306, equation 8.

    `point` is what a reply's gain is measured from: an estimate of the policy's divergence from the reference, which
    gets no gradient.
    """
    gain = beta * (policy - reference - point.detach())
    weight = torch.where(good, desirable, undesirable)
    return weight * (1 - torch.sigmoid(torch.where(good, gain, -gain)))


def _margin(pairs: Tensor) -> Tensor:
    return pairs[:, 0] - pairs[:, 1]


def _log_not(means: Tensor) -> Tensor:
    """log(1 - e^x); where x is 0, a finite number and no gradient."""
    return torch.log(-torch.expm1(means.clamp(max=-1e-12)))


def log_probs(
    network: Network, tokens: Tensor, targets: Tensor, trained: Tensor, rows: int = 0
) -> tuple[Tensor, Tensor]:
    """[B,S,T] each, `trained` bool -> the sums of the trained targets' log-probabilities [B,S], and how many.

    All sequences go forward together. Only trained positions reach the head, `rows` of them at a time (0: as many as
    make 64 MB of logits).
    """
    x, _ = network.hidden(tokens.flatten(0, 1))
    where = trained.flatten().nonzero()[:, 0]
    x, wanted = x.flatten(0, 1)[where], targets.flatten()[where]
    size = rows or max(1, LOGITS // int(network.head.out_features))  # type: ignore[arg-type]
    if len(x) <= size:
        each = _log_probs(network.head, x, wanted)
    else:
        parts = zip(torch.split(x, size), torch.split(wanted, size), strict=True)
        each = torch.cat([checkpoint(_log_probs, network.head, *part, use_reentrant=False) for part in parts])
    sums = each.new_zeros(trained[..., 0].numel()).index_add(0, where // tokens.shape[-1], each)
    return sums.view(trained.shape[:2]), trained.sum(-1)


def _log_probs(head: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    logits = head(x)
    return -functional.cross_entropy(
        logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="none"
    )


class Trainee(nn.Module):
    """The network with its loss over a micro batch of PairData, as one module: what DDP sees.

    A loss is the sum of the rows' losses times their `share`, which is 1 / rows of the whole step.
    """

    def __init__(self, network: Network, settings: Settings) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        o = settings.objective
        self.beta = o.beta or BETA[o.objective]

    def log_probs(self, tokens: Tensor, targets: Tensor, trained: Tensor) -> tuple[Tensor, Tensor]:
        return log_probs(self.network, tokens, targets, trained, self.settings.run.head_chunk)


class OfPairs(Trainee):
    """DPO, ORPO, SimPO."""

    def forward(
        self, tokens: Tensor, targets: Tensor, trained: Tensor, share: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        """[B,2,T] x3, [B], for DPO [B,2]."""
        sums, counts = self.log_probs(tokens, targets, trained)
        o: ObjectiveSettings = self.settings.objective
        match o.objective:
            case "orpo":
                losses = orpo(sums / counts, o.odds)
            case "simpo":
                losses = simpo(sums / counts, self.beta, o.gamma)
            case _:
                assert reference is not None
                losses = dpo(sums, reference, self.beta, o.label_smoothing)
        return (losses * share).sum()


class OfLabels(Trainee):
    """KTO."""

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        trained: Tensor,
        share: Tensor,
        good: Tensor,
        reference: Tensor,
        point: Tensor,
    ) -> Tensor:
        """[B,2,T] x3, [B] x2, [B,2], [B]. The second sequences, another prompt's replies, are those of `point`."""
        sums, _ = self.log_probs(tokens[:, :1], targets[:, :1], trained[:, :1])
        o = self.settings.objective
        return (kto(sums[:, 0], reference[:, 0], good, point, self.beta, o.desirable, o.undesirable) * share).sum()

    def divergence(self, batch: list[Tensor]) -> Tensor:
        """The estimate of the policy's divergence from the reference, as far as these rows share in it."""
        tokens, targets, trained, share, _, reference = batch
        sums, _ = self.log_probs(tokens[:, 1:], targets[:, 1:], trained[:, 1:])
        return ((sums[:, 0] - reference[:, 1]) * share).sum()


def trainee(network: Network, settings: Settings, data: PairData, parallel: Parallel, base: str) -> Trainee:
    """The module that trains `network` by preference; `data` gets what its batches need besides.

    DPO and KTO compare with the model as it is now, before the first step: every method begins as its base. What that
    one says of all rows is computed once and kept in OUT/data, under a name made of `base` (the fingerprint of its
    weights) and the rows.
    """
    kind = settings.objective.objective
    module = OfLabels(network, settings) if kind == "kto" else OfPairs(network, settings)
    size = settings.optimiser.micro_batch or settings.optimiser.batch
    if kind in ("dpo", "kto"):

        def of(tokens: Tensor, targets: Tensor, trained: Tensor, *_: Tensor) -> Tensor:
            with _aside(module, settings, parallel):
                return module.log_probs(tokens, targets, trained)[0]

        name = references.name(base, settings.adapter.quant, settings.run.precision, data)
        data.reference = references.found_or_made(Path(settings.run.out) / "data" / name, data, of, size, parallel)
    if isinstance(module, OfLabels):
        made = module

        def point(batch: list[Tensor], shared: bool) -> Tensor:
            """One for all processes' rows of a step, as the cut of a step shall change no loss."""
            with _aside(made, settings, parallel):
                pieces = zip(*(torch.split(x, size) for x in batch), strict=True)
                mean = torch.stack([made.divergence(list(piece)) for piece in pieces]).sum() / batch[3].sum()
            return torch.full_like(batch[3], max(0.0, parallel.mean(mean) if shared else float(mean)))

        data.point = point
    return module


@contextmanager
def _aside(module: nn.Module, settings: Settings, parallel: Parallel) -> Iterator[None]:
    """Numbers as in training, but no gradient and no dropout."""
    training, narrow = module.training, settings.run.precision == "bf16"
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(parallel.device.type, torch.bfloat16, enabled=narrow):
            yield
    finally:
        module.train(training)
