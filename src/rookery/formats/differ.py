"""What sets two JSON values apart, in words: for a file that was made with other settings than those at hand."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 60  # characters of a value


def difference(old: Any, new: Any, at: str = "") -> str:
    """The first place at which they differ and what stands there, "a.b 1, now 2"; empty where they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(key for key in new if key not in old)]:
            if found := difference(old.get(name), new.get(name), f"{at}.{name}" if at else str(name)):
                return found
        return ""
    return "" if old == new else f"{at} {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
