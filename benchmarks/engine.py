"""The engine alone: tokens/s of many sequences at once against one stream of the same model.

    python benchmarks/engine.py --model model-Q8_0.gguf --sequences 1 4 16 --repeats 5

One stream is `model.stream`; with it run engines of so many sequences, in turn. All have prompts of `--prompt` random
tokens and write `--reply` tokens each with the same sampling, the end token banned so that none stops early; the time
is from the beginning of the prompt to the last token, "decode" from the first token of the last one to begin. Medians
[min-max]; ratios are to the stream, their range within one repeat.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import rookery
from rookery.bench.report import spread
from rookery.engine import Ended, Engine, Event, Failed, Sequence, Start, Wrote
from rookery.stream import Draft

STREAM = "stream"


class Bench:
    def __init__(self, model: rookery.Model, o: argparse.Namespace) -> None:
        self.model, self.o = model, o
        end = model.tokenizer.end
        self.sampling = rookery.Sampling(logit_bias={} if end is None else {end: -math.inf})

    def prompt(self, seed: int) -> list[int]:
        known = min(self.model.config.n_vocab, self.model.tokenizer.vocab_size)
        found: list[int] = np.random.default_rng(seed).integers(1, known, self.o.prompt).tolist()
        return found

    def stream(self, seed: int) -> tuple[float, float]:
        """Tokens/s with the prompt's time and without."""
        begin = time.perf_counter()
        settings: dict[str, Any] = asdict(self.sampling)
        stream = self.model.stream(self.prompt(seed), self.o.reply, seed=seed, **settings)
        for _ in stream:
            pass
        assert len(stream.tokens) == self.o.reply, stream.stop_reason
        return self.o.reply / (time.perf_counter() - begin), self.o.reply / stream.decode_seconds

    def engine(self, count: int, seed: int) -> tuple[float, float]:
        """The same of `count` sequences side by side."""
        engine = Engine(self.model, max_batch=count)
        done, times = threading.Semaphore(0), defaultdict[int, list[float]](list)
        failed: list[Exception] = []
        for index in range(count):
            engine.submit(self.sequence(seed + index, index, done, times, failed))
        begin = time.perf_counter()
        engine.start()
        for _ in range(count):
            done.acquire()
        seconds = time.perf_counter() - begin
        engine.close()
        if failed:
            raise failed[0]
        assert all(len(heard) == self.o.reply for heard in times.values())
        all_write = max(heard[0] for heard in times.values())
        after = [heard for per in times.values() for heard in per if heard > all_write]
        return count * self.o.reply / seconds, len(after) / (max(after) - all_write)

    def sequence(
        self,
        seed: int,
        index: int,
        done: threading.Semaphore,
        times: dict[int, list[float]],
        failed: list[Exception],
    ) -> Sequence:
        def listen(event: Event) -> None:
            if isinstance(event, Wrote):
                times[index].append(time.perf_counter())
            elif isinstance(event, Failed):
                failed.append(event.error)
            if isinstance(event, Ended | Failed):
                done.release()

        draft = Draft(self.model.tokenizer, self.o.reply, self.model.sampler(self.sampling, seed))
        prompt = self.prompt(seed)
        return Sequence(lambda: Start(self.model.state(), prompt, drafts=(draft,), keep=False), listen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--tokenizer", help="for a model that does not name its own")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--reply", type=int, default=64, help="tokens, 2 or more")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write all figures there")
    o = parser.parse_args()
    bench = Bench(rookery.load(o.model, threads=o.threads, tokenizer=o.tokenizer), o)
    runs = {STREAM: bench.stream} | {f"engine, {n}": lambda seed, n=n: bench.engine(n, seed) for n in o.sequences}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(-1, o.repeats):  # the first round warms up
        for name in list(runs)[:: -1 if repeat % 2 else 1]:
            figures = runs[name](1000 * (repeat + 1))
            if repeat >= 0:
                found[name].append(figures)
    report: dict[str, Any] = {"model": str(bench.model), "arguments": vars(o) | {"json": None}, "runs": {}}
    print(f"{bench.model}, {bench.model.arithmetic}; prompt {o.prompt}, reply {o.reply}, {o.repeats} repeats")
    print(f"{'tokens/s':14}" + "".join(f"{title:>30}" for title in ("all", "ratio", "decode", "ratio")))
    for name, rows in found.items():
        cells = []
        for column, what in enumerate(("all", "decode")):
            values = spread(row[column] for row in rows)
            pairs = spread(row[column] / one[column] for row, one in zip(rows, found[STREAM], strict=True))
            report["runs"].setdefault(name, {})[what] = {"tokens/s": values, "ratio": pairs}
            cells += [cell(values), cell(pairs)]
        print(f"{name:14}" + "".join(f"{text:>30}" for text in cells))
    if o.json:
        o.json.write_text(json.dumps(report, indent=1) + "\n")


def cell(values: dict[str, Any]) -> str:
    return "{median:,.2f} [{min:,.2f}-{max:,.2f}]".format(**values)


if __name__ == "__main__":
    main()
