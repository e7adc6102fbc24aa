"""The files of a sweep, made from its rows: table.md, table.csv, summary.json and the pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from rookery.bench.context import plot, table
from rookery.bench.context.settings import Settings
from rookery.bench.context.summary import Row, summary
from rookery.formats.atomic import atomic_write


def write(
    folder: str | os.PathLike[str], settings: Settings, machine: dict[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    """Write them and return the summary. Raises CannotWrite, and MissingExtra without matplotlib."""
    found = summary(settings, machine, rows)
    files = {f"{name}.png": data for name, data in plot.all_plots(found).items()}
    files["table.md"] = table.markdown(found).encode()
    files["table.csv"] = table.comma_separated(found).encode()
    files["summary.json"] = json.dumps(found, indent=1, allow_nan=False).encode() + b"\n"
    for name, data in files.items():
        with atomic_write(os.path.join(folder, name)) as file:
            file.write(data)
    return found
