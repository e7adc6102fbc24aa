"""What the rows of a sweep say together: models, the roof, what was verified, what was left out. JSON-ready."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from rookery.bench.context import roofline
from rookery.bench.context.settings import Settings

Row: TypeAlias = dict[str, Any]

TITLES = {
    "rwkv4": "RWKV-4", "rwkv5": "RWKV-5", "rwkv6": "RWKV-6", "rwkv7": "RWKV-7", "rwkv7-native": "RWKV-7 native",
    "transformer-gqa": "Transformer GQA", "transformer-mha": "Transformer MHA", "mamba2": "Mamba-2", "lstm": "LSTM",
}  # fmt: skip
MODEL = ("kind", "runtime", "note", "constant", "parameters", "embedding_parameters", "weight_bytes", "config")
SPREADS = ("tokens_per_second", "prefill_tokens_per_second", "first_token_seconds", "step_seconds")


def summary(settings: Settings, machine: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything but the single samples, which stay in points.jsonl."""
    bandwidth = roofline.ceiling(rows)
    points = [_point(row, bandwidth) for row in rows if row["phase"] != "stream"]
    points.sort(key=lambda row: (row["phase"], settings.kinds.index(row["kind"]), row["length"]))
    return {
        "settings": vars(settings),
        "machine": machine,
        "stream_gb_per_second": bandwidth,
        "models": list(_models(settings, rows)),
        "points": points,
        "above_roofline": [_name(row) for row in points if row.get("above_roofline")],
        "depth_verified": list(_depth(settings, points)),
        "injection_verified": list(_injection(points)),
    }


def title(kind: str) -> str:
    return TITLES.get(kind, kind)


def chosen(found: dict[str, Any], phase: str, kind: str | None = None, measured: bool = True) -> list[Row]:
    """The points of a phase, by length; of one kind, if asked; only those with a value, or all."""
    return [
        row
        for row in found["points"]
        if row["phase"] == phase and kind in (None, row["kind"]) and (not measured or row["status"] == "measured")
    ]


def _name(row: Row) -> list[Any]:
    return [row["phase"], row["kind"], row["length"]]


def _models(settings: Settings, rows: Iterable[Row]) -> Iterable[dict[str, Any]]:
    by_kind = {row["kind"]: row for row in rows if "runtime" in row}
    for kind in settings.kinds:
        if kind in by_kind:
            yield {name: by_kind[kind][name] for name in MODEL}


def _point(row: Row, bandwidth: float | None) -> Row:
    """A row without samples, and what follows from it and the bandwidth."""
    kept = {name: value for name, value in row.items() if name not in MODEL or name == "kind"}
    for name in (*SPREADS, "speed_to_reference"):
        if name in kept:
            kept[name] = {key: value for key, value in kept[name].items() if key != "samples"}
    if "speed_to_reference" in row:
        samples = row["speed_to_reference"]["samples"]
        kept["speed_to_reference"] |= {"low": min(samples), "high": max(samples), "pairs": len(samples)}
    if row["status"] == "measured" and row["phase"] == "decode":
        speed = row["tokens_per_second"]["median"]
        kept["gb_per_second"] = speed * row["bytes_per_token"] / 1e9
        kept["roofline_tokens_per_second"] = roofline.roof(row, bandwidth)
        kept["above_roofline"] = roofline.above(row, bandwidth)
    return kept


def _depth(settings: Settings, points: Sequence[Row]) -> Iterable[dict[str, Any]]:
    """Of each kind with a state of constant size: whether its speed at depth over that at the shortest is 1.

    The interval is the range of the pairs, which holds the median ratio with a chance of 1 - 2**(1 - pairs).
    """
    for kind in settings.kinds:
        pairs = [row for row in points if row["kind"] == kind and "speed_to_reference" in row]
        if not pairs:
            continue
        found = [row["speed_to_reference"] for row in pairs]
        yield {
            "kind": kind,
            "reference": pairs[-1]["reference"],
            "depths": len(pairs),
            "depths_with_1_inside": sum(each["low"] <= 1 <= each["high"] for each in found),
            "deepest": pairs[-1]["length"],
            "ratio": found[-1]["median"],
            "low": found[-1]["low"],
            "high": found[-1]["high"],
            "median_ratio": statistics.median(each["median"] for each in found),
            "chance": 1 - 2.0 ** (1 - min(each["pairs"] for each in found)),
        }


def _injection(points: Sequence[Row]) -> Iterable[dict[str, Any]]:
    """Decode from a made-up state over decode from one that was read, where both were measured at a length."""
    measured = [row for row in points if row["status"] == "measured"]
    read = {(row["kind"], row["length"]): row for row in measured if row["phase"] == "prefill"}
    for row in measured:
        other = read.get((row["kind"], row["length"]))
        if row["phase"] == "decode" and other:
            ratio = row["tokens_per_second"]["median"] / other["tokens_per_second"]["median"]
            yield {"kind": row["kind"], "length": row["length"], "injected_over_read": ratio}
