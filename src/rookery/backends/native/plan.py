"""What the core executes: phases of lanes of steps over numbered buffers, as data.

Between two phases all threads meet. A phase by rows has a row as its unit; the lanes of any other are chains of steps
over the same columns, cut into tiles that a thread works on alone, so that values local to a lane stay in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from rookery import _native
from rookery.backends.native.pack import Choice, Table, Weight
from rookery.backends.native.symbols import F32, Constant

MAX_ROWS = 256  # of one run


@dataclass(eq=False, slots=True)
class Buffer:
    """Where a step's value lies: in the arena at a byte offset, in a lane's slot, or in the caller's logits."""

    width: int
    form: int = F32
    place: str = "shared"  # shared, local, logits
    at: int = 0  # byte offset of a shared one, slot of a local one

    def __str__(self) -> str:
        where = {"shared": f"@{self.at}", "local": f"#{self.at}", "logits": "logits"}[self.place]
        return where + ("", ":bf16", ":codes")[self.form]


@dataclass(frozen=True, slots=True)
class Operand:
    """A buffer from a column on, or a constant (its number)."""

    source: Buffer | int
    offset: int = 0

    def __str__(self) -> str:
        if isinstance(self.source, int):
            return f"c{self.source}"
        return f"{self.source}" + (f"+{self.offset}" if self.offset else "")


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call."""

    op: str
    out: Buffer
    inputs: tuple[Operand, ...]
    weight: Weight | Table | Choice | None = None
    state: int = -1
    n: int = 0
    eps: float = 0.0

    def __str__(self) -> str:
        said = [self.weight.name] if self.weight else []
        said += [str(x) for x in self.inputs] + ([f"state+{self.state}"] if self.state >= 0 else [])
        return f"{self.out} = {self.op}({', '.join(said)})"


@dataclass(frozen=True, slots=True)
class Lane:
    width: int
    tile: int
    slots: int
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    by_rows: bool
    outputs: bool
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class Tap:
    """Something to read after a run: `width` columns of a buffer from `offset` on."""

    source: Buffer
    offset: int
    width: int
    headed: bool


@dataclass(frozen=True)
class Plan:
    phases: tuple[Phase, ...]
    constants: list[Constant]
    taps: dict[str, Tap]
    known: dict[str, Constant]  # tapped points that are no step's: made of parameters alone

    def weights(self) -> list[Weight]:
        """The matrices in the order in which a run reads them, each once."""
        used = (call.weight for phase in self.phases for lane in phase.lanes for call in lane.calls)
        each = (w for x in used for w in (x.there if isinstance(x, Choice) else [x]))
        return list(dict.fromkeys(w for w in each if isinstance(w, Weight)))

    def describe(self) -> str:
        """One line a phase, lane and step, for people. @ shared (byte), # local (slot), c constant."""
        lines = []
        for i, phase in enumerate(self.phases):
            lines.append(f"{i}: by {'rows' if phase.by_rows else 'columns'}{', of outputs' if phase.outputs else ''}")
            for lane in phase.lanes:
                lines.append(f"  lane of {lane.width}, tiles of {lane.tile}, {lane.slots} slots")
                lines += [f"    {call}" for call in lane.calls]
        return "\n".join(lines)


Placed: TypeAlias = tuple[int, int, int]  # the core's operand: space, index, column offset


class Filled:
    """An engine of the core with a plan in it."""

    def __init__(self, plan: Plan, threads: int, state_size: int, vocabulary: int) -> None:
        self.plan = plan
        self.engine = _native.core.Engine(threads, state_size, vocabulary, MAX_ROWS)
        self._buffers: dict[Any, int] = {}
        self._weights: dict[Weight | Table | Choice, int] = {}
        self._constants = [self.engine.constant(values) for values in plan.constants]
        for phase in plan.phases:
            self.engine.phase(phase.by_rows, phase.outputs)
            for lane in phase.lanes:
                self.engine.lane(lane.width, lane.tile, lane.slots)
                for call in lane.calls:
                    self._step(call)
        self.engine.finish()

    def read(self, tap: Tap, rows: int) -> Any:
        """[rows, width] after a run."""
        return self.engine.read(self._buffer(tap.source), rows)[:, tap.offset : tap.offset + tap.width]

    def _step(self, call: Call) -> None:
        inputs = [self._operand(x) for x in call.inputs]
        number = -1 if call.weight is None else self._weight(call.weight)
        out = (0, self._buffer(call.out), 0)
        self.engine.step(call.op, out, inputs, number=number, state=call.state, n=call.n, eps=call.eps)

    def _operand(self, x: Operand) -> Placed:
        if isinstance(x.source, int):
            return (1, self._constants[x.source], x.offset)
        return (0, self._buffer(x.source), x.offset)

    def _buffer(self, b: Buffer) -> int:
        key = (b.width, b.at) if b.place == "local" else b
        if key not in self._buffers:
            match b.place:
                case "local":
                    made = self.engine.local(b.width, b.at)
                case "logits":
                    made = self.engine.logits()
                case _:
                    made = self.engine.shared(b.form, b.width, b.at, MAX_ROWS)
            self._buffers[key] = made
        return self._buffers[key]

    def _weight(self, w: Weight | Table | Choice) -> int:
        if w not in self._weights:
            if isinstance(w, Table):
                rows, columns = w.shape
                self._weights[w] = self.engine.table(w.stored.dtype, rows, columns, w.stored.data)
            elif isinstance(w, Choice):
                self._weights[w] = self.engine.weights([-1 if x is None else self._weight(x) for x in w.each])
            else:
                self._weights[w] = self.engine.weight(w.kind, w.rows, w.columns, w.data)
        return self._weights[w]
