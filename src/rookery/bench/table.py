"""A report for people."""

from __future__ import annotations

from typing import Any

HEAD = ("threads", "test", "rows", "depth", "tokens/s", "(min to max)", "ms/step", "GB/s", "of stream")


def table(report: dict[str, Any]) -> str:
    """Lines of plain text: the model, its tests, then what each thread count needs."""
    shares = any("share_of_stream" in test for run in report["runs"] for test in run["tests"])
    head = HEAD if shares else HEAD[:-1]
    rows = [_row(run, test)[: len(head)] for run in report["runs"] for test in run["tests"]]
    return "\n".join([_title(report), "", *_aligned([head, *rows]), "", *map(_needs, report["runs"])])


def _title(report: dict[str, Any]) -> str:
    model, settings = report["model"], report["settings"]
    sets = sorted({run["isa"] for run in report["runs"] if "isa" in run})
    return (
        f"{model['path']}: {model['architecture']}, {model['layers']} layers x {model['width']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters, state {_megabytes(model['state_bytes'])}\n"
        f"{model['backend']} back end{''.join(f', {isa}' for isa in sets)}; random tokens, seed {settings['seed']}; "
        f"medians of {settings['repeats']} interleaved"
    )


def _row(run: dict[str, Any], test: dict[str, Any]) -> tuple[str, ...]:
    rate = test["tokens_per_second"]
    decode = test["test"] == "decode"
    return (
        _threads(run),
        f"{test['test']} {test['tokens']}",
        str(test["rows"]),
        str(test["depth"]),
        _number(rate["median"]),
        f"({_number(rate['min'])} to {_number(rate['max'])})",
        f"{1000 * test['rows'] / rate['median']:.2f}" if decode else "",
        f"{test['gb_per_second']['median']:.1f}" if decode else "",
        f"{test['share_of_stream']['median']:.0%}" if "share_of_stream" in test else "",
    )


def _needs(run: dict[str, Any]) -> str:
    """What the tests share: waiting, memory, bytes."""
    first = run["first_token_seconds"]
    parts = [
        f"threads {_threads(run)}: first token {first['median']:.3f} s after load() "
        f"({first['min']:.3f} to {first['max']:.3f})",
        f"weights read per step {_megabytes(run['weight_bytes'])}",
    ]
    if "stream_gb_per_second" in run:
        parts.append(f"bare stream {run['stream_gb_per_second']['median']:.1f} GB/s")
    if run["peak_bytes"]:
        parts.append(f"peak memory {_megabytes(run['peak_bytes'])}, while loading {_megabytes(run['load_peak_bytes'])}")
    return "; ".join(parts)


def _threads(run: dict[str, Any]) -> str:
    return str(run["threads"] or "own")


def _number(rate: float) -> str:
    return f"{rate:.1f}" if rate < 1000 else f"{rate:.0f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Numbers to the right, the test's name to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    for row in cells:
        row[1] = row[1].lstrip().ljust(widths[1])
    return ["  ".join(row).rstrip() for row in cells]
