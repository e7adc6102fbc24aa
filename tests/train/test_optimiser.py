"""The learning rate of a step, by figures worked out by hand, and AdamW by its formula."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from rookery.architecture import Config
from rookery.backends.torch import Network
from rookery.train import config, optimiser

RANKS = {"w": 8, "a": 8, "v": 8, "g": 8}


def settings(*overrides: str) -> config.Settings:
    base = ["train=x", "tokens=102_400", "batch=2", "ctx_len=512", "lr_init=1e-3", "lr_final=1e-4"]
    return config.load(None, [*base, *overrides])


def test_the_cosine_runs_from_the_peak_after_warm_up_to_lr_final() -> None:
    s = settings()  # 100 steps of 1,024 tokens, 10 of them warm-up
    assert s.steps == 100
    assert optimiser.rate(s, 0) == pytest.approx(1e-5)  # 1 %
    assert optimiser.rate(s, 5) == pytest.approx(1e-3 * (0.01 + 0.99 / 2))
    assert optimiser.rate(s, 10) == pytest.approx(1e-3)
    assert optimiser.rate(s, 55) == pytest.approx((1e-3 + 1e-4) / 2)  # half of the 90 steps that are left
    assert optimiser.rate(s, 40) == pytest.approx(1e-3 * (0.55 + 0.45 * math.cos(math.pi / 3)))
    assert optimiser.rate(s, 100) == pytest.approx(1e-4)


def test_v4_falls_exponentially_and_begins_at_a_fifth() -> None:
    s = settings("version=4")
    assert optimiser.rate(s, 0) == pytest.approx(2e-4)
    assert optimiser.rate(s, 55) == pytest.approx(1e-3 * 10**-0.5)
    assert optimiser.rate(s, 100) == pytest.approx(1e-4)
    assert optimiser.rate(settings("version=4", "lr_schedule=constant"), 99) == pytest.approx(1e-3)


def test_one_step_is_adamw_with_the_scales_and_decay_of_the_table() -> None:
    network = Network.fresh(Config("7", 2, 64, 32, 128, 1, RANKS), seed=1)
    s = settings("weight_decay=0.1", "adam_eps=1e-18")
    adam = optimiser.adamw(network, network.config, s.optimiser)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.full_like(p, 2.0)
    optimiser.set_rate(adam, 1e-2)
    adam.step()
    for name, p in network.named_parameters():
        scale = 2.0 if name.endswith("w0") else 1.0
        decays = name.endswith(".weight") and p.dim() == 2
        wanted = before[name] * (1 - 1e-2 * scale * 0.1 * decays) - 1e-2 * scale  # the first step is the sign
        assert torch.allclose(p, wanted, atol=1e-6), name
