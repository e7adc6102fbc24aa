"""What a trainer asks of the network: resets, checkpointing, autocast, compiled blocks, hidden states and the head."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from models import ALL, random_model

from rookery import weights
from rookery.backends.layout import Layout
from rookery.backends.torch import Network
from tolerances import AUTOCAST, GRADIENT_CHUNKED, LOGITS_CHUNKED

Tensor = torch.Tensor
TOKENS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
RESETS = torch.zeros(2, 40, dtype=torch.bool)
RESETS[0, [7, 8]] = RESETS[1, [0, 33]] = True


@pytest.fixture(params=ALL, ids=lambda p: f"v{p[0]}")
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    version, heads = request.param
    return Network.of(weights.load(random_model(tmp_path / "x.safetensors", version, heads, width=80, hidden=160)))


def gradients(network: Network, **given: Any) -> tuple[float, dict[str, Tensor]]:
    network.zero_grad()
    logits, _ = network(TOKENS[:, :-1], **given)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), TOKENS[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: p.grad for name, p in network.named_parameters()}


def compare(ours: tuple[float, dict[str, Tensor]], truth: tuple[float, dict[str, Tensor]], tolerance: float) -> None:
    assert ours[0] == pytest.approx(truth[0], rel=tolerance)
    for name, gradient in ours[1].items():
        assert (gradient - truth[1][name]).norm() <= tolerance * truth[1][name].norm(), name


def test_resets_part_documents(network: Network) -> None:
    """Logits of packed documents are those of each alone, token shift included; the states are the last ones'."""
    packed, states = network(TOKENS, resets=RESETS)
    for row, cuts in enumerate(([0, 7, 8, 40], [0, 33, 40])):
        for begin, end in pairwise(cuts):
            alone, last = network(TOKENS[row : row + 1, begin:end])
            assert (alone[0] - packed[row, begin:end]).abs().max() <= LOGITS_CHUNKED
        for ours, wanted in zip(states, last, strict=True):
            for name, piece in wanted.items():
                assert (ours[name][row] - piece[0]).norm() <= GRADIENT_CHUNKED * piece.norm() + 1e-6


def test_a_reset_at_the_first_token_shuts_the_given_state_out(network: Network) -> None:
    _, states = network(TOKENS)
    begun, first = network(TOKENS, resets=RESETS)[0], torch.zeros_like(RESETS)
    first[:, 0] = True
    assert (network(TOKENS, states, RESETS | first)[0] - begun).abs().max() <= LOGITS_CHUNKED
    assert (network(TOKENS, states)[0] - begun).abs().max() > LOGITS_CHUNKED


def test_checkpointing_changes_no_gradient(network: Network) -> None:
    truth = gradients(network, resets=RESETS[:, :-1])
    network.checkpointing = True
    compare(gradients(network, resets=RESETS[:, :-1]), truth, 1e-7)


def test_checkpointing_keeps_less(network: Network) -> None:
    def kept() -> int:
        sizes: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            sizes[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            network(TOKENS)
        return sum(sizes.values()) - sum(p.numel() for p in network.parameters() if p.data_ptr() in sizes)

    whole = kept()
    network.checkpointing = True
    assert kept() < whole / 3


def test_the_head_over_the_hidden_states_is_the_network(network: Network) -> None:
    hidden, _ = network.hidden(TOKENS, resets=RESETS)
    assert hidden.shape == (2, 40, network.config.n_embd)
    assert torch.equal(network.head(hidden), network(TOKENS, resets=RESETS)[0])


def test_packed_rows_are_even_rows(network: Network) -> None:
    """A ragged step runs token by token; its sequences are those of an even one."""
    even, states = network(TOKENS)
    rows = torch.cat([TOKENS[0], TOKENS[1, :13]])
    ragged, after = network.rows(Layout((40, 13)), rows)
    assert (ragged[:40] - even[0]).abs().max() <= LOGITS_CHUNKED
    assert (ragged[40:] - even[1, :13]).abs().max() <= LOGITS_CHUNKED
    for ours, wanted in zip(after, states, strict=True):
        assert (ours["wkv"][0] - wanted["wkv"][0]).norm() <= GRADIENT_CHUNKED * wanted["wkv"][0].norm()


def test_autocast_narrows_the_matrix_products_alone(network: Network) -> None:
    """bf16 keeps 8 bits: logits and gradients move by that; the residual stream and every state stay float32."""
    truth = gradients(network)
    heard: dict[str, torch.dtype] = {}

    def listen(name: str, x: Tensor) -> Tensor:
        heard[name.split(".", 2)[2]] = x.dtype
        return x

    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(network)
        _, states = network.rows(Layout((40, 40)), TOKENS.flatten(), listener=listen)
    assert heard["att.w"] == heard["resid"] == torch.float32
    assert heard["ffn.k"] == torch.bfloat16
    assert {piece["wkv"].dtype for piece in states} == {torch.float32}
    assert {g.dtype for g in ours[1].values()} == {torch.float32}
    compare(ours, truth, AUTOCAST)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own doings
def test_compiled_blocks_give_the_same_loss(network: Network) -> None:
    """Without a break in the graph, the WKV one node of it."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler here")
    truth = gradients(network, resets=RESETS[:, :-1])
    network.compile_blocks()
    compare(gradients(network, resets=RESETS[:, :-1]), truth, GRADIENT_CHUNKED)
