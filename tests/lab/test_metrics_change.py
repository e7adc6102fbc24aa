"""How much and how steadily a state changes: the first definitions to the letter, and the better ones."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery import State, errors, lab
from rookery.lab import metrics
from rookery.lab.metrics import change
from tolerances import METRIC, WHITE_NOISE

FIXTURES = Path(__file__).parents[1] / "fixtures"


def read(version: str, tokens: list[int]) -> State:
    return rookery.load(FIXTURES / f"{version}.safetensors", backend="reference").forward(tokens)[1]


@pytest.mark.parametrize("version", ["v5.2", "v6", "v7"])
def test_state_delta_is_the_states_own(version: str) -> None:
    a, b = read(version, [1, 2]), read(version, [1, 3])
    assert lab.state_delta(a, b) == a.delta(b) > 0
    slow = math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a.flat, b.flat, strict=True)) / a.flat.size)
    assert lab.state_delta(a.vector(), b.vector()) == pytest.approx(slow, rel=METRIC)
    assert a.delta(b) == pytest.approx(slow, rel=METRIC)


def test_state_delta_of_v4_warns_and_is_still_the_states_own() -> None:
    a, b = read("v4", [1, 2]), read("v4", [1, 3])
    with pytest.warns(UserWarning, match="exponents"):
        assert lab.state_delta(a, b) == a.delta(b)


def test_equal_v4_states_compare_equal_whatever_their_exponents() -> None:
    a = read("v4", [1, 2, 3])
    b = a.copy()
    for i in range(b.config.n_layer):
        b.layer(i).wkv[:2] *= 2.0**-3  # exact, and the exponent's share of it to float32
        b.layer(i).wkv[2] += 3 * math.log(2)
    assert a.delta(b) > 0.1
    rows = metrics.compare(a, b)
    assert max(row.rel_delta for row in rows.values()) == 0
    assert lab.rel_delta(a, b) == 0
    c = read("v4", [1, 2, 4])
    assert metrics.compare(a, c)["layers.0.wkv"].rel_delta > 0


def test_coherence_is_one_over_one_plus_the_population_variance() -> None:
    assert lab.coherence([1.0, 2.0, 3.0]) == pytest.approx(1 / (1 + 2 / 3), rel=METRIC)
    assert lab.coherence([50.0, 2.0, 3.0], window=2) == pytest.approx(1 / (1 + 1 / 4), rel=METRIC)
    assert lab.coherence([0.3] * 4) == 1
    assert math.isnan(lab.coherence([1.0, math.nan, 1.0]))
    assert lab.coherence([math.nan, 1.0, 1.0], window=2) == 1


@pytest.mark.parametrize(
    ("n", "ticks", "printed"), [(512, 4000, 0.9980), (5000, 2000, 0.9998), (100_000, 300, 0.99999)]
)
def test_white_noise_scores_near_1(n: int, ticks: int, printed: float) -> None:
    rng = np.random.default_rng(0)
    before, deltas = rng.standard_normal(n), []
    for _ in range(ticks):
        now = rng.standard_normal(n)
        deltas.append(lab.state_delta(before, now))
        before = now
    score = lab.coherence(deltas, n=n)
    assert score == pytest.approx(printed, abs=6e-5)
    assert 1 / score - 1 == pytest.approx(1 / metrics.white_noise_coherence(n) - 1, rel=WHITE_NOISE)
    scaled = [100 * d for d in deltas]  # the very same states in other units
    assert lab.coherence(scaled) == pytest.approx(metrics.white_noise_coherence(n, 100.0), rel=WHITE_NOISE)
    assert lab.coherence_cv(scaled).coherence_cv == pytest.approx(lab.coherence_cv(deltas).coherence_cv, rel=METRIC)


def test_the_expected_score_of_white_noise_against_the_exact_variance_of_chi() -> None:
    n = 40
    chi = math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
    exact = 2 / n * (n - chi * chi)
    assert 1 / metrics.white_noise_coherence(n) - 1 == pytest.approx(exact, rel=1 / n**2)


def test_coherence_tells_of_white_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "_told", False)
    with pytest.warns(UserWarning, match=r"white noise near 1 \(0.9981 for n=512"):
        lab.coherence([1.0, 2.0])
    lab.coherence([1.0, 2.0])  # a second warning would be an error here


def test_coherence_warns_of_captures_of_several_sizes() -> None:
    with pytest.warns(UserWarning, match="77 to 608335 numbers in one run"):
        lab.coherence([1.0, 2.0], n=[77, 608335])
    with pytest.warns(UserWarning, match=r"rwkv n=512: 0.998052, physics n=5000: 0.999800"):
        scores = metrics.coherences({"rwkv": [1.0, 2.0], "physics": [1.0, 1.0]}, {"rwkv": 512, "physics": 5000})
    assert scores == {"rwkv": pytest.approx(0.8), "physics": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.coherences({"a": [1.0], "b": [2.0]}, {"a": 8, "b": 8})


def test_rel_delta_has_no_unit() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 50))
    expected = np.linalg.norm(a - b) / ((np.linalg.norm(a) + np.linalg.norm(b)) / 2)
    assert lab.rel_delta(a, b) == pytest.approx(expected, rel=METRIC)
    assert lab.rel_delta(1e6 * a, 1e6 * b) == pytest.approx(expected, rel=METRIC)
    assert lab.rel_delta(a, -a) == pytest.approx(2, rel=METRIC)
    assert lab.rel_delta(np.zeros(3), np.zeros(3)) == 0


def test_coherence_cv_goes_with_its_mean() -> None:
    values = np.array([0.1, 0.2, 0.6])
    steady = lab.coherence_cv(values)
    assert steady.mean == pytest.approx(0.3)
    assert steady.coherence_cv == pytest.approx(1 / (1 + values.var() / 0.09), rel=METRIC)
    assert lab.coherence_cv([9.0, 0.5, 0.5], window=2) == (1.0, 0.5)
    assert lab.coherence_cv([0.0, 0.0]) == (1.0, 0.0)
    assert math.isnan(lab.coherence_cv([0.1, math.nan]).coherence_cv)


def test_a_table_has_a_row_for_every_component() -> None:
    a = {"x": np.array([3.0, 4.0]), "y": np.zeros((2, 2), np.float32)}
    b = {"x": np.array([3.0, 0.0]), "y": np.array([[1, np.nan], [np.inf, 2]], np.float32)}
    rows = metrics.compare(a, b)
    row = rows["x"]
    assert (row.n, row.nonfinite, row.max_abs) == (2, 0, 3.0)
    assert row.delta == pytest.approx(4 / math.sqrt(2))
    assert row.rel_delta == pytest.approx(4 / 4)
    assert row.cosine == pytest.approx(9 / 15)
    assert row.rms == pytest.approx(3 / math.sqrt(2))
    assert rows["y"].nonfinite == 2
    assert rows["y"].n == 4
    assert math.isnan(rows["y"].delta)  # reported, not dropped
    with pytest.raises(errors.InputError, match="only one side has: y"):
        metrics.compare({"x": a["x"]}, a)


def test_a_table_of_states_has_their_pieces() -> None:
    a, b = read("v7", [1, 2]), read("v7", [2, 2])
    rows = metrics.compare(a, b)
    assert {name: row.delta for name, row in rows.items()} == pytest.approx(a.diff(b))


def test_standardised_delta_is_in_deviations() -> None:
    a, b, sd = np.array([1.0, 2.0, 5.0]), np.array([2.0, 6.0, 5.0]), np.array([1.0, 2.0, 0.0])
    assert metrics.standardised_delta(a, b, sd) == pytest.approx(math.sqrt((1 + 4) / 3))
    assert metrics.standardised_delta(a, b + np.eye(3)[2], sd) == math.inf


def test_what_cannot_be_compared() -> None:
    with pytest.raises(errors.InputError, match="77 numbers against 308"):
        lab.state_delta(np.zeros(77), np.zeros(308))
    with pytest.raises(errors.InputError, match="empty"):
        lab.rel_delta([], [])
    with pytest.raises(errors.InputError, match="complex"):
        lab.rel_delta([1j], [1j])
    with pytest.raises(errors.InputError, match="no deltas"):
        lab.coherence([])
    with pytest.raises(errors.InputError, match="window 0"):
        lab.coherence([1.0], window=0)
    with pytest.raises(errors.StateError):
        lab.state_delta(read("v7", [1]), read("v6", [1]))


def test_the_lab_is_not_loaded_by_the_package_and_loads_neither_torch_nor_plots() -> None:
    code = (
        "import sys, rookery; assert not any(m.startswith('rookery.lab') for m in sys.modules); import rookery.lab; "
        "assert 'rookery.lab.metrics' not in sys.modules; rookery.lab.metrics.kl; "
        "assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_of_the_lab_is_there() -> None:
    for name in lab.__all__:
        assert getattr(lab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'mood'"):
        _ = lab.mood
