"""From the results of an experiment to its numbers: estimates with intervals over prompts, or why there is none.

The prompt is the unit of resampling: all that was measured of one prompt (seeds, ticks) becomes one number first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from rookery.lab import metrics
from rookery.lab.design import LANGUAGE, NULLS
from rookery.lab.ledger import Key, Record
from rookery.lab.metrics.probe import Probe, linear_probe
from rookery.lab.metrics.uncertainty import bootstrap
from rookery.lab.motion import WHOLE
from rookery.lab.rows import Row

DRAWS = 500  # of the bootstrap
SHUFFLES = 200  # of a probe's labels
LEAST_TOPIC = 3  # prompts of each topic, below which nothing is probed

ByPrompt: TypeAlias = Mapping[int, Sequence[float]]


def rows(header: Mapping[str, Any], records: Mapping[Key, Record]) -> list[Row]:
    """All numbers of an experiment, by substrate."""
    design, found = header["design"], []
    for name in design["substrates"]:
        mine = {(prompt, seed): record for (of, prompt, seed), record in records.items() if of == name}
        if mine:
            found += _Summary(name, design, mine).rows()
    return found


def median(values: Any) -> float:
    return float(np.median(values))


class _Summary:
    """Of one substrate."""

    def __init__(self, name: str, design: Mapping[str, Any], records: Mapping[tuple[int, int], Record]) -> None:
        self.name, self.design, self.records = name, design, dict(sorted(records.items()))
        self.found: list[Row] = []
        self.first = next(iter(self.records.values()))

    def rows(self) -> list[Row]:
        for condition in ("teacher", "free"):
            self._motion(condition)
        self._pushes()
        self._exponents()
        self._responses()
        self._probes()
        self._losses()
        self._floors()
        self._ranks()
        return self.found

    @property
    def components(self) -> list[str]:
        return [name for name in self.first["teacher"] if name != WHOLE]

    def _add(
        self,
        condition: str,
        component: str,
        metric: str,
        values: ByPrompt,
        statistic: Callable[[Any], float] = lambda x: float(x.mean()),
        note: str = "",
    ) -> None:
        """A number with its interval: the statistic over prompts of each one's mean."""
        numbers = [float(np.mean(v)) for v in values.values()]
        runs = sum(map(len, values.values()))
        if not numbers:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "an interval from", UserWarning)  # the report says how many prompts
            one = len(numbers) == 1 or not np.isfinite(numbers).all()
            i = None if one else bootstrap(numbers, statistic, draws=DRAWS)
        estimate = statistic(np.array(numbers)) if i is None else i.estimate
        low, high = (None, None) if i is None else (i.low, i.high)
        self.found.append(Row(self.name, condition, component, metric, estimate, low, high, len(numbers), runs, note))

    def _none(self, condition: str, component: str, metric: str, why: str) -> None:
        self.found.append(Row(self.name, condition, component, metric, None, note=why))

    def _by_prompt(self, pick: Callable[[Record], Any]) -> dict[int, list[float]]:
        """What `pick` finds in each record (None, or KeyError: nothing), by prompt."""
        out: dict[int, list[float]] = {}
        for (prompt, _), record in self.records.items():
            try:
                value = pick(record)
            except KeyError:
                continue
            if value is not None:
                out.setdefault(prompt, []).append(float(value))
        return out

    def _motion(self, condition: str) -> None:
        if condition not in self.first:
            self._none(condition, WHOLE, "rel_delta", "it reads no tokens: free-running is the same as teacher-forced")
            return
        for name in self.first[condition]:
            self._motion_of(condition, name)

    def _motion_of(self, condition: str, name: str) -> None:
        part = self._picker(condition, name)
        values = {
            "rel_delta": self._by_prompt(lambda r: np.mean(part(r)["rel_delta"])),
            "coherence_cv": self._by_prompt(lambda r: metrics.coherence_cv(part(r)["rel_delta"]).coherence_cv),
            "state_delta": self._by_prompt(lambda r: np.mean(part(r)["delta"])),
            "coherence": self._by_prompt(lambda r: _coherence(part(r))),
            "rms": self._by_prompt(lambda r: part(r)["rms"]),
        }
        for metric, by_prompt in values.items():
            self._add(condition, name, metric, by_prompt)
        for metric in ("memory", "dimension"):
            self._add_if_moved(condition, name, metric)
        bad = sum(part(r)["nonfinite"] for r in self.records.values() if condition in r)
        self.found.append(Row(self.name, condition, name, "nonfinite", float(bad), runs=self._runs(condition)))

    @staticmethod
    def _picker(*keys: str) -> Callable[[Record], Any]:
        def pick(record: Record) -> Any:
            for key in keys:
                record = record[key]
            return record

        return pick

    def _runs(self, condition: str) -> int:
        return sum(condition in r for r in self.records.values())

    def _add_if_moved(self, condition: str, name: str, metric: str) -> None:
        part = self._picker(condition, name)
        values = self._by_prompt(lambda r: v if math.isfinite(v := part(r)[metric]) else None)
        if not values:
            self._none(condition, name, metric, "it never moves, or not by finite numbers")
            return
        few = sum(metric in part(r)["few"] for r in self.records.values() if condition in r)
        what = "likely longer" if metric == "memory" else "the number of ticks bounds it"
        note = f"too few ticks to trust in {few} of {self._runs(condition)} runs: {what}" if few else ""
        self._add(condition, name, metric, values, median, note)

    def _pushes(self) -> None:
        after = len(next(iter(self.first["push"].values()))["curve"]) - 1 if self.first["push"] else 0
        for name in self.components:
            self._push_of(name, after)
        if self.first["push"]:
            self._recovery(WHOLE, lambda r: np.mean([p["all"] for p in r["push"].values()], axis=0), after)

    def _push_of(self, name: str, after: int) -> None:
        pick = self._picker("push", name)
        if self.name == "transformer":
            why = "not carried on: gone from this layer after one token, to the bit; see all components together"
            self._none("teacher", name, "recovery", why)
        elif self.name not in NULLS:  # of which all are pushed at once, and hear nothing of each other
            self._recovery(name, lambda r: pick(r)["curve"], after)
        self._add("teacher", name, "kl_at_size", self._by_prompt(lambda r: (pick(r)["kl"] or [None])[0]), median)

    def _recovery(self, name: str, curve: Callable[[Record], Any], after: int) -> None:
        """Half-life of each prompt's mean curve, and the share of a push that is left in the end."""
        curves: dict[int, list[Any]] = {}
        for (prompt, _), record in self.records.items():
            if np.isfinite(y := seen(curve(record))).all() and y.any():
                curves.setdefault(prompt, []).append(y)
        runs = sum(map(len, curves.values()))
        bad = sum(not np.isfinite(curve(r)).all() for r in self.records.values())
        notes = [f"{bad} of {len(self.records)} pushes ended in numbers that are not finite and are left out"] * bool(
            bad
        )
        halves = {p: [min(metrics.recovery(np.mean(ys, 0)).half_life, _LONGEST)] for p, ys in curves.items()}
        never = sum(half >= _LONGEST for (half,) in halves.values())
        if never:
            notes.insert(0, f"no return within {after} ticks for {never} of {len(halves)} prompts")
        if not halves or median([half for (half,) in halves.values()]) >= _LONGEST:
            why = "; ".join(notes) or "it is all zeros where the push was due"
            self._none("teacher", name, "recovery", why)
        else:
            self._add("teacher", name, "recovery", halves, median, "; ".join(notes))
        left = {prompt: [float(y[-1] / y[0]) for y in ys] for prompt, ys in curves.items()}
        self._add("teacher", name, "kept", left, median, f"after {after} ticks, of {runs} pushes")

    def _exponents(self) -> None:
        if self.name == "transformer":
            why = "a residual stream is made anew at each token: no disturbance of it is carried on"
            self._none("teacher", WHOLE, "exponent", why)
        elif self.name in NULLS:
            known = {"frozen": "0", "iid": "minus infinity", "ar1": "the logarithm of each channel's autocorrelation"}
            self._none("teacher", WHOLE, "exponent", f"known beforehand: {known[self.name]}")
        elif "exponent" in self.first:
            note = "of two neighbours, over the ticks after the push: few for the direction that grows most to show"
            self._add("teacher", WHOLE, "exponent", self._by_prompt(lambda r: r["exponent"][WHOLE]), note=note)
        for name in self.first.get("forgetting", {}):
            self._forgetting_of(name)
        if "forgetting" in self.first:
            for name in self.components:
                if name not in self.first["forgetting"]:
                    why = "minus infinity: overwritten at every token"
                    self._none("teacher", name, "exponent", why)

    def _forgetting_of(self, name: str) -> None:
        pick = self._picker("forgetting", name)
        values = {
            "exponent": self._by_prompt(lambda r: pick(r)["exponent"]),
            "growth": self._by_prompt(lambda r: pick(r)["growth"]),
            "decay_half_life": self._by_prompt(lambda r: median(metrics.half_life(pick(r)["log_decay"]))),
            "write_half_life": self._by_prompt(lambda r: median(np.minimum(pick(r)["writes"], _LONGEST))),
        }
        for metric, by_prompt in values.items():
            self._add("teacher", name, metric, by_prompt, median)

    def _responses(self) -> None:
        if "response" not in self.first:
            self._none("teacher", WHOLE, "kl", "it has no next token")
            return
        for name in self.components:
            self._response_of(name)

    def _response_of(self, name: str) -> None:
        values = self._by_prompt(lambda r: r["response"].get(name))
        silent = sum(r["response"].get(name) is None for r in self.records.values())
        if not values:
            self._none("teacher", name, "kl", "no range of pushes has a proportional answer; are activations rounded?")
            return
        note = f"{silent} of {len(self.records)} pushes had no proportional answer and are left out" if silent else ""
        self._add("teacher", name, "kl", values, median, note)

    def _probes(self) -> None:
        if self.name in NULLS:
            why = "a null matched to each prompt's own run holds that prompt's mean: a probe would read the matching"
            self._none("teacher", WHOLE, "probe", why)
            return
        topics = [topic for topic, _ in self.design["passages"]]
        prompts = [prompt for prompt, seed in self.records if seed == 0]
        counts = [sum(topics[p] == topic for p in prompts) for topic in set(topics)]
        if len(counts) < 2 or min(counts) < LEAST_TOPIC:
            why = f"no latent to look for: at least 2 topics with {LEAST_TOPIC} prompts each are wanted"
            self._none("teacher", WHOLE, "probe", why)
            return
        for name in self.components:
            parts = [np.array(self.records[p, 0]["features"]["rows"][name]) for p in prompts]
            whose = np.repeat(prompts, [len(part) for part in parts])
            labels = np.array([topics[p] for p in whose.tolist()])
            self._probe(name, linear_probe(np.concatenate(parts), labels, whose, shuffles=SHUFFLES))

    def _probe(self, name: str, found: Probe) -> None:
        if not math.isfinite(found.score):
            self._none("teacher", name, "probe", f"{found.nonfinite} features are not finite")
            return
        by_prompt = {i: [float(right)] for i, right in enumerate(found.by_prompt)}
        self._add("teacher", name, "probe", by_prompt, note=f"chance {found.chance:.3g}")
        low, high = np.quantile(found.null, [0.025, 0.975]).tolist()
        count = len(by_prompt)
        null = Row(
            self.name, "teacher", name, "probe_null", float(found.null.mean()), low, high, count, SHUFFLES,
            "shuffled labels",
        )  # fmt: skip
        self.found += [null, Row(self.name, "teacher", name, "probe_p", found.p, prompts=count, runs=SHUFFLES)]

    def _losses(self) -> None:
        if self.name not in LANGUAGE:
            self._none("teacher", WHOLE, "loss", "it is no language model")
            return
        loss = self._picker("loss")
        self._add("teacher", WHOLE, "loss", self._by_prompt(lambda r: loss(r)["nats"] / loss(r)["tokens"]))
        bits = self._by_prompt(lambda r: loss(r)["nats"] / math.log(2) / loss(r)["bytes"] if loss(r)["bytes"] else None)
        self._add("teacher", WHOLE, "bits_per_byte", bits)

    def _floors(self) -> None:
        ways = {
            "chunked": "all tokens in one call, against one by one",
            "elsewhere": "on another back end",
            "repeated": "the same run again",
        }
        if self.name in NULLS:
            why = "computed in float64 from a seed, always in the same order: equal to the bit"
            self._none("teacher", WHOLE, "floor", why)
        for way in self.first.get("floor", {}):
            for name in self.components:
                values = self._by_prompt(self._picker("floor", way, name))
                self._add("teacher", name, "floor", values, median, ways[way])

    def _ranks(self) -> None:
        for name in self.first.get("ranks", {}):
            pick = self._picker("ranks", name, "effective")
            values = {p: [float(np.mean(v)) for v in [pick(r)[-1]]] for (p, s), r in self.records.items() if s == 0}
            self._add("teacher", name, "effective_rank", values, note="mean over heads, at the last tick")


def _coherence(of: Mapping[str, Any]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of white noise: the report says it in a sentence of its own
        return metrics.coherence(of["delta"], n=of["n"])


_LONGEST = 1e4  # ticks: stands for "never", so that medians can be taken


def seen(curve: Any) -> Any:
    """A recovery curve from where the push shows: a residual stream shows it one tick later."""
    y = np.asarray(curve, np.float64)
    return y[1:] if len(y) > 4 and y[0] == 0 and y[1] > 0 else y
