"""Watching a state over many generations: what each capture measured, in a log that outlives the process.

`with Monitor(model, "watch.jsonl", window=64, every=16) as m: model.generate(...)`. Opening the log of an earlier run
of the same model goes on with it, its window too.
"""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from rookery.errors import InputError
from rookery.lab import metrics
from rookery.lab.journal import Journal, Row, read
from rookery.lab.trace import Array, Trace, whole
from rookery.state import State

if TYPE_CHECKING:
    from rookery.model import Model

__all__ = ["Monitor", "read"]

KEPT = 16  # sequences whose last capture is remembered, to compare the next one with


class Monitor:
    """A trace of the whole state that measures instead of keeping; on while its `with` block runs.

    A row (a line of the log, a dict; `rows` has the last `window` of them) holds for each piece of the state, by layer:
    - `rms`, in the state's units, and `nonfinite`, the counts of the pieces that have any;
    - `rel_delta` against the capture before in the same sequence, relative; and over the window of rows that ends here
      its `coherence_cv`, relative, and `mean_rel_delta`;
    - `effective_rank` of each head's WKV matrix, a count, where `ranks` asks for it;
    and of the whole state `delta`, its state_delta in the state's units, and over the window the `coherence` of those,
    by its first definition. A sequence's first row has no changes. What is not finite is null. Besides: `time` (seconds
    since 1970), `run` (openings of the log until then), `sequence` and `tokens` as in a Trace.

    `on_row` is called with every row. Memory is bounded: a window of rows and KEPT states.
    """

    def __init__(
        self,
        model: Model,
        log: str | os.PathLike[str],
        *,
        window: int = 64,
        every: int = 16,
        ranks: bool = False,
        on_row: Callable[[Row], object] | None = None,
    ) -> None:
        if ranks and model.config.version == "4":
            raise InputError(f"{model.config.name} has no state matrices, so no ranks to watch")
        self.model, self.log, self.window, self.ranks, self.on_row = model, log, whole("window", window), ranks, on_row
        self.rows: deque[Row] = deque(maxlen=self.window)
        self._trace = Trace(model, ["state.*"], every, sink=self)
        self._before: OrderedDict[int, State] = OrderedDict()
        self._journal: Journal | None = None

    def __enter__(self) -> Monitor:
        config = self.model.config
        about = {"fingerprint": self.model.weights.fingerprint, "model": config.name, "layers": config.n_layer}
        run = {
            "time": time.time(),
            "window": self.window,
            "every": self._trace.every,
            "arithmetic": self.model.arithmetic,
        }
        self._journal = Journal(self.log, about, run, self.window)
        self.rows.extend(self._journal.rows)
        try:
            self._trace.__enter__()
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self._trace.__exit__(kind, error, where)
        finally:
            if self._journal:
                self._journal.close()

    @property
    def nonfinite(self) -> dict[str, int]:
        """NaN and infinities by name, of all captures of this run."""
        return self._trace.nonfinite

    def add(self, sequence: int, tokens: Sequence[int], parts: Sequence[Array]) -> None:
        """Of the trace: measure a capture and write its row."""
        assert self._journal is not None
        state = State(self.model.config, np.concatenate([part[0] for part in parts]), self.model.weights)
        row: Row = {
            "kind": "capture",
            "run": self._journal.runs,
            "time": time.time(),
            "sequence": sequence,
            "tokens": tokens[0],
            **self._measures(self._before.pop(sequence, None), state),
        }
        self._before[sequence] = state
        if len(self._before) > KEPT:
            self._before.popitem(last=False)
        self.rows.append(row)
        self._journal.append(row)
        if self.on_row:
            self.on_row(row)

    def _measures(self, before: State | None, state: State) -> Row:
        after = metrics.parts(state)
        found: Row = {
            "rms": self._by_piece({name: _number(metrics.rms(x)) for name, x in after.items()}),
            "nonfinite": {name: n for name, x in after.items() if (n := metrics.nonfinite(x))},
        }
        if self.ranks:
            heads = [metrics.effective_rank(metrics.singular_values(x)) for n, x in after.items() if n.endswith(".wkv")]
            found["effective_rank"] = [[_number(rank) for rank in layer] for layer in heads]
        if before is not None:
            earlier = metrics.parts(before)
            found["delta"] = _number(metrics.state_delta(earlier, after))
            changes = {name: _number(metrics.rel_delta(earlier[name], x)) for name, x in after.items()}
            found["rel_delta"] = self._by_piece(changes)
            found |= self._steadiness(found, sum(x.size for x in after.values()))
        return found

    def _steadiness(self, now: Row, n: int) -> Row:
        """Over the window that ends with the row in the making, of a state of n numbers."""
        rows = [row for row in [*self.rows, now][-self.window :] if "delta" in row]
        deltas = np.array([row["delta"] for row in rows], np.float64)  # of None: NaN
        found: Row = {"coherence": _number(metrics.coherence(deltas, n=n)), "coherence_cv": {}, "mean_rel_delta": {}}
        for piece in now["rel_delta"]:
            table = np.array([row["rel_delta"][piece] for row in rows], np.float64)
            steadiness = [metrics.coherence_cv(layer) for layer in table.T]
            found["coherence_cv"][piece] = [_number(x.coherence_cv) for x in steadiness]
            found["mean_rel_delta"][piece] = [_number(x.mean) for x in steadiness]
        return found

    def _by_piece(self, values: dict[str, float | None]) -> dict[str, list[float | None]]:
        """{"layers.0.wkv": x, ..} -> {"wkv": [of each layer], ..}."""
        table: dict[str, list[float | None]] = {}
        for name, value in values.items():
            table.setdefault(name.split(".", 2)[2], []).append(value)
        return table


def _number(x: Any) -> float | None:
    """JSON has no NaN."""
    return float(x) if math.isfinite(x) else None
