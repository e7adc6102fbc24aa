"""Watching a model run: `with model.trace("state.layers.*.wkv", every=16) as t:` and what was captured by `t[name]`.

The points are DESIGN's: `layers.{i}.att.{r,w,k,v,a,g,wkv_out}`, `layers.{i}.ffn.{k,out}`, `layers.{i}.resid` (one row a
token) and `state.layers.{i}.{att_shift,ffn_shift,wkv}` (read between tokens, so that tokens are then fed in pieces
which end where a capture is due). B sequences of a forward, K captures, W numbers of a capture.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import isfinite
from numbers import Integral
from re import sub
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import numpy.typing as npt

from rookery import model as model_room
from rookery.architecture import Config
from rookery.backends.reference.points import points
from rookery.errors import InputError
from rookery.lab.records import Columns, File, Memory, Sink, read
from rookery.lab.traced import UNKNOWN, Place, Run, Traces, listen
from rookery.state import State, shapes

if TYPE_CHECKING:
    from rookery.model import Model

__all__ = ["Trace", "names", "read"]

Array = npt.NDArray[Any]
DTYPES = ("float16", "float32", "float64")
STATE = "state."


_opening = threading.Lock()  # of traces, of all models


def names(config: Config) -> list[str]:
    """All that can be captured of a model, layer by layer, the state last."""
    return [*points(config), *(STATE + name for name, _ in shapes(config))]


class Trace:
    """What `Model.trace` gives: on while its `with` block runs, to be read then and later.

    `t[name]`: [captures, ...]; a point made of parameters alone (the decay of v4 and v5) appears once, [1, ...].
    `tokens` [captures]: how many tokens of its sequence the trace had seen by then. `sequence` [captures]: which one,
    numbered as met: a forward from a state that this trace saw goes on with its sequence, one from any other state, or
    from one that was gone on from before, begins another. `nonfinite`: NaN and infinities by name, of all captures.
    """

    def __init__(
        self,
        model: Model,
        patterns: Sequence[str],
        every: int = 1,
        last: int | None = None,
        file: str | os.PathLike[str] | None = None,
        dtype: str | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.model, self.every = model, whole("every", every)
        self.last = None if last is None else whole("last", last)
        if dtype not in (None, *DTYPES):
            raise InputError(
                f"dtype {dtype!r}: {', '.join(DTYPES[:-1])} or {DTYPES[-1]} is wanted, None for the model's"
            )
        self.names = matching(model.config, patterns)
        self.nonfinite: dict[str, int] = {}
        self.constants: dict[str, Array] = {}
        self._dtype = np.dtype(dtype or model.runner.dtype)
        self._narrow = self._dtype.itemsize < model.runner.dtype.itemsize
        self._layout()
        self._file, self._kept = file, sink or Memory(self._columns, self._dtype, self.last)
        self._entered = self._closed = self._overflowed = False
        self._lock = threading.Lock()
        self._places: dict[ref[State], Place] = {}  # a state that is let go of takes its entry along
        self._sequences = self._captures = 0

    def _layout(self) -> None:
        """What is where in a capture: rows first, then the state's pieces."""
        of_rows, of_state = points(self.model.config), dict(shapes(self.model.config))
        self._constant = {name for name in self.names if name in of_rows and of_rows[name].constant}
        rows = {n: of_rows[n].shape for n in self.names if n in of_rows and n not in self._constant}
        pieces = {n: of_state[n.removeprefix(STATE)] for n in self.names if n.startswith(STATE)}
        self.heard = frozenset([*rows, *self._constant])
        self._rows, self._columns = tuple(rows), Columns(rows | pieces)
        everything = Columns(of_state)
        self._cuts: list[slice] = []  # of the flat state, neighbours joined
        for name in pieces:
            cut = everything.places[name.removeprefix(STATE)]
            if self._cuts and self._cuts[-1].stop == cut.start:
                cut = slice(self._cuts.pop().start, cut.stop)
            self._cuts.append(cut)

    # on and off

    def __enter__(self) -> Trace:
        if self._entered:
            raise InputError("this trace was used before; model.trace(...) makes another")
        self._entered = True
        if self._file is not None:
            self._kept = self._open(self._file)
        try:
            with _opening:
                before = self.model.traces or Traces()
                after = Traces((*before, self))
                listen(self.model, before, after)  # first, so that no step is followed and not heard
                self.model.traces = after
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close()  # first: a step that another thread is in may no longer be heard
        with _opening:
            before = self.model.traces or Traces()
            left = Traces(t for t in before if t is not self)
            self.model.traces = left or None
            listen(self.model, before, left)
        if kind is None:
            self._report()

    def _open(self, path: str | os.PathLike[str]) -> File:
        about = {
            "every": self.every,
            "started": time.time(),
            "model": f"{self.model.config.name}, {self.model.arithmetic}",
            "fingerprint": self.model.weights.fingerprint,
        }
        file = File(path, self._columns, self._dtype, about, self.last)
        if not self._constant:
            file.begin({})
        return file

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            if isinstance(self._kept, File):
                self._kept.close()

    def _report(self) -> None:
        if self.nonfinite:
            name, count = next(iter(self.nonfinite.items()))
            more = f" and in {len(self.nonfinite) - 1} more points" if len(self.nonfinite) > 1 else ""
            warnings.warn(f"{count:,} captured numbers of {name} are NaN or infinite{more}", UserWarning, stacklevel=3)
        if self._overflowed:
            warnings.warn(
                f"captured numbers too large for {self._dtype} became infinite; take dtype='float32'",
                UserWarning,
                stacklevel=3,
            )

    # reading

    @property
    def tokens(self) -> Array:
        with self._lock:
            return self._read().tokens()

    @property
    def sequence(self) -> Array:
        with self._lock:
            return self._read().sequence()

    def __len__(self) -> int:
        """Captures made, those that a ring let go of included."""
        return self._captures

    def __getitem__(self, name: str) -> Array:
        with self._lock:
            if name in self.constants:
                return self.constants[name][None]
            if name in self._columns.shapes:
                return self._read().column(name)
        if name in self._constant:
            raise InputError(f"{name} appears with the first token, and none was read yet")
        raise InputError(f"{name!r} was not captured; there are {', '.join(self.names[:8])} ...")

    def _read(self) -> Memory | File:
        if isinstance(self._kept, Memory | File):
            return self._kept
        raise InputError("these captures went elsewhere")

    # capturing, called by `forward`

    def follow(self, given: Sequence[State | None], own: Sequence[State]) -> list[Place]:
        """Where each sequence of a forward stands that begins at the `given` states and works on its `own`."""
        return [self._follow(state, mine) for state, mine in zip(given, own, strict=True)]

    def _follow(self, state: State | None, mine: State) -> Place:
        before = None if state is None else self._places.get(ref(state))
        with self._lock:
            if before is not None and before.token == before.run.length:
                place = Place(before.run, before.token)
            else:  # a beginning, or a branch
                place = Place(Run(self._sequences), before.token if before else 0)
                self._sequences += 1
            place.run.length = UNKNOWN  # while it is gone on with: whoever else begins at that state branches
        self._places[ref(mine, self._places.pop)] = place
        return place

    def fits(self, places: list[Place], pieces: Sequence[Array]) -> bool:
        """Whether these may be fed at once."""
        for place, piece in zip(places, pieces, strict=True):  # noqa: SIM110  # runs with every token, so quickly
            if len(piece) > self.until(place):
                return False
        return True

    def until(self, place: Place) -> int:
        """How many tokens may be fed at once from here."""
        most = model_room.CHUNK  # a step of the runner, after which it tells what it heard
        return min(most, self.every - place.token % self.every) if self._cuts else most

    def take(
        self, places: list[Place], pieces: Sequence[Array], states: Sequence[State], heard: Mapping[str, Array]
    ) -> None:
        """Capture what is due after a step that fed these pieces."""
        with self._lock:
            if self._closed:  # while a step of another thread ran
                return
            if self.heard:
                self._hear(heard)
            row = 0
            for place, piece, state in zip(places, pieces, states, strict=True):
                begin = place.token
                first = begin + self.every - begin % self.every
                place.token = place.run.length = begin + len(piece)
                if first <= place.token and self._columns.width:
                    due = range(first, place.token + 1, self.every)
                    self._take(place.run.number, due, row - begin - 1, state, heard)
                row += len(piece)

    def _hear(self, heard: Mapping[str, Array]) -> None:
        if not self.heard <= heard.keys():
            raise InputError("model.runner.listen was called while a trace was open; open a trace instead")
        if self._constant and not self.constants:
            self.constants = {name: heard[name].copy() for name in self.names if name in self._constant}
            if isinstance(self._kept, File):
                self._kept.begin(self.constants)

    def _take(self, number: int, due: range, shift: int, state: State, heard: Mapping[str, Array]) -> None:
        """`shift` leads from a token's number to its row among those of the step."""
        rows = slice(due.start + shift, due.stop + shift, due.step)
        parts = [heard[name][rows].reshape(len(due), -1) for name in self._rows]
        parts += [state.flat[None, cut] for cut in self._cuts]
        with np.errstate(over="ignore", invalid="ignore"):
            sound = all(isfinite(part.sum()) for part in parts)  # a third of the time that asking each number takes
        if not sound:
            self._count(np.concatenate(parts, axis=1))
        if self._narrow:
            parts = self._narrowed(parts)
        self._captures += len(due)
        self._kept.add(number, due, parts)

    def _count(self, block: Array) -> None:
        for name, place in self._columns.places.items():
            if bad := _nonfinite(block[:, place]):
                self.nonfinite[name] = self.nonfinite.get(name, 0) + bad

    def _narrowed(self, parts: list[Array]) -> list[Array]:
        with np.errstate(over="ignore"):
            narrow = [part.astype(self._dtype) for part in parts]
        self._overflowed |= sum(map(_nonfinite, narrow)) > sum(map(_nonfinite, parts))
        return narrow


def matching(config: Config, patterns: Sequence[str]) -> list[str]:
    """The names that any of the globs matches. Raises InputError for a glob that matches none."""
    known = names(config)
    if not patterns:
        raise InputError('nothing to capture: name points, as in model.trace("state.layers.*.wkv")')
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"a point is named by a text with * for any, not by {pattern!r}")
        if not any(fnmatchcase(name, pattern) for name in known):
            kinds = list(dict.fromkeys(_any_layer(name) for name in known))
            near = get_close_matches(_any_layer(pattern), kinds, 3, cutoff=0.0)
            raise InputError(
                f"no point of {config.name} with {config.n_layer} layers (from 0) matches {pattern!r}; "
                f"the nearest are {', '.join(near)}"
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _any_layer(name: str) -> str:
    return sub(r"\blayers\.[^.]*", "layers.*", name)


def _nonfinite(x: Array) -> int:
    return int(np.count_nonzero(~np.isfinite(x)))


def whole(name: str, value: Any) -> int:
    """`value`, if it is a whole number, 1 or more. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} {value!r}: a whole number, 1 or more, is wanted")
    return int(value)
