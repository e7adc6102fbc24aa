"""The keys of a run: a dataclass of topics, read from TOML, with `key=value` on top.

Every field's name is unique over the topics, so that a key stands alone (`lr_init=3e-4`) or after its topic
(`optimiser.lr_init=3e-4`), in the file as on the command line. Keys of other programs are understood where a `Keys` is
told what they mean.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, get_type_hints

from rookery.errors import InputError

Value: TypeAlias = Any  # what TOML can say: str, int, float, bool, list, table
S = TypeVar("S")

LARGEST = 2**63


def key(default: Value, help: str) -> Any:
    """A field of a topic; a table begins empty."""
    about = {"help": help}
    return field(default_factory=dict, metadata=about) if default == {} else field(default=default, metadata=about)


class Keys(Generic[S]):
    """The keys of the dataclass `settings`, whose fields are topics: dataclasses with their defaults.

    `renamed`: names of other programs and ours. `foreign(name, value)`: what such a key means, as {our name: value}
    (empty: nothing), or None for a key of ours. `counts`: names that `fold` alone understands; it may change all that
    was given before it is looked at.
    """

    def __init__(
        self,
        settings: type[S],
        renamed: Mapping[str, str],
        foreign: Callable[[str, Value], dict[str, Value] | None],
        counts: Iterable[str] = (),
        fold: Callable[[dict[str, Value]], None] = lambda given: None,
    ) -> None:
        self.settings, self.renamed, self.foreign, self.counts, self.fold = settings, renamed, foreign, counts, fold
        self.topics: dict[str, type[Any]] = {f.name: type(f.default) for f in fields(settings)}  # type: ignore[arg-type]
        self.home = {f.name: topic for topic, cls in self.topics.items() for f in fields(cls)}
        self.types = {name: hint for cls in self.topics.values() for name, hint in get_type_hints(cls).items()}

    def load(self, path: str | None, overrides: Iterable[str] = ()) -> S:
        """Settings from a TOML file (none: the defaults) with `key=value` on top.

        Raises InputError naming the key, what it wants and the nearest known name.
        """
        settings = self.settings()
        given: dict[str, Value] = {}
        if path is not None:
            given |= self._flat(read(path), path)
        for item in overrides:
            name, equals, text = item.partition("=")
            if not equals:
                raise InputError(f"{item!r}: an override is key=value, for example lr_init=3e-4")
            given |= self._flat({name.strip(): self._parse(name.strip(), text)}, "the command line")
        self.fold(given)
        for name, value in given.items():
            topic = self.home[name]
            part = replace(getattr(settings, topic), **{name: self.converted(name, value)})
            settings = replace(settings, **{topic: part})  # type: ignore[type-var]
        return settings

    def complain(self, wrong: Iterable[tuple[Any, str, Value, str]]) -> None:
        """Raises InputError for the first (is it wrong, name, value, what is wanted) that is."""
        for bad, name, value, wanted in wrong:
            if bad:
                raise InputError(f"{self.home[name]}.{name} = {value!r}: {wanted} is wanted")

    def describe(self) -> str:
        """All keys with defaults and meaning, as a TOML file."""
        lines = []
        for topic, cls in self.topics.items():
            lines.append(f"[{topic}]  # {cls.__doc__.splitlines()[0] if cls.__doc__ else ''}")
            default = cls()
            for f in fields(cls):
                lines.append(f"{f.name} = {_toml_value(getattr(default, f.name))}  # {f.metadata['help']}")
            lines.append("")
        return "\n".join(lines)

    def as_dict(self, settings: S) -> dict[str, dict[str, Value]]:
        """For JSON and for comparing a checkpoint with its run."""
        return {
            t: {f.name: getattr(getattr(settings, t), f.name) for f in fields(cls)} for t, cls in self.topics.items()
        }  # fmt: skip

    def _flat(self, table: Mapping[str, Value], where: str) -> dict[str, Value]:
        """{topic: {key: value}}, {"topic.key": value} or {key: value} -> {key: value}, all known."""
        out: dict[str, Value] = {}
        for key, value in table.items():
            topic, dot, name = key.partition(".")
            if key in self.topics and isinstance(value, Mapping):
                for inner in value:
                    out |= self._one(inner, value[inner], f"{where}, [{key}]", key)
            elif isinstance(value, Mapping) and not dot and key not in self.home:
                near = get_close_matches(key, self.topics, 1, 0.0)[0]
                raise InputError(f"{where}: unknown table [{key}]; the nearest name is [{near}]")
            elif dot and topic in self.topics:
                out |= self._one(name, value, where, topic)
            else:
                out |= self._one(key, value, where, None)
        return out

    def _one(self, key: str, value: Value, where: str, topic: str | None) -> dict[str, Value]:
        if key in self.counts:
            return {key: value}
        theirs = self.foreign(key, value)
        if theirs is not None:
            return theirs
        name = self.renamed.get(key, key)
        if name not in self.home or (topic is not None and self.home[name] != topic and key == name):
            near = get_close_matches(name, [*self.home, *self.renamed], 1, 0.0)
            home = f"; {name} belongs under [{self.home[name]}]" if name in self.home else ""
            raise InputError(f"{where}: unknown key {key!r}{home or f'; the nearest name is {near[0]}'}")
        return {name: value}

    def _parse(self, key: str, text: str) -> Value:
        """The right side of key=value: TOML where it is TOML, else a string; text for a key of text, quoted or not."""
        text = text.strip()
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except (ValueError, RecursionError):
            return text
        name = key.rpartition(".")[2]
        is_text = self.types.get(self.renamed.get(name, name)) is str
        return text if is_text and not isinstance(value, str) else value

    def converted(self, name: str, value: Value) -> Value:
        """`value` as the field's type, or an InputError."""
        hint = self.types[name]
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
            hint, "a list of names"
        )
        if hint is bool and value in (0, 1):
            return bool(value)
        if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
            if hint is float and (isinstance(value, float) or abs(value) < LARGEST):
                return float(value)
            if hint is int and abs(value) < LARGEST and value == int(value):
                return int(value)
        if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        if hint == tuple[str, ...]:
            if isinstance(value, str):
                return (value,) if value else ()  # "" as a path would be the folder one is in
            if isinstance(value, list) and all(isinstance(v, str) for v in value):
                return tuple(value)
        if hint == dict[str, int]:
            wanted = "a table of whole numbers, for example { w = 32, a = 32 }"
            if isinstance(value, Mapping) and all(type(v) is int and v > 0 for v in value.values()):
                return dict(value)
        if hint is bool and isinstance(value, bool):
            return value
        raise InputError(f"{self.home[name]}.{name} = {value!r}: {wanted} is wanted")


def read(path: str) -> dict[str, Value]:
    """A TOML file as it is. Raises InputError."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a TOML file with the run's settings is wanted") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits and deep nesting too
        raise InputError(f"{path}: not TOML: {error}") from None


def _toml_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {v}" for k, v in value.items()) + " }" if value else "{}"
    return repr(value)
