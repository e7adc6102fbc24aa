"""What a task is: items to ask about, a row for each, figures over the rows. One task is one file in `tasks/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from rookery.evaluate.requests import Answer, Coder, Request


@dataclass(frozen=True)
class Item:
    """One question: the requests that answer it, and what its row says besides (JSON values)."""

    requests: tuple[Request, ...]
    about: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A task is made from its settings (a frozen dataclass `Settings`) and, where it needs one, its data file.

    It must give the same items whenever it is made of the same settings, data and coder: a run is resumed by counting.
    Raises InputError for settings that make no sense, and FileError subclasses for its data.
    """

    name: ClassVar[str]
    settings: Any  # the dataclass; written to the manifest

    def items(self, coder: Coder) -> Iterator[Item]:
        """Lazily, in a fixed order. Raises InputError where the model lacks tokens that the task needs."""

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        """JSON values; all that `summary` wants, and what a reader wants to see of one item."""

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Figures under lm-eval's keys (`acc`, `acc_stderr`, `perplexity`, ...), each with its standard error, and
        `tables`, where there is more to see than one line: [{"title", "columns": [...], "rows": [[...], ...]}]."""
