"""By task: recall by key tells matrix states from averages; a tiny RWKV-7 reverses digits. The tasks are examples."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

TASKS = str(Path(__file__).resolve().parents[2] / "examples" / "tasks")


@pytest.fixture
def mqar(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TASKS)
    import mqar

    return mqar


@pytest.fixture
def reverse(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TASKS)
    import reverse

    return reverse


def test_an_answer_is_the_digits_backwards_and_an_end(reverse: Any) -> None:
    tokens, targets = reverse.draw(torch.tensor([1, 3, 4]), 4, torch.Generator().manual_seed(1))
    assert tokens.shape == targets.shape == (3, 9)
    for n, row, wanted in zip((1, 3, 4), tokens.tolist(), targets.tolist(), strict=True):
        digits = row[:n]
        assert max(digits) < 10
        text = [*digits, reverse.EQUALS, *reversed(digits), *[reverse.END] * 9]
        assert row == text[:9]
        assert wanted == [-1] * n + [*reversed(digits), reverse.END] + [-1] * (8 - 2 * n)


@pytest.mark.parametrize(
    ("version", "low", "high"),
    [("4", 0.0, 0.5), pytest.param("6", 0.9, 1.0, marks=pytest.mark.slow), ("7", 0.9, 1.0)],
)
def test_four_pairs_are_recalled_by_matrix_states_alone(mqar: Any, version: str, low: float, high: float) -> None:
    """A guess among the four values is right in a quarter of cases."""
    assert low <= mqar.run(version, seed=1, pairs=4, steps=200) <= high


def test_a_tiny_network_reverses_up_to_eight_digits(reverse: Any) -> None:
    network = reverse.learn(8, steps=400, batch=32)
    assert sum(p.numel() for p in network.parameters()) < 40_000
    assert statistics.mean(reverse.accuracy(network, n, rows=64) for n in range(1, 9)) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("version", "low", "high"), [("4", 0.0, 0.5), ("5.2", 0.9, 1), ("6", 0.9, 1), ("7", 0.9, 1)])
def test_eight_pairs_separate_v4_from_the_rest_at_every_seed(mqar: Any, version: str, low: float, high: float) -> None:
    found = [mqar.run(version, seed) for seed in range(1, 6)]
    assert low <= min(found)
    assert max(found) <= high


@pytest.mark.slow
def test_rows_of_up_to_twenty_digits_are_reversed(reverse: Any) -> None:
    network = reverse.learn(20, steps=3000)
    assert statistics.mean(reverse.accuracy(network, n) for n in range(1, 21)) > 0.99
