"""From logits to a token: one sampler for the whole house.

The order of operations, the same for every caller and back end:

1. **penalties** on the tokens generated so far (never the prompt's), by one of three rules, see `Sampling`
2. **logit_bias** is added (-inf bans a token)
3. **softmax**, at temperature 1
4. **top_p**: the most likely tokens whose probabilities first reach top_p; every token tied with the last one stays
5. **top_k**: of those, the k most likely; of tied tokens the lower ids
6. **min_p**: of those, the tokens with at least min_p times the probability of the most likely one
7. **typical_p**: of those, renormalised, the tokens whose surprise lies nearest the entropy, until they hold typical_p
   of the mass; every token tied with the last one stays (Meister et al. 2023, "Locally typical sampling")
8. **temperature**: what is left is raised to the power 1/T and normalised
9. one uniform number picks a token, see `Sampler`

This is the RWKV convention (ChatRWKV and the `rwkv` package: 1, 3, 4, 5, 8): the cuts see *untempered* probabilities,
so a temperature changes the odds among the survivors, never who survives. OpenAI, vLLM and Hugging Face divide the
logits by T first: there a high T widens the nucleus too, and T = 2 with top_p = 0.5 is much wilder than here. llama.cpp
tempers last as we do, but cuts by top_k and typical_p before top_p. At T = 1 with top_p alone all of them agree.

temperature = 0 is greedy: the likeliest token after steps 1 and 2, the lowest id of ties, and no random number is used.
top_p = 0 is the same, which makes the temperature moot. top_p = 1, top_k = 0, min_p = 0 and typical_p = 1 each switch
their step off.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from rookery.errors import BackendError, InputError, TokenError

Float64: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Penalty: TypeAlias = Literal["rwkv", "rapid", "openai"]

FREE = b" \t0123456789"
_DEPTH, _BUCKETS = 32.0, 1024
_LEAST = -1000.0  # far below where exp gives 0; keeps -inf out of the entropy
_RANGES = {
    "temperature": (0.0, math.inf), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "typical_p": (0.0, 1.0),
    "presence": (-100.0, 100.0), "frequency": (-100.0, 100.0), "decay": (0.0, 1.0),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose the next token; the module's docstring gives the order. Raises InputError for a value out of range.

    The defaults are those of the `rwkv` package (temperature 1, top_p 0.85) without its penalties of 0.2: a base model,
    above all one that writes byte by byte, has to repeat itself, and forbidding it spoils the spelling before it cures
    any loop. Chat profiles switch penalties on.

    penalty: what each generated token loses from its logit.
        "rwkv" (the `rwkv` package): presence + count * frequency. Counts shrink by `decay` a step, presence does not;
        the sampler's `free` tokens (space, tab, digits) lose presence but are never counted.
        "rapid" (ai00, Rapid-Sampling): one number a token, presence at its first use, frequency more at each later one,
        all shrinking by `decay` a step. With presence = 0 Rapid-Sampling never starts to count; we do, as ai00.
        "openai": presence + count * frequency; nothing shrinks and nothing is free.
    decay: factor per generated token; 0.996 halves a count in 173 tokens. Unused by "openai".
    logit_bias: token id -> what to add to its logit, -100 to 100, or -inf to ban it.
    """

    temperature: float = 1.0
    top_p: float = 0.85
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    penalty: Penalty = "rwkv"
    decay: float = 0.996
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        object.__setattr__(self, "top_k", _integer("top_k", self.top_k, 0, 2**63 - 1))
        if self.penalty not in get_args(Penalty):
            raise InputError(f"penalty={self.penalty!r}: wanted one of {', '.join(get_args(Penalty))}")
        if not isinstance(self.logit_bias, Mapping):
            raise InputError(f"logit_bias={self.logit_bias!r}: wanted a mapping of token ids to numbers")
        bias = {_integer("logit_bias token", t, 0, 2**31 - 1): _bias(t, v) for t, v in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", bias)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_p == 0.0

    def plain(self) -> dict[str, Any]:
        """All settings as JSON values; biases as text, for one may be -inf. `of_plain` reads them."""
        bias = {str(token): repr(value) for token, value in self.logit_bias.items()}
        return {name: getattr(self, name) for name in self.names()} | {"logit_bias": bias}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Sampling:
        """The settings that `plain` wrote."""
        bias = {int(token): float(value) for token, value in plain["logit_bias"].items()}
        return cls(**{**plain, "logit_bias": bias})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings, in the order of the fields."""
        return tuple(f.name for f in fields(cls))


def _number(name: str, value: Any, low: float, high: float) -> float:
    wanted = f"a number from {low:g} to {high:g}" if high < math.inf else f"a finite number of {low:g} or more"
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and low <= number <= high:
            return number
    raise InputError(f"{name}={value!r}: wanted {wanted}")


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return int(value)
    raise InputError(f"{name}={value!r}: wanted a whole number of {low} or more and at most {high}")


def _bias(token: Any, value: Any) -> float:
    return -math.inf if value == -math.inf else _number(f"logit_bias[{token}]", value, -100.0, 100.0)


def free_tokens(encode: Callable[[bytes], Sequence[int]]) -> frozenset[int]:
    """Ids of the tokens that rule "rwkv" does not count: those whose bytes are a run within space, tab, 0123456789.

    encode: the tokenizer's, which makes one token of such a run exactly if there is one.
    """
    runs = (FREE[i:j] for i in range(len(FREE)) for j in range(i + 1, len(FREE) + 1))
    return frozenset(ids[0] for ids in map(encode, runs) if len(ids) == 1)


class _Penalties:
    """What each generated token has earned so far. Memory grows with the distinct tokens, so never beyond V."""

    def __init__(self, sampling: Sampling, free: frozenset[int]) -> None:
        self._sampling = sampling
        self._decay = 1.0 if sampling.penalty == "openai" else sampling.decay
        self._free = free if sampling.penalty == "rwkv" else frozenset()
        self.set([])

    def set(self, table: Iterable[tuple[int, float]]) -> None:
        rows = list(table)
        self.ids: Ids = np.array([token for token, _ in rows], np.int64)
        self.values: Float64 = np.array([value for _, value in rows], np.float64)
        self._row = {token: row for row, (token, _) in enumerate(rows)}

    def amounts(self) -> Float64:
        """What to subtract from the logits of `ids`."""
        if self._sampling.penalty == "rapid":
            return self.values
        return self._sampling.presence + self._sampling.frequency * self.values

    def add(self, token: int) -> None:
        if not (self._sampling.presence or self._sampling.frequency):
            return
        if self._sampling.penalty == "rapid":
            first, later = self._sampling.presence, self._sampling.frequency
        else:
            first = later = 0.0 if token in self._free else 1.0
        self.values *= self._decay
        if token in self._row:
            self.values[self._row[token]] += later
        else:
            self._row[token] = len(self.ids)
            self.ids = np.append(self.ids, token)
            self.values = np.append(self.values, first)


class _Scratch(threading.local):
    """Rows of numbers kept by each thread: fresh ones would cost more in page faults than the arithmetic does."""

    def __init__(self) -> None:
        self._rows: Float64 = np.empty((5, 0))
        self._whole = np.empty(0, np.int32)

    def rows(self, size: int) -> Float64:
        """[5,size]: logits, their masses, both again for those that are left, and a row for `cutoff`."""
        if self._rows.shape[1] < size:
            self._rows, self._whole = np.empty((5, size)), np.empty(size, np.int32)
        return self._rows[:, :size]

    def whole(self, size: int) -> npt.NDArray[np.int32]:
        """[size], after `rows`."""
        return self._whole[:size]


_scratch = _Scratch()


class Sampler:
    """Draws the tokens of one sequence: `sample` proposes one, `accept` tells which one was taken.

    vocab: V, the number of logits. seed: 0 to 2^64 - 1; drawn anew when None, and kept in `.seed` either way.
    free: token ids that penalty rule "rwkv" never counts, see `free_tokens`.

    The random numbers are the raw outputs of PCG64(seed), one a token, their upper 53 bits over 2^53 giving u in
    [0, 1). The survivors' weights are summed in float64 in the order of their ids; taken is the first token whose
    running sum exceeds u times the total. So equal logits and seed give equal tokens on every machine, unless u falls
    within rounding (about 1e-15) of a boundary and two machines' `exp` differ in the last bit.
    """

    def __init__(
        self, sampling: Sampling, vocab: int, seed: int | None = None, free: frozenset[int] = frozenset()
    ) -> None:
        self.sampling = sampling
        self.vocab = _integer("vocab", vocab, 1, 2**31 - 1)
        self.seed = secrets.randbits(32) if seed is None else _integer("seed", seed, 0, 2**64 - 1)
        for token in sampling.logit_bias:
            self._check(token, "logit_bias")
        self._bias_ids: Ids = np.array(list(sampling.logit_bias), np.int64)
        self._bias: Float64 = np.array(list(sampling.logit_bias.values()), np.float64)
        self._penalties = _Penalties(sampling, free)
        self._draws = 0
        self._bits = np.random.PCG64(self.seed)

    def sample(self, logits: npt.ArrayLike) -> int:
        """A token for `logits` [V], which are left as they are. Raises BackendError when they are no finite numbers."""
        ids, weights = self._survivors(self._adjusted(logits))
        if len(ids) == 1 and self.sampling.greedy:
            return int(ids[0])
        sums = np.cumsum(weights)
        self._draws += 1
        u = (int(self._bits.random_raw()) >> 11) * 2.0**-53
        return int(ids[np.searchsorted(sums, u * sums[-1], side="right")])

    def probabilities(self, logits: npt.ArrayLike) -> Float64:
        """The distribution that `sample` would draw from: float64 [V], sum 1. Uses up no random number."""
        ids, weights = self._survivors(self._adjusted(logits))
        full = np.zeros(self.vocab)
        full[ids] = weights / weights.sum()
        return full

    def accept(self, token: int) -> None:
        """Count `token` as generated. Raises TokenError outside the vocabulary."""
        self._check(token, "accept")
        self._penalties.add(int(token))

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on exactly from here; plain JSON values."""
        table = zip(self._penalties.ids.tolist(), self._penalties.values.tolist(), strict=True)
        return {"seed": self.seed, "draws": self._draws, "penalties": [list(row) for row in table]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of a sampler with the same settings. Raises InputError if it is none."""
        try:
            seed = _integer("seed", state["seed"], 0, 2**64 - 1)
            draws = _integer("draws", state["draws"], 0, 2**63 - 1)
            table = [(int(token), float(value)) for token, value in state["penalties"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the state of a sampler: {error!r}") from None
        for token, _ in table:
            self._check(token, "penalties")
        self.seed, self._draws = seed, draws
        self._bits = np.random.PCG64(seed).advance(draws)
        self._penalties.set(table)

    def _check(self, token: Any, where: str) -> None:
        if not isinstance(token, Integral) or isinstance(token, bool) or not 0 <= int(token) < self.vocab:
            raise TokenError(f"{where}: token {token!r} is outside the vocabulary, 0 to {self.vocab - 1}")

    def _adjusted(self, logits: npt.ArrayLike) -> Float64:
        """Steps 1 and 2, in float64, and shifted so that the largest is 0."""
        given = np.asarray(logits)
        if given.shape != (self.vocab,):
            raise InputError(f"logits have shape {given.shape}: wanted ({self.vocab},)")
        x: Float64 = _scratch.rows(self.vocab)[0]
        np.copyto(x, given)
        top = float(x.max())
        if not math.isfinite(top):
            what = "every logit is -inf" if top == -math.inf else f"logit {top} at token {int(x.argmax())}"
            raise BackendError(f"{what}: the weights, the state or the back end is damaged")
        if self._penalties.ids.size:
            x[self._penalties.ids] -= self._penalties.amounts()
        if self._bias_ids.size:
            x[self._bias_ids] += self._bias
        top = float(x.max())
        if top == -math.inf:
            raise InputError("logit_bias bans every token that the model allows")
        x -= top
        return x

    def _survivors(self, x: Float64) -> tuple[Ids, Float64]:
        """Steps 3 to 8 on shifted logits [V]: the ids left, ascending, and their weights (not normalised)."""
        s = self.sampling
        if s.greedy:
            return np.array([x.argmax()], np.int64), np.ones(1)
        mass = np.exp(x, out=_scratch.rows(self.vocab)[1])
        total = mass.sum()
        # One pass drops most of V: by min_p (the largest mass is exp(0) = 1; like top_p and top_k it keeps the largest
        # only, so that the order of the three is free), and all below half the mean of the mass that top_p cuts away.
        ids = np.flatnonzero(mass >= max(s.min_p, 0.5 * (1.0 - s.top_p) * total / self.vocab))
        left = _scratch.rows(self.vocab)[2:4, : len(ids)]
        x, mass = np.take(x, ids, out=left[0], mode="clip"), np.take(mass, ids, out=left[1], mode="clip")
        if s.top_p < 1.0:
            ids, x, mass = _only(x >= cutoff(x, mass, s.top_p * total), ids, x, mass)
        if 0 < s.top_k < len(ids):
            ids, x, mass = _only(_largest(x, s.top_k), ids, x, mass)
        if s.typical_p < 1.0:
            ids, x, mass = _only(_typical(x, mass, s.typical_p), ids, x, mass)
        if s.temperature == 1.0:
            return ids, mass
        with np.errstate(over="ignore"):  # a tiny T sends the others to -inf, and so to a weight of 0
            return ids, np.exp((x - x.max()) / s.temperature)


def _only(keep: Bools, ids: Ids, x: Float64, mass: Float64) -> tuple[Ids, Float64, Float64]:
    rows = np.flatnonzero(keep)
    return ids[rows], x[rows], mass[rows]


def cutoff(key: Float64, mass: Float64, target: float) -> float:
    """The largest c such that the items with key >= c hold a mass of at least `target`.

    key [n], in nats (a logit, a surprise); mass [n], not negative. Items are first thrown into buckets of 1/32 nat, so
    that only the bucket in which the target is reached has to be sorted. When the whole falls short of `target`, the
    smallest key.
    """
    depth, bucket = _scratch.rows(len(key))[4], _scratch.whole(len(key))
    np.subtract(key, key.max(), out=depth)
    np.maximum(depth, -_DEPTH, out=depth)
    np.multiply(depth, -_BUCKETS / _DEPTH, out=depth)
    np.copyto(bucket, depth, casting="unsafe")  # towards zero
    filled = np.cumsum(np.bincount(bucket, mass, _BUCKETS + 1))
    last = min(int(np.searchsorted(filled, target)), int(bucket.max()))
    rows = np.flatnonzero(bucket == last)
    rows = rows[np.argsort(-key[rows], kind="stable")]
    above = filled[last - 1] if last else 0.0
    reached = int(np.searchsorted(above + np.cumsum(mass[rows]), target))
    return float(key[rows[min(reached, len(rows) - 1)]])


def _largest(values: Float64, k: int) -> Bools:
    """The k largest values; of ties the first."""
    last = np.partition(values, len(values) - k)[len(values) - k]
    keep: Bools = values > last
    keep[np.flatnonzero(values == last)[: k - int(keep.sum())]] = True
    return keep


def _typical(x: Float64, mass: Float64, share: float) -> Bools:
    """The items whose surprise lies nearest the entropy and that hold `share` of the mass."""
    surprise = math.log(mass.sum()) - np.maximum(x, _LEAST)
    nearness: Float64 = -np.abs(surprise - (mass * surprise).sum() / mass.sum())
    keep: Bools = nearness >= cutoff(nearness, mass, share * mass.sum())
    return keep & (mass > 0.0)
