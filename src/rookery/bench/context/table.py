"""A sweep's summary for people (Markdown, which reads as plain text) and for spreadsheets (CSV)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from rookery.bench.context.settings import Settings
from rookery.bench.context.summary import SPREADS, Row, chosen, title

Summary: TypeAlias = dict[str, Any]
Cell: TypeAlias = Callable[[Row], str]

COLUMNS = (
    "phase", "kind", "length", "status", "state", "tokens", "gb_per_second", "roofline_tokens_per_second",
    "above_roofline", "bytes_per_token", "weight_bytes", "state_bytes", "peak_bytes", "build_peak_bytes",
    "baseline_bytes", "need_bytes", "available_bytes", "why",
)  # fmt: skip
TELLING = 1.5  # a range wider than this, end over end, does not say that depth costs nothing

SCOPE = (
    "What this shows: what a token costs in time and memory as the context grows, where number of parameters, numbers' "
    "type, threads and machine are the same. What it does not: how well any model uses its context or predicts text "
    "(weights are random), speed on a GPU, in fused kernels of another runtime, or with several sequences at once. At "
    "short contexts the weights are most of what a step reads, so models differ little there in anything but their "
    "runtime; below a gap as wide as the quartiles nothing is shown."
)


def markdown(found: Summary) -> str:
    """All sections that have something to say."""
    parts = [_head(found), _models(found), _decode(found), _prefill(found), _memory(found), _train(found)]
    return "\n\n".join(part for part in [*parts, _checks(found), _left_out(found)] if part) + "\n"


def comma_separated(found: Summary) -> str:
    """A line a point: sizes in bytes, speeds as medians with their quartiles."""
    weights = {model["kind"]: model["weight_bytes"] for model in found["models"]}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{name}_{part}" for name in SPREADS for part in ("median", "q1", "q3"))])
    for row in found["points"]:
        full = {**row, "weight_bytes": weights.get(row["kind"])}
        spreads = [row.get(name, {}).get(part, "") for name in SPREADS for part in ("median", "q1", "q3")]
        writer.writerow([*("" if full.get(name) is None else full[name] for name in COLUMNS), *spreads])
    return out.getvalue()


def setting(found: Summary) -> str:
    """One line on what is compared, for the table and the pictures; that runtimes differ belongs into it."""
    settings = found["settings"]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    return (
        f"{settings['parameters'] / 1e6:.3g} M parameters in {settings['layers']} layers, {settings['dtype']}, "
        f"{threads}, batch 1; {runtimes(found)}"
    )


def runtimes(found: Summary) -> str:
    """What the models run in: the word before the first comma of their runtimes."""
    by_runtime: dict[str, list[str]] = {}
    for model in found["models"]:
        by_runtime.setdefault(model["runtime"].partition(",")[0], []).append(title(model["kind"]))
    if len(by_runtime) < 2:
        return f"all in {''.join(by_runtime)}" if by_runtime else "nothing measured"
    most = max(by_runtime, key=lambda name: len(by_runtime[name]))
    others = [f"{', '.join(kinds)}: {name}" for name, kinds in by_runtime.items() if name != most]
    return f"RUNTIMES DIFFER: {most}, but {'; '.join(others)}"


def size(count: float | None) -> str:
    """Bytes, decimal."""
    if count is None:
        return ""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:,.0f} {name}"
    return f"{count:.0f} B"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text: words to the left, the rest to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [not any(text[:1].isdigit() for text in column[1:]) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [c.ljust(w) if of else c.rjust(w) for c, w, of in zip(row, widths, left, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [f":{'-' * (w - 1)}" if of else f"{'-' * (w - 1)}:" for w, of in zip(widths, left, strict=True)]
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def _head(found: Summary) -> str:
    settings, machine = found["settings"], found["machine"]
    roof = found["stream_gb_per_second"]
    return "\n".join([
        "# Speed and memory against context",
        "",
        setting(found) + ".",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {size(machine['memory_bytes'])}; "
        f"torch {machine['torch']}.",
        f"Vocabulary {settings['vocab']:,} for all, so tokens/s compare as they are. Equal are the parameters of the "
        "blocks; embedding and head are counted apart.",
        f"Each point is a process of its own; medians (and quartiles) of {settings['repeats']} repeats; points in an "
        f"order drawn from seed {settings['seed']}.",
        "Roof: " + (f"{roof:.1f} GB/s, the most that reading a large buffer reached." if roof else "not measured."),
        "",
        SCOPE,
    ])  # fmt: skip


def _models(found: Summary) -> str:
    notes = [f"- {title(m['kind'])}: {m['note']}" for m in found["models"] if m["note"]]
    rows = [
        (title(m["kind"]), f"{m['parameters']:,}", f"{m['embedding_parameters']:,}", size(m["weight_bytes"]),
         "constant" if m["constant"] else "grows", m["runtime"])
        for m in found["models"]
    ]  # fmt: skip
    table = aligned(("model", "parameters", "embedding, head", "weights", "state", "runtime"), rows)
    return "\n\n".join(["## Models", table, *(["\n".join(notes)] if notes else [])]) if rows else ""


def _matrix(found: Summary, phase: str, what: str, cell: Cell) -> str:
    """Lengths down, kinds across; a point without a value says why."""
    rows = chosen(found, phase, measured=False)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    by_place = {(row["kind"], row["length"]): row for row in rows}

    def text(kind: str, length: int) -> str:
        row = by_place.get((kind, length))
        return "not asked" if row is None else cell(row) if row["status"] == "measured" else absent(row)

    lengths = sorted({row["length"] for row in rows})
    lines = [(f"{length:,}", *(text(kind, length) for kind in kinds)) for length in lengths]
    return aligned((what, *map(title, kinds)), lines) if lines else ""


def absent(row: Row) -> str:
    """Why a point has no value, in few words."""
    return {"oom": f"needs {size(row['need_bytes'])}", "skipped": "too slow"}.get(row["status"], "failed")


def _spread(name: str, scale: float = 1.0) -> Cell:
    def cell(row: Row) -> str:
        value = row[name]
        mark = " !" if row.get("above_roofline") and name == "tokens_per_second" else ""
        low, high = number(value["q1"] * scale), number(value["q3"] * scale)
        return f"{number(value['median'] * scale)}{mark} ({low} to {high})"

    return cell


def _decode(found: Summary) -> str:
    if not chosen(found, "decode", measured=False):
        return ""
    speeds = _matrix(found, "decode", "depth", _spread("tokens_per_second"))
    share = _matrix(found, "decode", "depth", _against_roof)
    settings = found["settings"]
    patience = Settings.of(settings).patience
    return "\n\n".join([
        "## Decode, tokens/s",
        f"From an injected state or KV of that depth; {settings['tokens']} tokens a repeat, or "
        f"{settings['tokens']} in all repeats where that would take more than {patience:.3g} s.",
        speeds,
        "Against the roof: tokens/s that the bandwidth allows (GB/s that the measured speed reads; share of the roof). "
        "A point above its roof is marked !: its bytes lay in a cache, or are counted wrongly.",
        share,
    ])  # fmt: skip


def _against_roof(row: Row) -> str:
    limit = row["roofline_tokens_per_second"]
    if limit is None:
        return f"{row['gb_per_second']:.2g} GB/s"
    share = row["tokens_per_second"]["median"] / limit
    return f"{number(limit)} ({row['gb_per_second']:.3g} GB/s; {share:.0%}){' !' if row['above_roofline'] else ''}"


def _prefill(found: Summary) -> str:
    if not chosen(found, "prefill", measured=False):
        return ""
    return "\n\n".join([
        "## Prefill, tokens/s",
        "The prompt is really read.",
        _matrix(found, "prefill", "prompt", _spread("prefill_tokens_per_second")),
        "## Time to first token, ms",
        "Prefill and the first step after it, the model already loaded.",
        _matrix(found, "prefill", "prompt", _spread("first_token_seconds", 1e3)),
    ])  # fmt: skip


def _memory(found: Summary) -> str:
    if not chosen(found, "decode", measured=False):
        return ""
    return "\n\n".join([
        "## Memory at a depth",
        "State or KV, exact from its tensors; then the peak of the process that decoded, above what it took after its "
        "imports (weights, state and workspace).",
        _matrix(found, "decode", "depth", lambda row: f"{size(row['state_bytes'])}; {size(row['peak_bytes'])}"),
    ])  # fmt: skip


def _train(found: Summary) -> str:
    if not chosen(found, "train", measured=False):
        return ""
    return "\n\n".join([
        "## Training step, ms",
        "Forward, backward and AdamW on one sequence.",
        _matrix(found, "train", "tokens", _spread("step_seconds", 1e3)),
        "## Memory of a training step",
        "Peak of its process above what it took after its imports.",
        _matrix(found, "train", "tokens", lambda row: size(row["peak_bytes"])),
    ])  # fmt: skip


def _checks(found: Summary) -> str:
    parts = []
    if found["depth_verified"]:
        rows = [
            (title(v["kind"]), f"{v['deepest']:,}", f"{v['ratio']:.3f}", f"{v['low']:.3f} to {v['high']:.3f}",
             _inside(v["low"], v["high"]), f"{v['depths_with_1_inside']} of {v['depths']}")
            for v in found["depth_verified"]
        ]  # fmt: skip
        first = found["depth_verified"][0]
        parts += [
            f"Speed at the deepest point over that at {first['reference']:,}, in pairs in one process; the range of "
            f"the pairs holds the median ratio with {first['chance']:.0%} chance.",
            aligned(("constant state", "depth", "ratio", "range", "1 inside", "depths with 1 inside"), rows),
        ]
    if found["injection_verified"]:
        ratios = [v["injected_over_read"] for v in found["injection_verified"]]
        furthest = max(found["injection_verified"], key=lambda v: abs(v["injected_over_read"] - 1))
        parts.append(
            f"Decode from an injected state over decode from one that was read, {len(ratios)} points: "
            f"{min(ratios):.2f} to {max(ratios):.2f}; furthest from 1: {title(furthest['kind'])} at "
            f"{furthest['length']:,}."
        )
    above = [f"{title(kind)} at {length:,}" for _, kind, length in found["above_roofline"]]
    if chosen(found, "decode"):
        parts.append(f"Above the roof: {', '.join(above) or 'none'}.")
    return "\n\n".join(["## Verified", *parts]) if parts else ""


def _inside(low: float, high: float) -> str:
    """Whether a range holds 1; one that is wide would hold it whatever was measured."""
    if not low <= 1 <= high:
        return "NO"
    return "yes" if high <= TELLING * low else "too noisy to say"


def _left_out(found: Summary) -> str:
    rows = [
        (title(row["kind"]), row["phase"], f"{row['length']:,}", row["status"], size(row["need_bytes"]),
         size(row["available_bytes"]), row["why"].replace("|", "/"))
        for row in found["points"]
        if row["status"] != "measured"
    ]  # fmt: skip
    head = ("model", "phase", "length", "status", "needs at least", "there was", "why")
    return f"## Points without a value\n\n{aligned(head, rows)}" if rows else ""
