"""The settings of a task: a frozen dataclass whose fields are read from `NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rookery.errors import InputError

S = TypeVar("S")
SAID = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def read(settings: type[S], given: Mapping[str, Any], task: str = "") -> S:
    """The settings that `given` describes, as texts or as values. Raises InputError, with the nearest known name."""
    hints = get_type_hints(settings)
    made = {}
    for name, value in given.items():
        if name not in hints:
            near = get_close_matches(name, hints, 1, 0.5)
            known = f"did you mean {near[0]}?" if near else f"choose from {', '.join(hints) or 'none'}"
            raise InputError(f"{task or 'the task'} has no setting {name!r}; {known}")
        try:
            made[name] = _value(hints[name], value)
        except (ValueError, KeyError, OverflowError):
            raise InputError(f"{_named(task, name)}={value!r}: wanted {_wanted(hints[name])}") from None
    return settings(**made)


def describe(settings: type[Any]) -> list[tuple[str, str, str]]:
    """(name, default, what it means) of every field."""
    return [(f.name, text(f.default), f.metadata.get("help", "")) for f in fields(settings)]


def text(value: Any) -> str:
    """As it is given on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _named(task: str, name: str) -> str:
    return f"{task}.{name}" if task else name


def _value(kind: Any, value: Any) -> Any:
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
        found = tuple(_value(get_args(kind)[0], part) for part in parts)
        if not found or len(set(found)) < len(found):
            raise ValueError("each once, and at least one")
        return found
    if kind is bool:
        return value if isinstance(value, bool) else TRUTH[str(value).strip().lower()]
    if kind is str:
        return str(value).strip()
    number = kind(value if not isinstance(value, str) else value.strip())
    if number != number or number in (float("inf"), float("-inf")) or (isinstance(value, float) and number != value):
        raise ValueError("no such number")
    return number


def _wanted(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"{SAID[get_args(kind)[0]].removeprefix('a ')}s with commas between them, each once"
    return SAID[kind]
