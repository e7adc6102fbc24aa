"""What the lab's small commands share: states from files, and tables on stdout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rookery.cli import options
from rookery.cli.progress import Job
from rookery.errors import CannotWrite, InputError

EXACT = (
    "The RWKV computes in float32 unless --dtype or --backend says otherwise: activations\n"
    "that are rounded like the file's weights answer small pushes by steps."
)


def calm_numpy() -> None:
    """Before NumPy is imported: its threads and the native core's would wait for each other, token by token."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def load_exact(args: Any) -> Any:
    """The model of the flags; see EXACT. A token of so small a model as gosling is quickest on one thread."""
    if args.dtype is None and args.backend in ("auto", "native"):
        args.dtype = "float32"
    if args.threads is None and args.model == "gosling":
        args.threads = 1
    with Job(f"loading {args.model}"):
        return options.load_model(args)


def add_force(parser: Any, what: str) -> None:
    parser.add_argument("--force", action="store_true", help=f"overwrite {what}")


def check_target(path: str, force: bool) -> None:
    """Raises CannotWrite for a file that is there already, before any work."""
    if os.path.exists(path) and not force:
        raise CannotWrite(path, "exists already; --force overwrites it")


def prompt(words: Sequence[str]) -> str:
    text = " ".join(words)
    if not text:
        raise InputError("an empty prompt; give a text as argument")
    return text


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Aligned columns under their names; a head's rows are indented, what is not there is -."""
    lines = [list(columns)] + [[cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `lab.tables` with their first column: the piece, or the head beneath it."""
    return [{**row, "": row["piece"] if row["head"] is None else f"  head {row['head']}"} for row in rows]
