"""Runners of one base whose rows go through its weights together, each row with what its own adapter has beside them.

The plan is the base's, and beside its linears matrices that go by the group of a row's sequence; a group is a Runner.
Its sums are those of each Runner alone, in the same order, so the bits are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

from rookery.backends.native.pack import Choice, Choices
from rookery.backends.native.plan import Filled
from rookery.weights import tree

if TYPE_CHECKING:
    from rookery.backends.native.runner import Runner


class Family:
    """The Runners that have joined, as long as they are there. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: WeakKeyDictionary[Runner, int] = WeakKeyDictionary()
        self._groups: WeakKeyDictionary[Runner, int] = WeakKeyDictionary()  # of the members that the plan knows
        self._filled: Filled | None = None

    def join(self, runner: Runner) -> None:
        with self._lock:
            self._members[runner] = len(self._members)
        finalize(runner, self._left).atexit = False

    def plan(self, runners: Sequence[Runner]) -> tuple[Filled, list[int]]:
        """The plan, made anew where it lacks one of `runners`; and the group of each."""
        with self._lock:
            filled = self._filled
            if filled is None or any(runner not in self._groups for runner in runners):
                there = list(self._members)
                filled = self._filled = self._planned(there)
                self._groups = WeakKeyDictionary({runner: n for n, runner in enumerate(there)})
            return filled, [self._groups[runner] for runner in runners]

    def _left(self) -> None:
        """The plan holds what a member that has gone had beside the weights. No lock: the collector may call this
        while it is held.
        """
        self._filled = None

    def _planned(self, there: Sequence[Runner]) -> Filled:
        first = there[0]

        def choice(name: str, which: int) -> Choice:
            return Choice(tuple(runner.sides[name][which] if name in runner.sides else None for runner in there))

        names = dict.fromkeys(name for runner in there for name in runner.sides)
        sides: dict[str, Any] = {name: Choices(choice(name, 0), choice(name, 1)) for name in names}
        weights = replace(first.weights, sides=sides)
        return first.fill(tree(weights, lambda param, _: first.made[param.name], lambda _, side: side))
