"""A model's forward while traces are open on it: cut where a capture is due, and what its steps told of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rookery.state import State

if TYPE_CHECKING:
    from rookery.lab.trace import Trace
    from rookery.model import Model
    from rookery.stream import Progress

Array = npt.NDArray[Any]
Steps = Callable[[Sequence[Array], Sequence[State], bool, Any], list[tuple[Array, State]]]

UNKNOWN = -1  # of a run's length
_now = threading.local()  # .heard: what the step of this thread has tapped so far


@dataclass(eq=False, slots=True)
class Run:
    """One run of tokens, numbered as met. `length`: how many were read."""

    number: int
    length: int = UNKNOWN


@dataclass(slots=True)
class Place:
    """Where a state stands: after so many tokens of a sequence."""

    run: Run
    token: int


class Traces(tuple["Trace", ...]):
    """Those that are open on a model, in the order in which they were opened."""

    @cached_property
    def heard(self) -> frozenset[str]:
        """The points of rows that any of them wants."""
        return frozenset[str]().union(*(trace.heard for trace in self))

    def forward(
        self,
        steps: Steps,
        ids: Sequence[npt.NDArray[np.int64]],
        given: Sequence[State | None],
        own: Sequence[State],
        every: bool,
        progress: Progress | None,
    ) -> list[tuple[Array, State]]:
        """`Model.forward` under these traces: its `steps`, cut where a state is due. `own` are changed.

        The law of rows makes the cuts invisible in the native and reference back ends; torch's results differ within
        the tolerance of its chunked forms.
        """
        followed, whole = list[list[Place]](), True
        for trace in self:
            followed.append(mine := trace.follow(given, own))
            whole = whole and trace.fits(mine, ids)
        if whole:  # as when decoding
            return self._step(steps, ids, own, followed, every, progress)
        longest = max(map(len, ids))
        at, out = [0] * len(ids), [list[Array]() for _ in ids]
        while active := [b for b, rows in enumerate(ids) if at[b] < len(rows)]:
            if progress:
                progress(min(at[b] for b in active), longest)
            places = [[mine[b] for b in active] for mine in followed]
            rooms = [
                min(trace.until(place) for trace, place in zip(self, each, strict=True))
                for each in zip(*places, strict=True)
            ]
            pieces = [ids[b][at[b] : at[b] + room] for b, room in zip(active, rooms, strict=True)]
            results = self._step(steps, pieces, [own[b] for b in active], places, every, None)
            for b, piece, (logits, _) in zip(active, pieces, results, strict=True):
                if not every:
                    out[b].clear()
                out[b].append(logits)
                at[b] += len(piece)
        return [(np.concatenate(rows) if every else rows[-1], s) for rows, s in zip(out, own, strict=True)]

    def _step(
        self,
        steps: Steps,
        pieces: Sequence[npt.NDArray[np.int64]],
        states: Sequence[State],
        places: list[list[Place]],
        every: bool,
        progress: Progress | None,
    ) -> list[tuple[Array, State]]:
        """One step of the runner, and what is due after it; `places` by trace and sequence."""
        heard: dict[str, Array] = {}
        if not self.heard:
            results = steps(pieces, states, every, progress)
        else:
            _now.heard = heard
            try:
                results = steps(pieces, states, every, progress)
            finally:
                _now.heard = None
        for trace, mine in zip(self, places, strict=True):
            trace.take(mine, pieces, states, heard)
        return results


def listen(model: Model, before: Traces, after: Traces) -> None:
    """Have the runner tell of what the traces `after` want, where that differs from what those `before` did."""
    if after.heard != before.heard:
        model.runner.listen(_hear if after.heard else None, after.heard)


def _hear(name: str, rows: Array) -> None:
    heard = getattr(_now, "heard", None)
    if heard is not None:  # else a step that no trace follows
        heard[name] = rows
