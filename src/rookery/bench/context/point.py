"""One point of a sweep, in a process of its own: `python -m rookery.bench.context.point`.

A line of JSON on stdin says what to measure, a line of JSON on stdout what was found. A process a point keeps one
model's memory out of another's; it costs the import of torch each time, so all repeats of a point share a process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from rookery.bench import memory
from rookery.bench.context import roofline
from rookery.bench.context.settings import Point, Settings

Row: TypeAlias = dict[str, Any]
Build: TypeAlias = Callable[[str, Settings], Any]  # -> a Peer

TINY: dict[str, Any] = {"parameters": 300_000, "layers": 2, "vocab": 16}  # enough for every kind's parts of fixed size
WARM_UP = 4  # decode steps, of which the last ones say how long one takes
SHORT = 512  # tokens of a prompt that warms up
REFUSED = ("can't allocate memory", "not enough memory", "out of memory")  # torch's own is a RuntimeError


class TooLong(Exception):
    """The repeats of this point would take longer than a point may."""


def spread(samples: Iterable[float]) -> dict[str, Any]:
    """Median and quartiles; every sample is kept."""
    values = [float(value) for value in samples]
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(low), "q3": float(high), "samples": values}


def measure(point: Point, settings: Settings, build: Build) -> Row:
    """The row of one point, its status "measured", "skipped" (too slow) or "oom"."""
    row: Row = {**point._asdict(), "status": "measured"}
    try:
        if point.phase == "stream":
            return {**row, "gb_per_second": roofline.stream()}
        return row | _of_peer(point, settings, build)
    except TooLong as error:
        return {**row, "status": "skipped", "why": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in REFUSED):
            raise
        return {**row, "status": "oom", "why": "the system refused the memory while it ran"}


def _of_peer(point: Point, settings: Settings, build: Build) -> Row:
    baseline = _fresh_peak()
    peer = build(point.kind, settings)
    build_peak = memory.peak()
    memory.forget_peak()
    found: Row = {"decode": _decode, "prefill": _prefill, "train": _train}[point.phase](peer, point.length, settings)
    peak = memory.peak()
    names = ("runtime", "note", "constant", "parameters", "embedding_parameters", "weight_bytes", "config")
    return {name: getattr(peer, name) for name in names} | {
        "state_bytes": peer.state_bytes(point.length),
        **found,
        "baseline_bytes": baseline,
        "build_peak_bytes": _above(build_peak, baseline),
        "peak_bytes": _above(peak, baseline),
    }


def _decode(peer: Any, depth: int, settings: Settings) -> Row:
    """Decode at a depth that was not read: its state or KV is made up, and says so. Where the state is of one size at
    every depth, each repeat is paired with one at the shortest depth: whether depth matters is measured, not assumed.
    """
    draw = np.random.default_rng(settings.seed)
    reference = min(settings.lengths)
    paired = peer.constant and depth != reference
    room = max(settings.tokens, WARM_UP)

    def steps(at: int, count: int) -> list[float]:
        peer.inject(at, extra=room)
        return _timed_steps(peer, draw.integers(settings.vocab, size=count))

    warm = steps(depth, WARM_UP)
    tokens = _affordable(min(warm[1:]) * (2 if paired else 1), settings)
    seconds, ratios = [], []
    for repeat in range(settings.repeats):
        order = [depth, reference][:: -1 if repeat % 2 else 1] if paired else [depth]
        took = {at: sum(steps(at, tokens)) for at in order}
        seconds.append(took[depth])
        if paired:
            ratios.append(took[reference] / took[depth])
    found: Row = {
        "state": "injected",
        "tokens": tokens,
        "bytes_per_token": peer.bytes_per_token(depth),
        "tokens_per_second": spread(tokens / s for s in seconds),
    }
    return found | ({"speed_to_reference": spread(ratios), "reference": reference} if paired else {})


def _timed_steps(peer: Any, tokens: Any) -> list[float]:
    """Seconds of each step."""
    marks = [time.perf_counter()]
    for token in tokens.tolist():
        peer.step(token)
        marks.append(time.perf_counter())
    return [end - begin for begin, end in pairwise(marks)]


def _affordable(step: float, settings: Settings) -> int:
    """Steps of a repeat: as many as were asked for, or so many that all repeats together have them."""
    if step * settings.tokens * settings.repeats <= settings.patience:
        return settings.tokens
    _check(step * settings.shared_tokens, settings)
    return settings.shared_tokens


def _prefill(peer: Any, length: int, settings: Settings) -> Row:
    """A prompt that is really read, the first step after it, and decode from the state that the reading left."""
    draw = np.random.default_rng(settings.seed)
    short = draw.integers(settings.vocab, size=min(length, SHORT))
    peer.prefill(short, extra=1)
    begin = time.perf_counter()
    peer.prefill(short, extra=1)
    _check((time.perf_counter() - begin) * length / len(short), settings)
    read, first, after = [], [], []
    steps = settings.shared_tokens
    for _ in range(settings.repeats):
        tokens = draw.integers(settings.vocab, size=length)
        begin = time.perf_counter()
        peer.prefill(tokens, extra=steps + 1)
        middle = time.perf_counter()
        peer.step(int(tokens[0]))
        first.append(time.perf_counter() - begin)
        read.append(middle - begin)
        after.append(sum(_timed_steps(peer, draw.integers(settings.vocab, size=steps))))
        _check(first[-1], settings)
    return {
        "state": "read",
        "prefill_tokens_per_second": spread(length / s for s in read),
        "first_token_seconds": spread(first),
        "tokens": steps,
        "tokens_per_second": spread(steps / s for s in after),
    }


def _train(peer: Any, length: int, settings: Settings) -> Row:
    step = peer.train(length)
    seconds = []
    for _ in range(1 + settings.repeats):  # the first warms up: the optimiser's moments are made
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
        _check(seconds[-1], settings)
    return {"step_seconds": spread(seconds[1:])}


def _check(seconds: float, settings: Settings) -> None:
    """Raises TooLong where repeats of so many seconds are too much."""
    if (total := seconds * settings.repeats) > settings.seconds:
        raise TooLong(f"about {total:,.0f} s for {settings.repeats} repeats; {settings.seconds:g} s are allowed")


def _fresh_peak() -> int | None:
    memory.forget_peak()
    return memory.peak()


def _above(peak: int | None, baseline: int | None) -> int | None:
    return None if peak is None or baseline is None else peak - baseline


def pin(threads: int) -> None:
    """Keep this process on so many processors, before a library counts them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _end_with_parent() -> None:
    """A point whose sweep was killed must not go on beside the next one: stdin ends with the parent."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _offer_to_the_killer() -> None:
    """Where memory runs out in spite of all counting, this process goes and not somebody's editor."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def main() -> None:
    request = json.loads(sys.stdin.readline())
    settings = Settings.of(request["settings"])
    pin(settings.threads)
    _end_with_parent()
    _offer_to_the_killer()
    import torch

    from rookery.bench.context import peers

    torch.set_num_threads(settings.threads)
    gc.disable()  # a collection in a timed step would be measured too

    def build(kind: str, settings: Settings) -> Any:
        return peers.build(kind, spec(settings), settings.seed)

    point = Point(**request["point"])
    if point.phase != "stream":
        _import_all(point, build(point.kind, replace(settings, **TINY)))
    row = measure(point, settings, build)
    print(json.dumps(row, allow_nan=False), flush=True)
    os._exit(0)  # the thread that reads stdin would keep the interpreter's end waiting


def _import_all(point: Point, tiny: Any) -> None:
    """What a model imports when it is first used belongs to no point's memory."""
    tiny.prefill(range(8), extra=1)
    tiny.step(0)
    if point.phase == "train":
        tiny.train(8)()


def spec(settings: Settings) -> Any:
    """What `peers.build` and `peers.need` ask for."""
    from rookery.bench.context.match import Spec

    return Spec(settings.parameters, settings.layers, settings.vocab, dtype=settings.dtype, threads=settings.threads)


if __name__ == "__main__":
    main()
