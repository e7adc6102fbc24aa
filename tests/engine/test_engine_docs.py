"""The engine's example in docs/serving.md runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_example_runs() -> None:
    (block,) = [b for b in PAGE.read_text("utf-8").split("```python\n")[1:] if "rookery.engine" in b]
    names: dict[str, Any] = {}
    exec(block.split("```")[0], names)
    assert len({*names["texts"]}) == 3
    for text in names["texts"]:
        assert text
