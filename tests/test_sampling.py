"""The sampler against slow versions of its rules, written here on their own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rookery.errors import BackendError, InputError, TokenError
from rookery.sampling import Sampler, Sampling, free_tokens

OFF: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}


def logits_of(seed: int, n: int = 50, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def probabilities(logits: Any, **chosen: Any) -> np.ndarray:
    logits = np.asarray(logits)
    return Sampler(Sampling(**{**OFF, **chosen}), len(logits), seed=0).probabilities(logits)


def slow(
    logits: Any,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
) -> np.ndarray:
    """Steps 3 to 8 in plain Python, token by token over a full sort."""
    x = [float(v) for v in logits]
    highest = max(x)
    e = [math.exp(v - highest) for v in x]
    whole = math.fsum(e)
    p = [v / whole for v in e]
    if temperature == 0 or top_p == 0:
        return np.array([1.0 if i == x.index(max(x)) else 0.0 for i in range(len(x))])
    keep = sorted(range(len(p)), key=lambda i: (-p[i], i))

    def reach(ranked: list[int], mass: dict[int, float], rank: dict[int, float], share: float) -> list[int]:
        if share >= 1:
            return ranked
        held = 0.0
        for last in ranked:
            held += mass[last]
            if held >= share:
                return [i for i in ranked if rank[i] <= rank[last]]
        return ranked

    keep = reach(keep, dict(enumerate(p)), {i: -v for i, v in enumerate(p)}, top_p)
    keep = keep[:top_k] if top_k else keep
    floor = min_p * max(p)
    keep = [i for i in keep if p[i] >= floor]
    if typical_p < 1:
        total = math.fsum(p[i] for i in keep)
        q = {i: p[i] / total for i in keep if p[i] > 0}
        entropy = -math.fsum(v * math.log(v) for v in q.values())
        distance = {i: abs(-math.log(v) - entropy) for i, v in q.items()}
        keep = reach(sorted(q, key=lambda i: (distance[i], i)), q, distance, typical_p)
    top = max(x[i] for i in keep)
    weight = np.zeros(len(x))
    for i in keep:
        weight[i] = math.exp((x[i] - top) / temperature)
    return weight / math.fsum(weight)


@pytest.mark.parametrize("chosen", [
    {}, {"temperature": 0.3}, {"temperature": 4.0}, {"temperature": 0}, {"temperature": 1e-308},
    {"top_p": 0.85}, {"top_p": 0.01}, {"top_p": 0}, {"top_p": 0.9999}, {"top_k": 1}, {"top_k": 7}, {"top_k": 10**6},
    {"min_p": 0.05}, {"min_p": 1.0}, {"typical_p": 0.9}, {"typical_p": 0.2}, {"typical_p": 0.0},
    {"top_p": 0.7, "temperature": 2.0}, {"top_p": 0.9, "top_k": 5, "min_p": 0.2, "temperature": 0.5},
    {"top_p": 0.95, "top_k": 20, "min_p": 0.02, "typical_p": 0.6, "temperature": 1.7},
])  # fmt: skip
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 60.0])
def test_each_step_against_the_slow_version(chosen: dict[str, Any], spread: float) -> None:
    for seed in range(8):
        logits = logits_of(seed, 50, spread)
        np.testing.assert_allclose(probabilities(logits, **chosen), slow(logits, **chosen), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spread", [0.001, 0.5, 3.0])
def test_a_large_vocabulary_takes_the_same_path(spread: float) -> None:
    logits = logits_of(1, 20_000, spread)
    for chosen in (
        {"top_p": 0.85},
        {"top_k": 40},
        {"min_p": 0.1},
        {"typical_p": 0.3},
        {"top_p": 0.5, "typical_p": 0.5},
    ):
        np.testing.assert_allclose(probabilities(logits, **chosen), slow(logits, **chosen), rtol=1e-8, atol=1e-13)


def test_the_cuts_come_before_the_temperature() -> None:
    """At T = 5 the four are nearly alike: cut after tempering, three of them would be needed to reach 0.6."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    got = probabilities(np.log(p), top_p=0.6, temperature=5.0)
    assert np.count_nonzero(got) == 2
    assert got[0] / got[1] == pytest.approx((0.5 / 0.3) ** 0.2)
    assert np.count_nonzero(probabilities(np.log(p) / 5.0, top_p=0.6)) == 3


def test_penalties_come_before_the_cuts() -> None:
    sampler = Sampler(Sampling(top_p=0.5, presence=10.0, temperature=1.0), 3, seed=0)
    sampler.accept(0)
    assert sampler.probabilities(np.log([0.6, 0.3, 0.1])).tolist() == [0.0, 1.0, 0.0]


def test_top_p_comes_before_top_k_and_typical_comes_last() -> None:
    """Of [.4 .3 .2 .1], top_k first would leave .4 and .3, and top_p = .5 of their mass is .4 alone."""
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert np.count_nonzero(probabilities(logits, top_p=0.5, top_k=2)) == 2
    # Typical on all four prefers .3 (surprise nearest to the entropy); after top_k = 1 only .4 is left to choose.
    assert probabilities(logits, typical_p=0.1).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert probabilities(logits, typical_p=0.1, top_k=1).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_ties() -> None:
    tied = [1.0, 3.0, 3.0, 3.0, -1.0]
    assert np.flatnonzero(probabilities(tied, top_p=0.1)).tolist() == [1, 2, 3]  # kept
    assert np.flatnonzero(probabilities(tied, top_k=2)).tolist() == [1, 2]  # the lower ids
    assert np.flatnonzero(probabilities(tied, min_p=1.0)).tolist() == [1, 2, 3]
    assert np.flatnonzero(probabilities(tied, temperature=0)).tolist() == [1]
    assert np.flatnonzero(probabilities(tied, top_p=0)).tolist() == [1]


def test_a_nucleus_that_rounding_keeps_short_of_its_share_is_everything() -> None:
    """Running sums of 1/n may end below 1; taking the first position that reaches p would then find none."""
    n = 1000
    assert np.count_nonzero(probabilities(np.zeros(n), top_p=math.nextafter(1.0, 0.0))) == n


def test_extreme_logits() -> None:
    assert probabilities([0.0, -math.inf, 3e38]).tolist() == [0.0, 0.0, 1.0]
    assert probabilities([-math.inf, 5.0, -math.inf], top_p=0.9, typical_p=0.5, temperature=2.0).tolist() == [0, 1, 0]
    hot = probabilities([0.0, -2000.0], temperature=1000.0)  # exp(-2000) is 0, exp(-2) is not
    assert hot[1] == pytest.approx(math.exp(-2) / (1 + math.exp(-2)))


finite = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))
settings_of = st.fixed_dictionaries({
    "temperature": st.floats(0.05, 5), "top_p": st.floats(0.01, 1), "top_k": st.integers(0, 45),
    "min_p": st.floats(0, 1), "typical_p": st.floats(0.01, 1),
})  # fmt: skip


@settings(deadline=None, max_examples=150, derandomize=True)
@given(finite, settings_of)
def test_properties(logits: np.ndarray, chosen: dict[str, Any]) -> None:
    before = logits.copy()
    sampler = Sampler(Sampling(**chosen), len(logits), seed=3)
    p = sampler.probabilities(logits)
    assert p.dtype == np.float64
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p >= 0).all()
    assert np.array_equal(p, sampler.probabilities(logits))
    assert p[sampler.sample(logits)] > 0
    if chosen["top_k"]:
        assert 1 <= np.count_nonzero(p) <= chosen["top_k"]
    if chosen["typical_p"] == 1:
        assert p[logits.argmax()] > 0
    assert np.array_equal(logits, before)


def test_frequencies_follow_the_probabilities() -> None:
    logits, n = logits_of(5, 12), 20_000
    sampler = Sampler(Sampling(top_p=0.9, temperature=1.3), 12, seed=11)
    p = sampler.probabilities(logits)
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=12)
    assert (counts[p == 0] == 0).all()
    seen = p > 0
    chi2 = (((counts - n * p) ** 2)[seen] / (n * p)[seen]).sum()
    freedom = int(seen.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_the_draw_is_the_inverse_of_the_running_sum_in_the_order_of_ids() -> None:
    sampler, raw = Sampler(Sampling(**OFF), 4, seed=99), np.random.PCG64(99)
    p = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 8)]
    logits = np.log([float(v) for v in p])
    for _ in range(200):
        u, total = Fraction(int(raw.random_raw()) >> 11, 2**53), Fraction(0)
        for token in range(4):
            total += p[token]
            if u < total:
                break
        assert sampler.sample(logits) == token


def test_a_token_without_weight_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """At u = 0 the first running sum is not exceeded when it is 0 itself."""
    sampler = Sampler(Sampling(**OFF), 3, seed=0)
    monkeypatch.setattr(sampler, "_bits", SimpleNamespace(random_raw=lambda: 0))
    assert sampler.sample([-math.inf, 0.0, 0.0]) == 1


# The penalty rules in closed form: what a use of token t, `age` tokens ago, still costs it.


def ages(tokens: list[int], token: int) -> list[int]:
    """How many tokens ago `token` was used, the first use first; the last token generated has age 0."""
    return [len(tokens) - 1 - at for at, other in enumerate(tokens) if other == token]


def rwkv(tokens: list[int], token: int, presence: float, frequency: float, decay: float) -> float:
    uses = [] if token in (4, 5) else ages(tokens, token)
    return presence + frequency * math.fsum(decay**age for age in uses)


def rapid(tokens: list[int], token: int, presence: float, frequency: float, decay: float) -> float:
    first, *later = ages(tokens, token)
    return presence * decay**first + frequency * math.fsum(decay**age for age in later)


def openai(tokens: list[int], token: int, presence: float, frequency: float, decay: float) -> float:
    return presence + frequency * tokens.count(token)


@pytest.mark.parametrize("rule", [rwkv, rapid, openai])
@pytest.mark.parametrize(
    ("presence", "frequency", "decay"), [(0.4, 0.3, 0.9), (0, 0.3, 0.996), (1, 0, 0.5), (-1, 2, 0)]
)
def test_penalties(rule: Any, presence: float, frequency: float, decay: float) -> None:
    chosen = Sampling(penalty=rule.__name__, presence=presence, frequency=frequency, decay=decay, **OFF)
    sampler = Sampler(chosen, 8, seed=0, free=frozenset({4, 5}))
    tokens = [1, 4, 1, 2, 4, 4, 6, 1, 1, 5, 2, 1, 6, 6, 1, 4]
    logits = logits_of(2, 8)
    for n in range(len(tokens) + 1):
        lowered = logits.astype(np.float64)
        for token in set(tokens[:n]):
            lowered[token] -= rule(tokens[:n], token, presence, frequency, decay)
        np.testing.assert_allclose(sampler.probabilities(logits), slow(lowered), rtol=1e-9)
        if n < len(tokens):
            sampler.accept(tokens[n])


def test_free_tokens_are_runs_of_space_tab_and_digits() -> None:
    vocabulary = {b" ": 1, b"\t": 2, b"7": 3, b"12": 4, b"  ": 5, b"21": 6, b"a": 7}

    def encode(text: bytes) -> list[int]:
        return [vocabulary[text]] if text in vocabulary else [7] * (len(text) + 1)

    assert free_tokens(encode) == {1, 2, 3, 4}  # neither two spaces nor 21 lies within the run


def test_bias_adds_and_bans() -> None:
    logits = logits_of(3, 6)
    raised = logits.astype(np.float64)
    raised[2] += 1.5
    raised[4] = -math.inf
    got = probabilities(logits, logit_bias={2: 1.5, 4: -math.inf})
    np.testing.assert_allclose(got, slow(raised), rtol=1e-12)
    assert got[4] == 0


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_a_seed_gives_the_same_tokens_in_another_process(seed: int) -> None:
    program = (
        "import numpy as np; from rookery import sampling as s\n"
        f"one = s.Sampler(s.Sampling(temperature=1.5, top_p=0.9), 40, seed={seed}); x = np.arange(40) % 7 * 0.5\n"
        "print([one.sample(x) for _ in range(50)])"
    )
    runs = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(2)}
    one = Sampler(Sampling(temperature=1.5, top_p=0.9), 40, seed=seed)
    assert runs == {(str([one.sample(np.arange(40) % 7 * 0.5) for _ in range(50)]) + "\n").encode()}


def test_a_seed_gives_these_tokens() -> None:
    """Written down once: a change here breaks everyone's seeds, so it must be meant."""
    one = Sampler(Sampling(**OFF), 256, seed=1)
    assert [one.sample(np.zeros(256)) for _ in range(8)] == [131, 243, 36, 242, 79, 108, 211, 104]


def test_without_a_seed_one_is_drawn_and_kept() -> None:
    one, other = Sampler(Sampling(), 256), Sampler(Sampling(), 256)
    assert one.seed != other.seed
    again = Sampler(Sampling(**OFF), 256, seed=one.seed)
    one = Sampler(Sampling(**OFF), 256, seed=again.seed)
    assert [one.sample(np.zeros(256)) for _ in range(9)] == [again.sample(np.zeros(256)) for _ in range(9)]


@pytest.mark.parametrize("penalty", ["rwkv", "rapid", "openai"])
def test_a_restored_sampler_goes_on_exactly(penalty: Any) -> None:
    chosen = Sampling(penalty=penalty, presence=0.7, frequency=0.3, decay=0.97, temperature=1.2, top_p=0.95)
    one = Sampler(chosen, 30, seed=5, free=frozenset({3}))

    def walk(sampler: Sampler, steps: int) -> list[int]:
        tokens = []
        for step in range(steps):
            tokens.append(sampler.sample(logits_of(step, 30)))
            sampler.accept(tokens[-1])
        return tokens

    walk(one, 60)
    other = Sampler(chosen, 30, seed=123, free=frozenset({3}))
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    assert np.array_equal(other.probabilities(logits_of(0, 30)), one.probabilities(logits_of(0, 30)))
    assert walk(other, 60) == walk(one, 60)


@pytest.mark.parametrize("state", [
    {}, {"seed": 1, "draws": 0}, {"seed": -1, "draws": 0, "penalties": []}, {"seed": 1, "draws": 0, "penalties": [3]},
    {"seed": 1, "draws": 0, "penalties": [[1, "x"]]}, {"seed": 1, "draws": 1.5, "penalties": []},
])  # fmt: skip
def test_a_damaged_state_is_refused_and_changes_nothing(state: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(), 9, seed=4)
    sampler.accept(2)
    before = sampler.state()
    with pytest.raises(InputError):
        sampler.restore(state)
    assert sampler.state() == before
    with pytest.raises(TokenError):
        sampler.restore({"seed": 1, "draws": 0, "penalties": [[9, 1.0]]})
    assert sampler.state() == before


@pytest.mark.parametrize(("name", "value"), [
    *[(name, bad) for name in ("temperature", "top_p", "min_p", "typical_p", "presence", "frequency", "decay")
      for bad in (math.nan, math.inf, -math.inf, True, "1", None, 10**400)],
    ("temperature", -0.1), ("top_p", 1.01), ("top_p", -0.01), ("min_p", 2), ("typical_p", -1), ("decay", 1.1),
    ("presence", 101), ("frequency", -101), ("top_k", -1), ("top_k", 1.5), ("top_k", True), ("top_k", 2**63),
    ("penalty", "cuda"), ("penalty", None), ("logit_bias", 3), ("logit_bias", {0: math.nan}), ("logit_bias", {0: 101}),
    ("logit_bias", {-1: 0.0}), ("logit_bias", {0.5: 0.0}),
])  # fmt: skip
def test_a_bad_setting_is_one_line_with_its_name_and_range(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert "wanted" in message
    assert "\n" not in message


def test_numpy_numbers_are_numbers() -> None:
    chosen = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), min_p=0, logit_bias={np.int64(1): 2})
    assert chosen == Sampling(temperature=0.5, top_k=3, min_p=0.0, logit_bias={1: 2.0})
    assert type(chosen.temperature) is float
    assert type(chosen.top_k) is int
    assert hash(chosen) == hash(Sampling(temperature=0.5, top_k=3))


@pytest.mark.parametrize(("logits", "error"), [
    ([0.0, math.nan, 1.0], BackendError), ([0.0, math.inf, 1.0], BackendError), ([-math.inf] * 3, BackendError),
    ([0.0, 1.0], InputError), ([[0.0, 1.0, 2.0]], InputError), (3.0, InputError),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0, 1])
def test_bad_logits(logits: Any, error: type[Exception], temperature: float) -> None:
    with pytest.raises(error) as caught:
        Sampler(Sampling(temperature=temperature), 3, seed=0).sample(logits)
    assert "\n" not in str(caught.value)


def test_banning_everything_is_an_error() -> None:
    with pytest.raises(InputError, match="bans every token"):
        probabilities([0.0, -math.inf], logit_bias={0: -math.inf})


@pytest.mark.parametrize("token", [-1, 3, 1.0, True, "a", None])
def test_a_token_outside_the_vocabulary(token: Any) -> None:
    with pytest.raises(TokenError):
        Sampler(Sampling(), 3, seed=0).accept(token)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1"])
def test_a_bad_seed(seed: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        Sampler(Sampling(), 3, seed=seed)


def test_a_bias_outside_the_vocabulary() -> None:
    with pytest.raises(TokenError, match="logit_bias"):
        Sampler(Sampling(logit_bias={3: 1.0}), 3)


def test_settings_survive_json() -> None:
    made = Sampling(temperature=0.3, top_k=7, penalty="rapid", logit_bias={5: -math.inf, 9: 1.5})
    assert Sampling.of_plain(json.loads(json.dumps(made.plain(), allow_nan=False))) == made
