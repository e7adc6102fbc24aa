"""Backpropagation slice by slice is backpropagation: the same gradients, the memory of one slice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rookery import weights
from rookery.backends.torch import Network
from rookery.train.loss import loss_of
from rookery.tune import slices
from tolerances import AUTOCAST, GRADIENT_SLICES

Tensor = torch.Tensor
Gradients = dict[str, Tensor]
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]
TOKENS, SIZE = 45, 8  # the last slice has 5


@pytest.fixture(params=VERSIONS)
def network(request: pytest.FixtureRequest) -> Network:
    return open_network(request.param)


def open_network(name: str, dtype: torch.dtype = torch.float64) -> Network:
    path = "gosling" if name == "gosling" else FIXTURES / f"{name}.safetensors"
    return Network.of(weights.load(path), dtype)


def batch(length: int = TOKENS, rows: int = 2) -> list[Tensor]:
    """Tokens, targets, weights with holes, resets within slices and at their edges."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(256, (rows, length + 1), generator=generator)
    share = torch.rand(rows, length, generator=generator) * (torch.rand(rows, length, generator=generator) < 0.7)
    resets = torch.zeros(rows, length, dtype=torch.bool)
    resets[0, 0] = resets[0, min(20, length - 1)] = resets[1, min(2 * SIZE, length - 1)] = True
    return [ids[:, :-1], ids[:, 1:], share / share.sum(), resets]


def whole(
    network: Network, tokens: Tensor, targets: Tensor, share: Tensor, resets: Tensor | None = None, **o: Any
) -> Any:
    """The loss in one pass, with its graph."""
    x, _ = network.hidden(tokens, o.pop("states", None), resets)
    return loss_of(network.head, x.flatten(0, 1), targets.flatten(), weights=share.flatten(), **o)


def chained(network: Network, tokens: Tensor, targets: Tensor, share: Tensor, resets: Tensor | None = None) -> Any:
    """The loss over the same slices, in one graph."""
    states, total = None, 0.0
    for begin in range(0, tokens.shape[1], SIZE):
        cut = slice(begin, begin + SIZE)
        x, states = network.hidden(tokens[:, cut], states, None if resets is None else resets[:, cut])
        total = total + loss_of(
            network.head, x.flatten(0, 1), targets[:, cut].flatten(), weights=share[:, cut].flatten()
        )
    return total


def gradients(network: Network, loss: Callable[[], Tensor]) -> tuple[Tensor, Gradients]:
    network.zero_grad()
    value = loss()
    if value.requires_grad:
        value.backward()
    return value.detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def apart(ours: tuple[Tensor, Gradients], truth: tuple[Tensor, Gradients]) -> float:
    """The largest relative difference: of the loss, and in L2 of each gradient."""
    assert ours[1].keys() == truth[1].keys()
    tensors = [(a, truth[1][name]) for name, a in ours[1].items()]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-300)) for a, b in [ours[:1] + truth[:1], *tensors])


@pytest.mark.parametrize("resets", [True, False], ids=["documents", "stream"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_it_is_full_backpropagation(network: Network, resets: bool, checkpointing: bool) -> None:
    network.checkpointing = checkpointing
    data = batch()[: 4 if resets else 3]
    truth = gradients(network, lambda: whole(network, *data, l2wrap=1e-2))
    ours = gradients(network, lambda: slices.backward(network, *data, size=SIZE, l2wrap=1e-2, rows=5))
    assert apart(ours, truth) <= GRADIENT_SLICES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [*VERSIONS, "gosling"])
def test_it_is_one_graph_over_the_slices_to_the_bit(name: str, dtype: torch.dtype) -> None:
    network = open_network(name, dtype)
    data = batch()
    truth = gradients(network, lambda: chained(network, *data))
    ours = gradients(network, lambda: slices.backward(network, *data, size=SIZE))
    assert torch.equal(ours[0], truth[0])
    assert all(torch.equal(g, truth[1][n]) for n, g in ours[1].items())


def test_what_is_cut_off_is_noticed(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated backpropagation, which gives no state its gradient, is far outside the tolerance."""
    data = batch()[:3]
    truth = gradients(network, lambda: whole(network, *data))
    leaves = slices._leaves
    monkeypatch.setattr(slices, "_leaves", lambda vector, like, needed: leaves(vector, like, False))
    ours = gradients(network, lambda: slices.backward(network, *data, size=SIZE))
    assert apart(ours, truth) > 1e-4


def test_states_to_begin_with_get_their_gradient(network: Network) -> None:
    data, leaves = batch()[:3], []
    for run in (whole, lambda *a, **o: slices.backward(*a, size=SIZE, **o)):
        torch.manual_seed(1)
        given = [{n: torch.rand_like(x).requires_grad_() for n, x in layer.items()} for layer in network.start(2)]
        gradients(network, lambda run=run, given=given: run(network, *data, states=given))
        leaves.append([x.grad for layer in given for x in layer.values()])
    for ours, truth in zip(*leaves, strict=True):
        assert truth.norm() > 0
        assert (ours - truth).norm() <= GRADIENT_SLICES * truth.norm()


class Beside(torch.nn.Module):
    """A low-rank part beside a frozen linear, with dropout."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        rows, columns = base.weight.shape
        self.base, self.dropout = base.requires_grad_(False), torch.nn.Dropout(0.3)
        self.a, self.b = (torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((2, columns), (rows, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.dropout(x) @ self.a.T @ self.b.T


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_dropout_draws_alike_and_frozen_weights_get_nothing(network: Network, checkpointing: bool) -> None:
    network.requires_grad_(False)
    for block in network.blocks:
        block.att.key, block.ffn.key = Beside(block.att.key), Beside(block.ffn.key)
    network.checkpointing = checkpointing
    data, found = batch(), []
    for run in (chained, lambda *a: slices.backward(*a, size=SIZE)):
        torch.manual_seed(2)
        found.append(gradients(network, lambda run=run: run(network, *data)))
        found[-1][1]["drawn next"] = torch.rand(3)
    assert len(found[0][1]) == 4 * network.config.n_layer + 1
    assert all(torch.equal(g, found[0][1][n]) for n, g in found[1][1].items())


@pytest.mark.parametrize("name", ["v4", "v7"])
def test_autocast_is_the_callers(name: str) -> None:
    network, data = open_network(name, torch.float32), batch()
    wide = gradients(network, lambda: whole(network, *data))
    with torch.autocast("cpu", torch.bfloat16):
        truth = gradients(network, lambda: whole(network, *data))
        ours = gradients(network, lambda: slices.backward(network, *data, size=SIZE))
    assert apart(ours, truth) < AUTOCAST
    assert apart(ours, wide) > 1e-4


class Kept:
    """Bytes that autograd keeps for backward passes, now and at most: each storage once, parameters not."""

    def __init__(self, network: Network) -> None:
        self.held = {p.untyped_storage().data_ptr(): 1 for p in network.parameters()}
        self.now = self.most = 0

    def __enter__(self) -> Kept:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(self, t), lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class _Kept:
    """One saved tensor, until its graph is gone."""

    def __init__(self, count: Kept, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.count, self.tensor, self.key, self.size = count, tensor, storage.data_ptr(), storage.nbytes()
        count.held[self.key] = count.held.get(self.key, 0) + 1
        if count.held[self.key] == 1:
            count.now += self.size
            count.most = max(count.most, count.now)

    def __del__(self) -> None:
        self.count.held[self.key] -= 1
        if not self.count.held[self.key]:
            self.count.now -= self.size


def test_the_memory_is_that_of_one_slice(network: Network) -> None:
    """Eight slices keep what one keeps, but for the states; one pass over all keeps eight times that."""
    slice_, all_ = batch(16)[:3], batch(8 * 16)[:3]
    most = {}
    for name, run in {
        "one": lambda: whole(network, *slice_),
        "all": lambda: whole(network, *all_),
        "slices": lambda: slices.backward(network, *all_, size=16),
    }.items():
        with Kept(network) as kept:
            gradients(network, run)
        assert kept.now == 0
        most[name] = kept.most
    states = sum(x.nbytes for layer in network.start(2) for x in layer.values())
    assert most["slices"] <= most["one"] + 9 * states
    assert most["all"] > 7 * most["one"]
