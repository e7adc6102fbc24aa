"""The core's Engine in NumPy, slow and plain: it executes a plan as the C++ one does, to show that the plan is right.

Units (tiles of a lane, rows of a phase by rows) advance one step at a time in random order, as threads might, over an
arena whose buffers overlap as planned and that begins as NaN: a missing barrier, a buffer given away too early or a
tile that reads beside its columns shows as wrong numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery import _native
from rookery.formats import Tensor
from rookery.formats.tensor import round_bf16, widen_bf16

Array = npt.NDArray[Any]

F32, BF16, CODES = 0, 1, 2
NONE = 2
READS = {"f32": {F32}, "f16": {F32}, "bf16": {F32, BF16}, "q8": {CODES}, "q4": {CODES}, "x8": {CODES}}
REAL = _native.core

BINARY = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}
UNARY = {
    "negative": np.negative,
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "square": np.square,
    "copy": np.array,
}


class Core:
    """Stands in for rookery._core: this Engine, the rest real."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __getattr__(self, name: str) -> Any:
        return getattr(REAL, name)

    @property
    def Engine(self) -> Any:
        return type("Engine", (Engine,), {"seed": self.seed})


@dataclass
class Step:
    op: str
    out: tuple[int, int, int]
    inputs: list[tuple[int, int, int]]
    number: int
    state: int
    n: int
    eps: float
    outputs: bool


@dataclass
class Lane:
    width: int
    tile: int
    slots: int
    steps: list[Step] = field(default_factory=list)


@dataclass
class Phase:
    by_rows: bool
    outputs: bool
    lanes: list[Lane] = field(default_factory=list)


@dataclass
class Buffer:
    form: int
    width: int
    at: int = 0  # byte offset, or slot
    local: bool = False
    logits: bool = False


class Engine:
    """See native/engine.h."""

    seed = 0

    def __init__(self, threads: int, state_size: int, vocabulary: int, max_rows: int) -> None:
        self.state_size, self.vocabulary, self.max_rows = state_size, vocabulary, max_rows
        self.rng = np.random.default_rng(self.seed)
        self.buffers: list[Buffer] = []
        self.constants: list[Array] = []
        self.held: list[tuple[str, Array]] = []  # weights
        self.choices: list[list[int]] = []
        self.tables: list[Array] = []
        self.phases: list[Phase] = []
        self.arena = np.empty(0, np.uint8)

    @staticmethod
    def input_bytes(kind: int, columns: int) -> int:
        return -(-4 * columns // 64) * 64  # every form as the float32 numbers that it stands for

    # building

    def shared(self, kind: int, width: int, offset: int, rows: int) -> int:
        assert offset % 64 == 0
        return self._add(self.buffers, Buffer(kind, width, offset))

    def local(self, width: int, slot: int) -> int:
        return self._add(self.buffers, Buffer(F32, width, slot, local=True))

    def logits(self) -> int:
        return self._add(self.buffers, Buffer(F32, self.vocabulary, logits=True))

    def constant(self, values: Array) -> int:
        assert values.dtype == np.float32
        return self._add(self.constants, values.copy())

    def weight(self, kind: str, rows: int, columns: int, data: Array) -> int:
        assert data.ctypes.data % 64 == 0
        values = Tensor(f"panel_{kind}", (rows, columns), data).float32()
        return self._add(self.held, (kind, values))

    def weights(self, by_group: Sequence[int]) -> int:
        return self._add(self.choices, list(by_group))

    def table(self, dtype: str, rows: int, columns: int, data: Array) -> int:
        return self._add(self.tables, Tensor(dtype, (rows, columns), data).float32())

    def phase(self, by_rows: bool, outputs: bool) -> None:
        self.phases.append(Phase(by_rows, outputs))

    def lane(self, width: int, tile: int, slots: int) -> None:
        assert tile % 32 == 0
        self.phases[-1].lanes.append(Lane(width, tile, slots))

    def step(
        self,
        op: str,
        out: tuple[int, int, int],
        inputs: Sequence[tuple[int, int, int]],
        number: int = -1,
        state: int = -1,
        n: int = 0,
        eps: float = 0.0,
    ) -> None:
        lane = self.phases[-1].lanes[-1]
        buffer = self.buffers[out[1]]
        assert buffer.width == lane.width, "a step is as wide as its lane"
        assert not n or lane.tile % n == 0, "a tile has whole heads"
        assert not buffer.local or (buffer.at < lane.slots and not self.phases[-1].by_rows)
        if op not in {*BINARY, *UNARY, "fma"}:
            assert all(index != out[1] for space, index, _ in inputs if space == 0), "a step overwrites its input"
        lane.steps.append(Step(op, out, list(inputs), number, state, n, eps, self.phases[-1].outputs))

    @staticmethod
    def _add(things: list[Any], thing: Any) -> int:
        things.append(thing)
        return len(things) - 1

    def finish(self) -> None:
        shared = [b for b in self.buffers if not b.local and not b.logits]
        size = max(b.at + self.max_rows * self.input_bytes(b.form, b.width) for b in shared)
        self.arena = np.empty(size, np.uint8)

    @property
    def arena_bytes(self) -> int:
        return self.arena.nbytes

    # running

    @np.errstate(all="ignore")
    def run(
        self,
        ids: Array,
        lengths: Array,
        states: Sequence[Array],
        logits: Array,
        every: bool,
        groups: Sequence[int] = (),
    ) -> None:
        assert len(ids) == sum(lengths) <= self.max_rows
        assert all(s.dtype == np.float32 and s.size == self.state_size for s in states)
        self.arena.view(np.float32)[:] = np.nan
        ends = np.cumsum(lengths)
        self.ids, self.states, self.out = ids, states, logits
        self.sequence = np.repeat(np.arange(len(lengths)), lengths)
        self.groups = np.array(groups or [-1] * len(lengths))
        self.first, self.last = set((ends - lengths).tolist()), set((ends - 1).tolist())
        self.outputs = np.arange(len(ids)) if every else ends - 1
        assert logits.shape == (len(self.outputs), self.vocabulary)
        for phase in self.phases:
            self._phase(phase, len(self.outputs) if phase.outputs else len(ids))

    def read(self, buffer: int, rows: int) -> Array:
        return self._rows(self.buffers[buffer])[:rows].copy()

    def _phase(self, phase: Phase, rows: int) -> None:
        block = int(self.rng.integers(1, 8))
        cuts = [(r, min(r + block, rows)) for r in range(0, rows, block)]
        units: list[Iterator[None]] = []
        for lane in phase.lanes:
            if phase.by_rows:
                units += [self._chain(lane, [cut], 0, lane.width) for cut in cuts]
            else:
                tiles = range(0, lane.width, lane.tile)
                units += [self._chain(lane, cuts, c, min(c + lane.tile, lane.width)) for c in tiles]
        while units:
            unit = units[self.rng.integers(len(units))]
            if next(unit, "end") == "end":
                units.remove(unit)

    def _chain(self, lane: Lane, cuts: list[tuple[int, int]], c0: int, c1: int) -> Iterator[None]:
        for r0, r1 in cuts:
            slots = np.full((lane.slots, r1 - r0, c1 - c0), np.nan, np.float32)
            for step in lane.steps:
                piece = Piece(self, slots, r0, r1, c0, c1)
                values = np.asarray(piece.compute(step), np.float32)
                piece.write(step.out, values)
                yield

    def _rows(self, buffer: Buffer) -> Array:
        """[max_rows, width] of a shared buffer."""
        size = self.input_bytes(F32, buffer.width)
        raw = self.arena[buffer.at : buffer.at + self.max_rows * size].view(np.float32)
        return raw.reshape(self.max_rows, -1)[:, : buffer.width]


@dataclass
class Piece:
    """Rows [r0, r1) and columns [c0, c1) of a lane, and the step's view of its operands."""

    engine: Engine
    slots: Array
    r0: int
    r1: int
    c0: int
    c1: int

    def write(self, out: tuple[int, int, int], values: Array) -> None:
        e, buffer = self.engine, self.engine.buffers[out[1]]
        rows, columns = slice(self.r0, self.r1), slice(self.c0 + out[2], self.c1 + out[2])
        if buffer.local:
            self.slots[buffer.at][...] = values
        elif buffer.logits:
            e.out[rows, columns] = values
        else:
            e._rows(buffer)[rows, columns] = rounded(values, buffer.form)

    def read(self, operand: tuple[int, int, int], rows: slice | None = None, whole: int = 0) -> Array:
        space, index, offset = operand
        columns = slice(offset, offset + whole) if whole else slice(self.c0 + offset, self.c1 + offset)
        if space == 1:
            return self.engine.constants[index][None, columns]
        buffer = self.engine.buffers[index]
        rows = rows or slice(self.r0, self.r1)
        if buffer.local:
            assert not whole
            assert offset == 0
            return self.slots[buffer.at]
        return self.engine._rows(buffer)[rows, columns].copy()

    def heads(self, operand: tuple[int, int, int], n: int) -> Array:
        x = self.read(operand)
        return x.reshape(len(x), -1, n)

    def compute(self, s: Step) -> Array:
        e = self.engine
        if s.op in BINARY:
            return BINARY[s.op](self.read(s.inputs[0]), self.read(s.inputs[1]))
        if s.op in UNARY:
            return UNARY[s.op](self.read(s.inputs[0]))
        match s.op:
            case "fma":
                a, b, c = map(self.read, s.inputs)
                return (a.astype(np.float64) + b.astype(np.float64) * c).astype(np.float32)
            case "encode":
                return self.read(s.inputs[0])
            case "embed":
                return e.tables[s.number][e.ids[self.r0 : self.r1]]
            case "pick":
                rows = e.outputs[self.r0 : self.r1]
                shared = e._rows(e.buffers[s.inputs[0][1]])
                return shared[rows]
            case "linear":
                kind, w = e.held[s.number]
                assert e.buffers[s.inputs[0][1]].form in READS[kind]
                x = self.read(s.inputs[0], whole=w.shape[1])
                return np.matmul(w[None, self.c0 : self.c1], x[:, :, None])[:, :, 0]
            case "choose":
                rows = np.arange(self.r0, self.r1)
                return np.stack([self.chosen(s, r) for r in (e.outputs[rows] if s.outputs else rows)])
            case "layer_norm":
                x, weight, bias = map(self.read, s.inputs)
                assert x.shape[1] == weight.shape[1]
                return normed(x, s.eps) * weight + bias
            case "group_norm":
                x, weight, bias = self.heads(s.inputs[0], s.n), *map(self.read, s.inputs[1:])
                return normed(x, s.eps).reshape(len(x), -1) * weight + bias
            case "normalize":
                x = self.heads(s.inputs[0], s.n)
                return (x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)).reshape(len(x), -1)
            case "dot":
                x, y = (self.heads(operand, s.n) for operand in s.inputs)
                return np.broadcast_to((x * y).sum(-1, keepdims=True), x.shape).reshape(len(x), -1)
            case "shift":
                return np.stack([self.shifted(s, r) for r in range(self.r0, self.r1)])
            case "wkv4" | "wkv6" | "wkv7":
                rows = self.r1 - self.r0
                inputs = [np.broadcast_to(self.read(x), (rows, self.c1 - self.c0)) for x in s.inputs]
                by_row = zip(range(self.r0, self.r1), zip(*inputs, strict=True), strict=True)
                recur = getattr(self, s.op)
                return np.stack([recur(s, e.states[e.sequence[r]], *row) for r, row in by_row])
        raise ValueError(s.op)

    def chosen(self, s: Step, r: int) -> Array:
        """Of row r of all: by its group's matrix, NaN beside a narrow one."""
        e, y = self.engine, np.full(self.c1 - self.c0, np.nan, np.float32)
        group = e.groups[e.sequence[r]]
        number = -1 if group < 0 else e.choices[s.number][group]
        if number < 0:
            return np.full_like(y, -0.0)
        kind, w = e.held[number]
        assert F32 in READS[kind]
        own = int(np.flatnonzero(e.outputs == r)[0]) if s.outputs else r
        x = self.read(s.inputs[0], slice(own, own + 1), whole=w.shape[1])[0]
        part = w[self.c0 : self.c1] @ x
        y[: len(part)] = part
        return y

    def shifted(self, s: Step, r: int) -> Array:
        piece = self.engine.states[self.engine.sequence[r]][s.state + self.c0 : s.state + self.c1]
        before = piece.copy() if r in self.engine.first else self.read(s.inputs[0], slice(r - 1, r))[0]
        if r in self.engine.last:
            piece[:] = self.read(s.inputs[0], slice(r, r + 1))[0]
        return before

    def wkv4(self, s: Step, flat: Array, k: Array, v: Array, decay: Array, bonus: Array) -> Array:
        width = self.engine.buffers[s.out[1]].width
        top, below, m = (flat[s.state + i * width + self.c0 : s.state + i * width + self.c1] for i in range(3))
        q = np.maximum(m, k + bonus)
        old, new = np.exp(m - q), np.exp(k + bonus - q)
        y = (old * top + new * v) / (old * below + new)
        q = np.maximum(m + decay, k)
        old, new = np.exp(m + decay - q), np.exp(k - q)
        top[:], below[:], m[:] = old * top + new * v, old * below + new, q
        return y

    def matrices(self, s: Step, flat: Array) -> Array:
        """[H', N, N] of the heads in these columns."""
        return flat[s.state + self.c0 * s.n : s.state + self.c1 * s.n].reshape(-1, s.n, s.n)

    def wkv6(self, s: Step, flat: Array, *row: Array) -> Array:
        state = self.matrices(s, flat)
        r, k, v, decay, bonus = (x.reshape(-1, s.n, 1) for x in row)
        kv = k * v.swapaxes(1, 2)
        y = (r * (state + bonus * kv)).sum(1)
        state[:] = np.exp(decay) * state + kv
        return y.reshape(-1)

    def wkv7(self, s: Step, flat: Array, *row: Array) -> Array:
        state = self.matrices(s, flat)
        r, decay, k, v, a, b = (x.reshape(-1, s.n, 1) for x in row)
        removed = (a * state).sum(1, keepdims=True)
        state[:] = np.exp(decay) * state + b * removed + k * v.swapaxes(1, 2)
        return (r * state).sum(1).reshape(-1)


def normed(x: Array, eps: float) -> Array:
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + eps)


def rounded(x: Array, form: int) -> Array:
    """What a form of x stands for."""
    if form == F32:
        return x
    if form == BF16:
        return widen_bf16(round_bf16(x))
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    return (np.rint(np.divide(blocks, scale, where=scale > 0, out=np.zeros_like(blocks))) * scale).reshape(x.shape)
