"""All tests for each thread count, interleaved, as one report."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rookery.bench import memory
from rookery.bench.settings import Settings
from rookery.bench.timing import Runs
from rookery.model import Model

Load = Callable[[int | None], Model]  # threads -> model
Progress = Callable[[int, int], None]  # tokens fed, tokens in all
LOADS = 3  # of these the time to the first token is the median


def measure(
    load: Load, settings: Settings, threads: Sequence[int | None] = (None,), progress: Progress | None = None
) -> dict[str, Any]:
    """Load and measure the model once for each thread count; None is the back end's own choice.

    Every test runs once in every repeat, so that a slow minute of the machine falls on all of them. Values with a
    range are {"median", "min", "max", "samples"}; tests are tokens a second over all rows.
    """
    report: dict[str, Any] = {"settings": vars(settings), "runs": []}
    fed, total = 0, settings.total * len(threads)

    def read(tokens: int) -> None:
        nonlocal fed
        fed += tokens
        if progress:
            progress(fed, total)

    for count in threads:
        model, first = _loaded(load, count, settings)
        peak_of_load = memory.peak()
        memory.forget_peak()
        report.setdefault("model", _model(model))
        run = _run(Runs(model, settings, read), settings)
        report["runs"].append({"threads": count, "first_token_seconds": first, "load_peak_bytes": peak_of_load, **run})
        del model
    return report


def spread(samples: Iterable[float]) -> dict[str, Any]:
    values = list(samples)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": values}


def _loaded(load: Load, threads: int | None, settings: Settings) -> tuple[Model, dict[str, Any]]:
    """The model, and seconds from `load` to the logits after one token; each load begins without the one before."""
    seconds: list[float] = []
    for _ in range(min(LOADS, settings.repeats)):
        model = None
        gc.collect()
        memory.forget_peak()
        begin = time.perf_counter()
        model = load(threads)
        model.forward(0)
        seconds.append(time.perf_counter() - begin)
    assert model is not None
    return model, spread(seconds)


def _model(model: Model) -> dict[str, Any]:
    config, weights = model.config, model.weights
    return {
        "path": weights.path,
        "format": weights.format,
        "architecture": config.name,
        "layers": config.n_layer,
        "width": config.n_embd,
        "vocabulary": config.n_vocab,
        "parameters": weights.parameters,
        "state_bytes": model.state_size * model.runner.dtype.itemsize,
        "backend": model.backend,
    }


def _run(runs: Runs, settings: Settings) -> dict[str, Any]:
    runs.warm_up()
    prefill: list[float] = []
    decode: dict[tuple[int, int], list[float]] = {test: [] for test in settings.decodes}
    streams: dict[tuple[int, int], list[float]] = {test: [] for test in settings.decodes}
    for _ in range(settings.repeats):
        if settings.prefill:
            prefill.append(runs.prefill())
        for test in settings.decodes:
            seconds = runs.decode(*test)
            decode[test].append(seconds / settings.decode)
            if (bare := runs.stream()) is not None:
                streams[test].append(bare)
    tests = [_prefill(prefill, settings)] if prefill else []
    tests += [_decode(runs, *test, decode[test], streams[test]) for test in settings.decodes]
    found: dict[str, Any] = {
        "weight_bytes": runs.weight_bytes,
        "peak_bytes": memory.peak(),
        "anonymous_bytes": memory.anonymous(),
        "tests": tests,
    }
    for name in ("isa", "threads"):
        if hasattr(runs.engine, name):
            found[name] = getattr(runs.engine, name)
    if bare_reads := [seconds for test in streams.values() for seconds in test]:
        found["stream_gb_per_second"] = spread(runs.weight_bytes / s / 1e9 for s in bare_reads)
    return found


def _prefill(seconds: list[float], settings: Settings) -> dict[str, Any]:
    rates = spread(settings.prefill / s for s in seconds)
    return {"test": "prefill", "tokens": settings.prefill, "rows": 1, "depth": 0, "tokens_per_second": rates}


def _decode(runs: Runs, depth: int, rows: int, seconds: list[float], streams: list[float]) -> dict[str, Any]:
    """`seconds` a step, `streams` a bare pass over the same bytes that followed it."""
    found = {
        "test": "decode",
        "tokens": runs.settings.decode,
        "rows": rows,
        "depth": depth,
        "tokens_per_second": spread(rows / s for s in seconds),
        "gb_per_second": spread(runs.weight_bytes / s / 1e9 for s in seconds),
    }
    if streams:
        found["share_of_stream"] = spread(bare / s for bare, s in zip(streams, seconds, strict=True))
    return found
