"""Write docs/help.md from the real --help pages; with --check, fail if the file says something else.

python scripts/help_pages.py [--check]
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "help.md"
HEAD = (
    "# Commands\n\nMade by `python scripts/help_pages.py` from the program itself; a test fails when the two differ.\n"
)


def help_page(command: list[str]) -> str:
    """What `rookery COMMAND --help` prints on a terminal of 100 columns."""
    from rookery.cli.main import main

    os.environ["COLUMNS"], os.environ["NO_COLOR"] = "100", "1"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main([*command, "--help"])
    return out.getvalue()


def text() -> str:
    from rookery.cli import lab
    from rookery.cli.main import COMMANDS

    pages = [["bench", "context"], *(["lab", name] for name in lab.COMMANDS)]
    parts = [HEAD]
    for command in ([], *([name] for name in COMMANDS), *pages):
        parts.append(f"## {' '.join(['rookery', *command])}\n\n```text\n{help_page(command).rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(text(), "utf-8")
    elif not PAGE.is_file() or PAGE.read_text("utf-8") != text():
        sys.exit(f"{PAGE.name} is not what the program says; run: python scripts/help_pages.py")
