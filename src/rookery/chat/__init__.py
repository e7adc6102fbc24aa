"""Talks as text: templates, what ends a reply, sampling profiles; and output held to a grammar (`chat.grammar`).

Importing this room loads neither jinja2 nor llguidance.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rookery.chat.find import load
    from rookery.chat.profiles import PROFILES
    from rookery.chat.template import Message, Template, clean, trailing_space

_HOME = {
    "Message": "template",
    "PROFILES": "profiles",
    "Template": "template",
    "clean": "template",
    "load": "find",
    "trailing_space": "template",
}

__all__ = ["PROFILES", "Message", "Template", "clean", "load", "trailing_space"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
