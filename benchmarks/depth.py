"""Speed and memory over depth: one sequence decoded from token 1 to token 1,000,000, the state carried along.

python benchmarks/depth.py [--model gosling] [--tokens 1000000] [--segments 100] [--threads N] [--json] [--plot FILE]

A segment's speed is its tokens over its seconds; memory is the process's resident set at its end. The plot needs
matplotlib; both axes begin at zero.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import rookery


def resident() -> float:
    """Of this process, in MB. Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("no VmRSS in /proc/self/status")


def measure(model: rookery.Model, tokens: int, segments: int) -> list[dict[str, float]]:
    """Token by token, the state changed in place: below `Model`, which copies it at every call."""
    state, token = model.state().flat, np.zeros(1, np.int64)
    rng = np.random.default_rng(0)
    found = []
    for i in range(segments):
        ids = rng.integers(0, model.config.n_vocab, tokens // segments)
        begin = time.perf_counter()
        for token[0] in ids:
            (logits,) = model.runner.step([token], [state])
        seconds = time.perf_counter() - begin
        if not np.isfinite(logits).all():
            raise SystemExit(f"logits are no numbers at token {(i + 1) * len(ids)}")
        found.append({"depth": (i + 1) * len(ids), "tokens_per_second": len(ids) / seconds, "megabytes": resident()})
    return found


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """The first and the last tenth, and how far memory moved after the first segment."""
    tenth = max(1, len(found) // 10)
    speeds, memory = [f["tokens_per_second"] for f in found], [f["megabytes"] for f in found]
    return {
        "median": statistics.median(speeds),
        "first_tenth": statistics.median(speeds[:tenth]),
        "last_tenth": statistics.median(speeds[-tenth:]),
        "megabytes_first": memory[0],
        "megabytes_last": memory[-1],
        "megabytes_most": max(memory),
    }


def plot(report: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = report["segments"]
    depth = [f["depth"] for f in found]
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5.5), layout="constrained")
    for axes, key, label in (
        (top, "tokens_per_second", "decode, tokens/s"),
        (bottom, "megabytes", "resident memory, MB"),
    ):
        values = [f[key] for f in found]
        axes.plot(depth, values, color="#1f4e79", linewidth=1.2)
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(values))
        axes.grid(alpha=0.3)
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    top.set_title(f"{report['model']}, {report['isa']}, {threads}: one sequence, its state carried along")
    top.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    bottom.set_xlabel("depth, tokens")
    bottom.set_xlim(0, depth[-1])
    bottom.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    if not 1 <= args.segments <= args.tokens:
        parser.error("at least one token in each segment is wanted")
    model = rookery.load(args.model, backend="native", threads=args.threads)
    engine = model.runner.engine
    measure(model, 2000, 1)  # threads start, buffers are touched
    found = measure(model, args.tokens, args.segments)
    report = {
        "model": f"{model.config.name} {Path(args.model).stem}",
        "isa": engine.isa,
        "threads": engine.threads,
        "summary": summary(found),
        "segments": found,
    }
    if args.plot:
        plot(report, args.plot)
    if args.json:
        print(json.dumps(report))
        return
    s = report["summary"]
    print(
        f"{report['model']}, {args.tokens:,} tokens: {s['median']:,.0f} tokens/s "
        f"(first tenth {s['first_tenth']:,.0f}, last {s['last_tenth']:,.0f}); "
        f"memory {s['megabytes_first']:.1f} MB, at most {s['megabytes_most']:.1f}, at the end {s['megabytes_last']:.1f}"
    )


if __name__ == "__main__":
    main()
