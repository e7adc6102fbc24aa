"""Validation against sums written out here, samples against `Model.generate`, and that neither leaves a trace."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tolerances import LOSS

pytest.importorskip("torch")

import torch

import rookery
from rookery import tokenizer
from rookery.architecture import Config
from rookery.backends.torch import Network
from rookery.errors import InputError, TokenError
from rookery.train import validate
from rookery.train.validate import evaluate, sample

V = 256
CONFIG = Config("7", 2, 16, V, 32, 2, {"w": 4, "a": 4, "v": 4, "g": 4})


@pytest.fixture(scope="module")
def network() -> Network:
    """Random everywhere, so that every window and every token matters."""
    made = Network.fresh(CONFIG, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return made


def tokens(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(32, 127, n).astype(np.uint16)


def nats(network: Network, window: np.ndarray[Any, Any]) -> float:
    """The sum over a window [T+1], from the logits of one forward pass."""
    ids = torch.from_numpy(window.astype(np.int64))
    with torch.no_grad():
        log_p = network(ids[None, :-1])[0][0].double().log_softmax(-1)
    return -float(log_p[torch.arange(len(window) - 1), ids[1:]].sum())


@pytest.mark.parametrize("n", [2, 9, 33, 41, 100])
def test_every_token_is_predicted_once(network: Network, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "ROWS", 24)  # batches of 3 windows, and a rest
    monkeypatch.setattr(validate, "LOGITS", 5 * V)  # 5 rows of logits at a time
    held_out = tokens(n)
    found, bits = evaluate(network, held_out, 8, 0, tokenizer.Bytes(), "cpu")
    wanted = sum(nats(network, held_out[s : s + 9]) for s in range(0, n - 1, 8)) / (n - 1)
    assert found == pytest.approx(wanted, abs=LOSS)
    assert bits == pytest.approx(wanted / math.log(2), abs=LOSS)  # a token of `Bytes` is a byte


def test_a_limit_spreads_windows_over_all(network: Network) -> None:
    held_out = tokens(101)
    found, _ = evaluate(network, held_out, 8, 30, None, "cpu")
    wanted = sum(nats(network, held_out[s : s + 9]) for s in (0, 46, 92)) / 24
    assert found == pytest.approx(wanted, abs=LOSS)


def test_a_limit_below_the_context_is_one_short_window(network: Network) -> None:
    held_out = tokens(101)
    found, _ = evaluate(network, held_out, 8, 5, None, "cpu")
    assert found == pytest.approx(nats(network, held_out[:6]) / 5, abs=LOSS)


class Pairs(tokenizer.Bytes):
    """A token t is worth t % 3 bytes."""

    def token_bytes(self, id: int) -> bytes:
        if id >= 128:
            raise TokenError("none")
        return b"x" * (id % 3)


def test_bits_per_byte_count_the_bytes_of_the_predicted(network: Network) -> None:
    held_out = tokens(50)
    per_token, bits = evaluate(network, held_out, 16, 0, Pairs(), "cpu")
    size = sum(int(t) % 3 for t in held_out[1:])
    assert bits == pytest.approx(per_token * 49 / size / math.log(2), rel=1e-12)


def test_bits_per_byte_are_not_guessed(network: Network) -> None:
    held_out = tokens(20)
    assert evaluate(network, held_out, 16, 0, None, "cpu")[1] is None
    held_out[3] = 200
    assert evaluate(network, held_out, 16, 0, Pairs(), "cpu")[1] is None
    assert evaluate(network, np.full(9, 33), 16, 0, Pairs(), "cpu")[1] is None  # no byte at all


def test_too_little_is_refused(network: Network) -> None:
    with pytest.raises(InputError, match="1 tokens: 2 or more"):
        evaluate(network, tokens(1), 8, 0, None, "cpu")


def test_a_module_with_a_loss_will_do(network: Network) -> None:
    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.network(inputs)[0].flatten(0, 1), targets.flatten())

    held_out = tokens(60)
    one, other = (evaluate(n, held_out, 16, 0, None, "cpu")[0] for n in (network, Loss()))
    assert one == pytest.approx(other, abs=LOSS)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(network: Network, training: bool) -> None:
    network.train(training)
    before = torch.get_rng_state()
    evaluate(network, tokens(40), 16, 0, tokenizer.Bytes(), "cpu")
    sample(network, tokenizer.Bytes(), "Once", 4, 1)
    assert network.training == training
    assert all(block.training == training for block in network.blocks)
    assert torch.get_rng_state().equal(before)
    logits, _ = network(torch.tensor([[1, 2, 3]]))
    logits.sum().backward()  # inference tensors kept anywhere would refuse this
    assert network.emb.weight.grad is not None
    network.zero_grad(set_to_none=True)


def test_mode_comes_back_after_an_error(network: Network) -> None:
    network.train()
    with pytest.raises(IndexError):
        evaluate(network, np.full(9, V), 8, 0, None, "cpu")
    assert network.training


def test_a_sample_is_what_generate_gives(network: Network, tmp_path: Path) -> None:
    network.save(str(tmp_path / "m.safetensors"))
    model = rookery.load(tmp_path / "m.safetensors", backend="reference", tokenizer="bytes")
    for seed in (1, 2):
        wanted = model.generate("Once upon", max_tokens=40, seed=seed)
        assert sample(network, tokenizer.Bytes(), "Once upon", 40, seed) == "Once upon" + str(wanted)


def test_seeds_differ(network: Network) -> None:
    assert len({sample(network, tokenizer.Bytes(), "a", 30, seed) for seed in range(4)}) == 4


def test_an_empty_prompt(network: Network) -> None:
    with pytest.raises(InputError, match="sample_prompt is empty"):
        sample(network, tokenizer.Bytes(), "", 4, 1)

    class Ending(tokenizer.Bytes):
        end = 0

    text = sample(network, Ending(), "", 4, 1)
    assert len(text.encode("utf-8", "replace")) <= 12


def test_gaps_of_the_vocabulary_are_never_drawn(network: Network) -> None:
    class Gaps(tokenizer.Bytes):
        def token_bytes(self, id: int) -> bytes:
            if id % 2:
                raise TokenError("a gap")
            return super().token_bytes(id)

    text = sample(network, Gaps(), "b", 60, 1)
    assert not {ord(c) % 2 for c in text if ord(c) < 128} & {1}
    assert len(text) > 8


def test_documents_are_read_apart_where_training_reads_them_apart(network: Network) -> None:
    """Two documents in one window, the first ended by token 7: the second begins with an empty state."""
    held_out = tokens(17)
    held_out[8] = 7
    found, _ = evaluate(network, held_out, 16, 0, None, "cpu", end=7)
    ids = torch.from_numpy(held_out.astype(np.int64))
    with torch.no_grad():
        log_p = torch.cat([network(part[None])[0][0].double().log_softmax(-1) for part in (ids[:9], ids[9:16])])
    apart = -float(log_p[torch.arange(16), ids[1:]].mean())
    assert found == pytest.approx(apart, abs=LOSS)
    assert evaluate(network, held_out, 16, 0, None, "cpu")[0] != pytest.approx(apart, abs=1e-4)
