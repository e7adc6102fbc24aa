"""A network that is saved loses nothing of what it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rookery
from rookery import weights
from rookery.backends.torch import Network

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_the_tuned_state_is_read_and_kept(tmp_path: Path) -> None:
    source = FIXTURES / "v6-timestate.safetensors"
    network = Network.of(weights.load(source))
    wanted, _ = rookery.load(source).forward([1, 2, 3], every=True)
    got = network(torch.tensor([[1, 2, 3]]))[0][0].detach().numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    network.save(str(tmp_path / "x.safetensors"))
    assert np.array_equal(rookery.load(tmp_path / "x.safetensors").forward([1, 2, 3], every=True)[0], wanted)


def test_the_epsilon_is_kept(tmp_path: Path) -> None:
    Network.of(weights.load(FIXTURES / "v5.2.safetensors", group_norm_eps=1e-5)).save(str(tmp_path / "x.safetensors"))
    assert weights.load(tmp_path / "x.safetensors").config.group_norm_eps == 1e-5
