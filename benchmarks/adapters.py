"""What adapters beside a model cost while it writes: a step of many sequences, dealt over several adapters.

    python benchmarks/adapters.py --model gosling model-Q8_0.gguf --adapters 0 1 2 4 16 --rank 16

A step feeds a token to each of `--sequences`: "together" in one pass over the base's weights, as the engine does, or
"in turn", one adapter after the other. 0 adapters is the model alone. LoRA with random numbers beside every matrix of
the blocks. Medians [min-max] of `--repeats`, each of `--steps`, alternating among the ways; the ratio is to 0 adapters
within one repeat.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import rookery
from rookery.weights import Weights
from rookery.weights.adapters import Adapter, LowRank


def adapter(of: Weights, rank: int, seed: int) -> Adapter:
    random = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    parts = {
        p.name: LowRank(values(rank, p.file_shape[1]), values(p.file_shape[0], rank), 1e-3)
        for p in of.params
        if p.kind in ("att", "ffn")
    }
    return Adapter(dict(parts), "lora", f"random{seed}", {})


def step_seconds(models: Sequence[rookery.Model], sequences: int, steps: int, together: bool) -> float:
    """Of one step, sequence i with model i mod so many."""
    runners: list[Any] = [models[i % len(models)].runner for i in range(sequences)]
    states = [models[0].state().flat for _ in runners]
    ids = [np.array([1 + i], np.int64) for i in range(sequences)]
    groups = [range(i, sequences, len(models)) for i in range(len(models))]
    begin = 0.0
    for n in range(-2, steps):
        if n == 0:
            begin = time.perf_counter()
        if together:
            runners[0].together(runners, ids, states)
            continue
        for each in groups:
            runners[each[0]].step([ids[i] for i in each], [states[i] for i in each])
    return (time.perf_counter() - begin) / steps


def measure(path: str, o: argparse.Namespace) -> None:
    base = rookery.load(path, threads=o.threads)
    runner: Any = base.runner
    adapted = [base.adapted(adapter(base.weights, o.rank, seed)) for seed in range(max(o.adapters))]
    print(f"\n{path}: {base.weights.parameters / 1e6:,.1f} M parameters, {runner.threads} threads, rank {o.rank}")
    if adapted:
        one: Any = adapted[0].runner
        beside, weights = sum(one.memory.copied.values()), runner.engine.weight_bytes
        print(f"an adapter: {beside / 1e6:.1f} MB of weights; the base {weights / 1e6:.1f} MB, once")
    for sequences in o.sequences:
        ways = [
            (n, together) for n in o.adapters if n <= sequences for together in ((True, False) if n > 1 else (False,))
        ]
        found: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
        for _ in range(o.repeats):
            for n, together in ways:
                found[n, together].append(step_seconds(adapted[:n] or [base], sequences, o.steps, together))
        for (n, together), seconds in found.items():
            share = [s / first for s, first in zip(seconds, found[ways[0]], strict=True)]
            how = "" if n < 2 else ", together" if together else ", in turn"
            rate = sequences / np.median(seconds)
            times = f"{np.median(share):.2f} times the step [{min(share):.2f}-{max(share):.2f}]"
            print(f"{sequences:>3} sequences, {n:>2} adapters{how:<10}: {rate:,.0f} tokens/s, {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["gosling"])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 2, 4, 16])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    o = parser.parse_args()
    for path in o.model:
        measure(path, o)


if __name__ == "__main__":
    main()
