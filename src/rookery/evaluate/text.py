"""What a run says: JSON that any program reads, and tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON in which NaN and infinities, which JSON cannot say, are null."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def report(results: dict[str, dict[str, Any]]) -> str:
    """Every task's figures, then its tables."""
    return "\n\n".join("\n".join(_task(name, figures)) for name, figures in results.items())


def _task(name: str, figures: dict[str, Any]) -> Iterator[str]:
    yield f"{name}, {figures['n']} items"
    for key, value in figures.items():
        if key in ("n", "tables") or key.endswith(("_stderr", "_low", "_high")):
            continue
        yield f"  {key:<16} {_figure(figures, key, value)}"
    for table in figures.get("tables", ()):
        yield ""
        yield f"  {table['title']}"
        yield from (f"    {line}" for line in aligned([table["columns"], *table["rows"]]))


def _figure(figures: dict[str, Any], key: str, value: Any) -> str:
    said = cell(value)
    error = figures.get(f"{key}_stderr")
    if error is not None and math.isfinite(error):
        said += f" ± {cell(error)}"
    if f"{key}_low" in figures:
        said += f"   (95 %: {cell(figures[f'{key}_low'])} to {cell(figures[f'{key}_high'])})"
    return said


def aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines with columns of equal width: texts to the left, numbers to the right."""
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    left = [any(isinstance(row[i], str) for row in rows[1:]) for i in range(len(widths))]
    return ["  ".join(_padded(*each) for each in zip(row, widths, left, strict=True)).rstrip() for row in texts]


def _padded(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
