"""One model under comparison: what it is on paper, and how a torch model of any architecture is read, stepped, trained.

T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.bench.context.match import Plan

Logits: TypeAlias = npt.NDArray[np.float32]
Tensor: TypeAlias = Any  # torch is named inside functions alone

EXTRA = 1024  # tokens of room beyond a depth, unless asked otherwise
SAMPLE = 64  # tokens read to see how large a state is
SCATTER = 0.1  # of the numbers of an injected state, around those of the state that was read
RATE = 1e-4  # of AdamW: what a step costs does not depend on it


class Peer(ABC):
    """A model of random weights and the one sequence that it reads."""

    def __init__(self, kind: str, plan: Plan) -> None:
        self.kind, self.plan = kind, plan
        self.runtime, self.note, self.config = plan.runtime, plan.note, plan.config
        self.parameters, self.embedding_parameters = plan.parameters, plan.embedding_parameters
        self.weight_bytes = plan.weight_bytes

    @property
    def constant(self) -> bool:
        """Whether the state is of one size at every depth."""
        return self.plan.state[1] == 0

    def state_bytes(self, depth: int) -> int:
        """Bytes of state or KV after `depth` tokens."""
        return self.plan.state_bytes(depth)

    def bytes_per_token(self, depth: int) -> int:
        """Bytes that a decode step must read at least: weights (of the embedding one row) and state or KV."""
        return self.plan.bytes_per_token(depth)

    @abstractmethod
    def held_bytes(self) -> int:
        """Bytes of the state or KV that is there now, from the tensors; room kept for more tokens is not counted."""

    @abstractmethod
    def inject(self, depth: int, extra: int = EXTRA) -> None:
        """A random state or KV of realistic scale, as after `depth` tokens, and room for `extra` more."""

    @abstractmethod
    def prefill(self, tokens: Iterable[int], extra: int = EXTRA) -> Logits:
        """Read tokens [T] from an empty state, in the fastest form there is; the logits after the last, [V]."""

    @abstractmethod
    def step(self, token: int) -> Logits:
        """One decode step from the present state; logits [V]."""

    @abstractmethod
    def train(self, length: int) -> Callable[[], float]:
        """A training step on `length` random tokens, batch 1: forward, backward, AdamW; it returns the loss in nats."""


class TorchPeer(Peer):
    """A peer in torch. A subclass says how tokens are read and how a random state looks."""

    slice: int | None = None  # tokens read at a time, which bounds the memory of a long prompt; None: all at once

    def __init__(self, kind: str, plan: Plan, seed: int) -> None:
        super().__init__(kind, plan)
        import torch

        torch.set_num_threads(plan.spec.threads)
        torch.set_flush_denormal(True)  # a state that fades would pass through numbers that cost a hundred times more
        self.torch = torch
        self.generator = torch.Generator().manual_seed(seed)

    @property
    @abstractmethod
    def head(self) -> Any:
        """The nn.Linear from [.., C] to logits."""

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """All trained tensors."""

    @abstractmethod
    def clear(self, room: int) -> None:
        """An empty state, with room for so many tokens."""

    @abstractmethod
    def read(self, ids: Tensor) -> Tensor:
        """Advance the state by ids [T]; the last token's row [C], ready for the head."""

    @abstractmethod
    def hidden(self, ids: Tensor) -> Tensor:
        """[T] -> [T,C] from an empty state that is not kept, with gradients; ready for the head."""

    def unseen(self, length: int) -> int:
        """Bytes that `hidden` keeps for the backward pass where a count over fake tensors does not see them."""
        return 0

    def prefill(self, tokens: Iterable[int], extra: int = EXTRA) -> Logits:
        ids: Tensor = self.torch.as_tensor(np.asarray(tokens, np.int64))
        with self.torch.inference_mode():
            self.clear(len(ids) + extra)
            for part in ids.split(self.slice or len(ids)):
                x = self.read(part)
            return self._logits(x)

    def step(self, token: int) -> Logits:
        with self.torch.inference_mode():
            return self._logits(self.read(self.torch.tensor([token])))

    def train(self, length: int) -> Callable[[], float]:
        from rookery.train.loss import loss_of

        torch, weights = self.torch, self.weights()
        for tensor in weights:
            tensor.requires_grad_(True)
        adam = torch.optim.AdamW(weights, RATE, fused=True)
        ids = self.random_ids(length + 1)

        def step() -> float:
            loss = loss_of(self.head, self.hidden(ids[:-1]), ids[1:])
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            return float(loss.detach())

        return step

    def random_ids(self, count: int) -> Tensor:
        return self.torch.randint(self.plan.spec.vocab, (count,), generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return self.torch.randn(shape, generator=self.generator)

    def _logits(self, x: Tensor) -> Logits:
        logits: Logits = self.head(x).float().numpy()
        return logits

    def linear(self, weight: Tensor) -> Any:
        """nn.Linear of a weight [O,I]."""
        outputs, inputs = weight.shape
        made = self.torch.nn.Linear(inputs, outputs, bias=False, device="meta")
        made.weight = self.torch.nn.Parameter(weight)
        return made


def drawn(plan: Plan, generator: Any) -> dict[str, Tensor]:
    """A plan's tensors by name, as its table begins them; those of linears lie as `input_major` says."""
    import torch

    from rookery.backends.torch.module import initial

    dtype = getattr(torch, plan.spec.dtype)
    made = {}
    for p in plan.params:
        tensor = initial(p, generator).to(dtype).reshape(p.shape)
        made[p.name] = input_major(tensor) if p.kind in ("att", "head") else tensor
    return made


def input_major(weight: Tensor) -> Tensor:
    """The same [O,I] with the numbers of one input side by side.

    On a CPU a product with one row reads it at up to twice the pace of torch's usual order (measured with MKL), and
    one with many rows no slower; so all kinds have it.
    """
    return weight.T.contiguous().T
