"""A model on the C++ core: weights in panels, the version file as a plan, runs of at most 256 rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rookery import _native
from rookery.architecture import Param
from rookery.backends.native import passes
from rookery.backends.native.family import Family
from rookery.backends.native.pack import Memory, Table, Weight, pack
from rookery.backends.native.plan import MAX_ROWS, Filled, Plan
from rookery.backends.native.symbols import program
from rookery.errors import BackendError, InputError
from rookery.formats.tensor import Tensor
from rookery.state import size
from rookery.weights import Weights, tree

if TYPE_CHECKING:
    from rookery.weights.adapters import Side

Array = npt.NDArray[Any]

BARE: frozenset[str] = frozenset()
MOST_CORES = 16
MOST_THREADS = 1024  # the core's limit
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # microseconds of time in each so many, both cgroup v2's


class Runner:
    """`dtype`: None runs the weights as they are stored, rounding activations to 8 bits or bf16 where the weights are;
    "float32" runs the same numbers with nothing rounded. States and logits are float32 either way.

    `threads`: default one for each physical core that this process may use, up to 16. `base`: see `adapted`.
    """

    name = "native"
    dtype = np.dtype("float32")

    def __init__(
        self,
        weights: Weights,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        base: Runner | None = None,
    ) -> None:
        if not _native.available():
            raise BackendError(f"the native back end is missing ({_native.reason}); {_native.REMEDY}")
        if dtype not in (None, "float32"):
            raise BackendError(
                f"dtype {dtype!r}: the native back end runs weights as stored (None) or in float32; "
                "backend='reference' has float64"
            )
        if device not in (None, "cpu"):
            raise BackendError(f"device {device!r}: the native back end runs on the cpu; backend='torch' has others")
        try:
            _native.core.isa()
        except ValueError as error:  # of ROOKERY_ISA
            raise BackendError(str(error)) from None
        self.weights, self.config, self.threads = weights, weights.config, threads or cores()
        if self.threads > MOST_THREADS:
            raise InputError(f"threads {threads}: the native back end takes 1 to {MOST_THREADS}")
        self._exact = dtype == "float32"
        self.arithmetic = "native float32" if self._exact else "native as stored"
        self.sides: dict[str, tuple[Weight, Weight]] = {}  # beside the matrix of this name
        self.made: dict[str, Any] = {}  # what the version file gets, by name
        self._held: list[Weight | Table] = []
        self._shared = {} if base is None else {id(held.tensor): held for held in base._held}
        self._plans: dict[frozenset[str], Filled] = {}  # by the points heard: the bare one, and the last beside it
        self._filled: Filled | None = None  # the one that runs; None: the family's
        self.listener: Callable[[str, Array], object] | None = None
        self._hearing = threading.RLock()  # what is heard lies in the engine until its next run
        try:
            with np.errstate(all="ignore"):  # what a damaged weight does shows in the logits
                self._model = tree(weights, self._param, self._side)
            self._joined = base is not None and base._kin(self)
            self.family: Family = base.family if base is not None and self._joined else Family()
            self.family.join(self)
            self.listen(None)
        except MemoryError:
            wanted = sum(w.tensor.nbytes for w in self._held)
            raise BackendError(f"{weights.path}: out of memory for weights of {wanted / 1e6:,.0f} MB") from None
        except ValueError as error:  # the core's limits
            raise BackendError(
                f"{weights.path}: the native back end has no room for {error}; backend='reference' runs this model"
            ) from error
        own = [w for w in self._held if id(w.tensor) not in self._shared]
        self.memory = Memory.of(part for w in own for part in (w.parts if isinstance(w, Weight) else [w]))

    def adapted(self, weights: Weights) -> Runner:
        """A Runner of `weights`, which are this one's with adapters: where a tensor is the same, it reads the panels
        that are there. Its `memory` is what it has besides; where that runs beside the weights, both share an engine.
        """
        return Runner(weights, "float32" if self._exact else None, threads=self.threads, base=self)

    def _kin(self, other: Runner) -> bool:
        """Whether all that they differ in are matrices beside the weights."""
        mine, theirs = self.weights, other.weights
        if any(side.gain is not None for side in (*mine.sides.values(), *theirs.sides.values())):
            return False
        return all(mine.tensors[p.name] is theirs.tensors[p.name] for p in mine.params)

    def _param(self, param: Param, tensor: Tensor) -> Any:
        self.made[param.name] = self._made(param, tensor)
        return self.made[param.name]

    def _made(self, param: Param, tensor: Tensor) -> Any:
        """Vectors as numbers, matrices as handles."""
        if param.kind == "vector":
            return tensor.float32().reshape(param.shape)
        if param.kind == "state":
            return None  # where a sequence begins, not part of a run
        if (held := self._shared.get(id(tensor))) is None:
            if param.kind == "embedding":
                held = Table(param.name, tensor)
            else:
                held = Weight(param.name, tensor, turned=param.kind == "lora", exact=self._exact)
        self._held.append(held)
        return held

    def _side(self, param: Param, side: Side) -> SimpleNamespace:
        """Both matrices as they are, whatever the base's type: their inputs are never rounded."""
        a, b = (Weight(f"{param.name}:{name}", Tensor.of(getattr(side, name))) for name in ("a", "b"))
        self.sides[param.name] = a, b
        self._held += [a, b]
        return SimpleNamespace(a=SimpleNamespace(weight=a), b=SimpleNamespace(weight=b), gain=side.gain)

    @property
    def engine(self) -> Any:
        """The core's: its threads, isa, weight_bytes, arena_bytes and bare stream()."""
        return self._running.engine

    @property
    def plan(self) -> Plan:
        return self._running.plan

    @property
    def _running(self) -> Filled:
        return self._filled or self.family.plan([self])[0]

    def listen(self, listener: Callable[[str, Array], object] | None, names: Iterable[str] = ()) -> None:
        """From now on call `listener(name, rows)` after each step for each point named: "layers.3.att.k", or "att.k"
        for every layer's. A point made of parameters alone has no rows.

        The listener hears and changes nothing: a plan of its own gives the same bits. Raises InputError for a
        name that no point of this model has.
        """
        wanted = frozenset([names] if isinstance(names, str) else names) if listener else BARE
        if self._joined and wanted == BARE:
            self.family.plan([self])  # what is wrong with it shows now
            self._filled = self.listener = None
            return
        if wanted not in self._plans:
            bare = {taps: filled for taps, filled in self._plans.items() if taps == BARE}
            self._plans = bare | {wanted: self.fill(self._model, wanted)}
        self._filled, self.listener = self._plans[wanted], listener

    def fill(self, model: SimpleNamespace, wanted: frozenset[str] = BARE) -> Filled:
        """An engine with the plan of these parameters."""
        with np.errstate(all="ignore"):
            steps = program(self.config, model, wanted)
        known = {*steps.taps, *(name.split(".", 2)[2] for name in steps.taps)}
        if unknown := sorted(wanted - known):
            raise InputError(f"no point {unknown[0]!r} in {self.config.name}; points are named as layers.0.att.k")
        made = passes.plan(steps)
        pack(made.weights(), self.threads)
        return Filled(made, self.threads, size(self.config), self.config.n_vocab)

    def step(self, rows: Sequence[npt.NDArray[np.int64]], states: Sequence[Array], every: bool = False) -> list[Array]:
        """See `backends.Runner`. Raises BackendError if memory runs out."""
        own = self._filled  # once: another thread may begin or end to listen meanwhile
        if own is None:
            return self.together([self] * len(rows), rows, states, every)
        try:
            return self._step(own, rows, states, every)
        except MemoryError:
            raise _out_of_memory(rows) from None

    def together(
        self,
        runners: Sequence[Runner],
        rows: Sequence[npt.NDArray[np.int64]],
        states: Sequence[Array],
        every: bool = False,
    ) -> list[Array]:
        """See `backends.Runner`: the base's weights are read once for all."""
        if self._filled is not None and all(runner is self for runner in runners):
            return self.step(rows, states, every)
        try:
            filled, groups = self.family.plan(runners)
            order = sorted(range(len(rows)), key=groups.__getitem__)  # rows of one adapter go side by side
            moved = [rows[b] for b in order], [states[b] for b in order]
            outs = self._step(filled, *moved, every, [groups[b] for b in order])
        except MemoryError:
            raise _out_of_memory(rows) from None
        return [out for _, out in sorted(zip(order, outs, strict=True), key=lambda pair: pair[0])]

    def _step(
        self,
        filled: Filled,
        rows: Sequence[npt.NDArray[np.int64]],
        states: Sequence[Array],
        every: bool,
        groups: Sequence[int] = (),
    ) -> list[Array]:
        listener, vocabulary = self.listener, self.config.n_vocab
        each = np.empty((sum(map(len, rows)) if every else 0, vocabulary), np.float32)
        last = [each[:0]] * len(rows)
        heard: dict[str, list[Array]] = {name: [] for name in filled.plan.taps}
        at = 0
        for run in runs([len(r) for r in rows]):
            ids = np.concatenate([rows[cut.sequence][cut.begin : cut.end] for cut in run])
            lengths = np.array([cut.end - cut.begin for cut in run], np.int64)
            logits = each[at : at + len(ids)] if every else np.empty((len(run), vocabulary), np.float32)
            with self._hearing if heard else nullcontext():
                mine = [groups[cut.sequence] for cut in run] if groups else []
                flats = [states[cut.sequence] for cut in run]
                filled.engine.run(ids, lengths, flats, logits, every, groups=mine)
                for name, pieces in heard.items():
                    pieces.append(self._hear(filled, name, len(ids)))
            if not every:
                for cut, row in zip(run, logits, strict=True):
                    last[cut.sequence] = row
            at += len(ids)
        if listener:
            for name, pieces in heard.items():
                listener(name, np.concatenate(pieces))
            for name, constant in filled.plan.known.items():
                listener(name, constant)
        return np.split(each, np.cumsum([len(r) for r in rows])[:-1]) if every else last

    def _hear(self, filled: Filled, name: str, rows: int) -> Array:
        tap = filled.plan.taps[name]
        values: Array = filled.read(tap, rows)
        return values.reshape(rows, self.config.n_head, -1) if tap.headed else values


def _out_of_memory(rows: Sequence[Array]) -> BackendError:
    return BackendError(f"out of memory in a step of {sum(map(len, rows)):,} tokens; feed fewer at once")


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows [begin, end) of a sequence."""

    sequence: int
    begin: int
    end: int


def runs(lengths: Sequence[int]) -> Iterator[list[Cut]]:
    """The rows of all sequences in runs of at most MAX_ROWS; the law of rows makes the cuts invisible."""
    run: list[Cut] = []
    room = MAX_ROWS
    for b, length in enumerate(lengths):
        at = 0
        while at < length:
            end = min(length, at + room)
            run.append(Cut(b, at, end))
            room -= end - at
            at = end
            if not room:
                yield run
                run, room = [], MAX_ROWS
    if run:
        yield run


def cores() -> int:
    """Physical cores that this process may use, and no more than feed the memory of most machines: a second thread on
    a core has no more arithmetic to give, and one beyond a container's share of time only makes the others wait."""
    return max(1, min(_physical(), _share(), MOST_CORES))


def _physical() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    mine = os.sched_getaffinity(0)
    try:
        return len({Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list").read_text() for i in mine})
    except OSError:
        return len(mine)


def _share() -> int:
    """Whole processors' worth of time that a container was given."""
    try:
        most, period = map(int, CPU_MAX.read_text().split())
    except (OSError, ValueError):  # not a container of this kind, or "max"
        return MOST_CORES
    return most // period
