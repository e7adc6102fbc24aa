"""What `rookery info` says of an adapter: how it was made, for which base, and what it changes."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from rookery.cli.main import printable

if TYPE_CHECKING:
    from rookery.weights.adapters import Adapter, Part

STORY = ("rank", "alpha", "dropout", "targets", "tokenizer", "steps", "objective")  # what our files say besides


def run(path: str, as_json: bool) -> int:
    facts = describe(*_opened(path))
    print(json.dumps(facts, indent=2) if as_json else page(facts))
    return 0


def _opened(path: str) -> tuple[Adapter, bool]:
    """The adapter, and whether its alpha is known."""
    from rookery import formats
    from rookery.weights import adapters
    from rookery.weights.adapters import peft_pth

    lacking = os.path.isfile(path) and formats.detect(path) == "pth" and peft_pth.wants_alpha(formats.read(path))
    return adapters.load(path, alpha=1.0 if lacking else None), not lacking


def describe(adapter: Adapter, scaled: bool = True) -> dict[str, Any]:
    """All that is known of an adapter, as plain JSON values. `scaled`: the scale of its pairs is known."""
    from rookery import formats

    said = adapter.metadata
    rows = _rows(adapter, scaled)
    return {
        "path": adapter.path,
        "kind": "adapter",
        "bytes": formats.size(adapter.path),
        "method": adapter.method,
        "parameters": sum(row["parameters"] for row in rows),
        "quant": adapter.quant,
        "base": {
            "name": said.get("rookery.base.name"),
            "fingerprint": adapter.base_fingerprint,
            "lineage": adapter.base_lineage,
        },
        "training": {name: said[f"rookery.{name}"] for name in STORY if f"rookery.{name}" in said},
        "alpha_known": scaled,
        "targets": rows,
        "fingerprint": adapter.fingerprint if scaled else None,
    }


def _rows(adapter: Adapter, scaled: bool) -> list[dict[str, Any]]:
    """One entry for each tensor's place in its layer, kind of part, rank and scale; in how many tensors it is."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, part in adapter.parts.items():
        rank, scale = _rank(part), getattr(part, "scale", None) if scaled else None
        target = re.sub(r"^blocks\.\d+\.", "", name)
        key = (target, type(part).__name__, rank, scale)
        row = found.setdefault(
            key, {"target": target, "part": key[1], "rank": rank, "scale": scale, "tensors": 0, "parameters": 0}
        )
        row["tensors"] += 1
        row["parameters"] += sum(value.size for value in vars(part).values() if hasattr(value, "size"))
    return sorted(found.values(), key=lambda row: (row["target"], row["part"], row["rank"] or 0))


def _rank(part: Part) -> int | None:
    """Of a pair its rank, of blocks their side; None for a whole tensor."""
    a, d = getattr(part, "a", None), getattr(part, "d", None)
    return len(a) if a is not None else d.shape[-1 if d.ndim == 3 else 0] if d is not None else None


def page(facts: dict[str, Any]) -> str:
    """The same for people."""
    base = facts["base"]
    name = base["name"] or ("a model of this lineage" if base["lineage"] else "not said in the file")
    rows = {
        "adapter": facts["method"],
        "file": f"{facts['path']} ({facts['bytes'] / 1e6:.2f} MB)",
        "base": name + (f", lineage {base['lineage']}" if base["lineage"] else ""),
        "rounded base": facts["quant"] if facts["quant"] != "none" else None,
        "parameters": f"{facts['parameters']:,}",
        "alpha": None if facts["alpha_known"] else "not in the file: give --alpha X (or, of a PiSSA, --init FILE)",
        **{key: value for key, value in facts["training"].items() if key not in ("rank", "alpha")},
        "fingerprint": facts["fingerprint"],
    }
    # Some of it is the file's own words, which must not reach a terminal as codes.
    lines = [f"{label:<12} {printable(str(value))}" for label, value in rows.items() if value]
    lines += ["", f"{'target':<22} {'part':<8} {'rank':>5} {'scale':>8} {'tensors':>7} {'parameters':>12}"]
    for row in facts["targets"]:
        rank, scale = row["rank"] or "-", "-" if row["scale"] is None else f"{row['scale']:g}"
        target = printable(row["target"])
        lines.append(f"{target:<22} {row['part']:<8} {rank:>5} {scale:>8} {row['tensors']:>7} {row['parameters']:>12,}")
    return "\n".join(lines)
