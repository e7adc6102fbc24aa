"""The vocabulary over symbols: a version file run over them computes nothing and leaves the list of its steps.

Vectors of parameters are NumPy arrays here, so what is made of parameters alone (1 - mix, exp of a decay) is computed
at once; arithmetic with a symbol records a step. Heads are neighbouring columns: `heads` and `flat` cost nothing, and
`dot` gives every column of a head its number. R rows, C width, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.architecture import Config, forward, version
from rookery.architecture.vocabulary import Params, Vocabulary
from rookery.backends.native.pack import Choice, Choices, Table, Weight
from rookery.state import pieces

Constant: TypeAlias = npt.NDArray[np.float32]

F32, BF16, CODES = 0, 1, 2  # forms of a row: the core's kinds of buffer


@dataclass(eq=False)
class Step:
    """One kernel call in the making: its value is `width` columns of R rows (`outputs`: of those that give logits)."""

    op: str
    width: int
    inputs: tuple[Symbol | Constant, ...] = ()
    weight: Weight | Table | Choice | None = None
    state: int = -1  # where its piece begins in the flat state
    n: int = 0  # head size, of steps that work by heads
    eps: float = 0.0
    form: int = F32
    outputs: bool = False

    def symbols(self) -> list[Symbol]:
        return [x for x in self.inputs if isinstance(x, Symbol)]


class Symbol:
    """`width` columns of a step's value, from `offset` on; `headed`: the version file sees them as [R,H,N]."""

    __slots__ = ("headed", "offset", "ops", "step", "width")
    __array_ufunc__ = None  # an array on the left leaves arithmetic to us

    def __init__(self, ops: Ops, step: Step, offset: int = 0, width: int = 0, headed: bool = False) -> None:
        self.ops, self.step, self.offset, self.width = ops, step, offset, width or step.width
        self.headed = headed

    def __add__(self, other: Any) -> Symbol:
        return self.ops.record("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.ops.record("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.ops.record("subtract", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.ops.record("subtract", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.ops.record("multiply", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.ops.record("multiply", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.ops.record("divide", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.ops.record("divide", other, self)

    def __neg__(self) -> Symbol:
        return self.ops.record("negative", self)

    def seen(self, headed: bool) -> Symbol:
        return Symbol(self.ops, self.step, self.offset, self.width, headed)


@dataclass
class Program:
    """All steps in order, and what is wanted of them. `taps`: what someone listens to, by its full name."""

    steps: list[Step]
    logits: Step
    taps: dict[str, Symbol | Constant]


@dataclass
class Ops(Vocabulary):
    """The op set that records. `state` arguments are places in the flat state."""

    n_head: int
    taps: frozenset[str] = frozenset()
    layer: int = 0
    steps: list[Step] = field(default_factory=list)
    tapped: dict[str, Symbol | Constant] = field(default_factory=dict)

    def record(self, op: str, *inputs: Any, **settings: Any) -> Symbol:
        """A step as wide as its symbols; numbers and arrays become constants of that width."""
        symbols = [x for x in inputs if isinstance(x, Symbol)]
        width = symbols[0].width
        if any(x.width != width for x in symbols):
            raise ValueError(f"{op} of {[x.width for x in symbols]} columns")
        operands = tuple(x if isinstance(x, Symbol) else self._constant(x, width) for x in inputs)
        step = Step(op, width, operands, outputs=symbols[0].step.outputs, **settings)
        return self._add(step, any(x.headed for x in symbols))

    def _add(self, step: Step, headed: bool = False) -> Symbol:
        self.steps.append(step)
        return Symbol(self, step, headed=headed)

    def _constant(self, value: Any, width: int) -> Constant:
        """[C], [H,N], [H,1] or one number as [C]."""
        array = np.asarray(value, np.float32)
        if array.ndim == 2:
            array = np.broadcast_to(array, (self.n_head, width // self.n_head)).reshape(-1)
        return np.ascontiguousarray(np.broadcast_to(array, width))

    # rows

    def embed(self, weight: Table, ids: None) -> Symbol:
        return self._add(Step("embed", weight.shape[1], weight=weight))

    def linear(self, w: Params, x: Symbol) -> Symbol:
        side = getattr(w, "side", None)
        if not isinstance(side, Choices):
            return super().linear(w, x)  # type: ignore[no-any-return]
        return self.dense(w, x) + self.matmul(self.matmul(x, side.a), side.b)

    def dense(self, w: Params, x: Symbol) -> Symbol:
        return self.matmul(x, w.weight)

    def matmul(self, x: Symbol, a: Weight | Choice) -> Symbol:
        if a.columns != x.width:
            raise ValueError(f"{a.name} reads {a.columns} columns, not {x.width}")
        op = "choose" if isinstance(a, Choice) else "linear"
        return self._add(Step(op, a.rows, (x,), weight=a, outputs=x.step.outputs))

    def pick(self, x: Symbol) -> Symbol:
        """[R,C] -> the rows that give logits."""
        return self._add(Step("pick", x.width, (x,), outputs=True))

    def layer_norm(self, x: Symbol, p: Params) -> Symbol:
        return self.record("layer_norm", x, p.weight, p.bias, eps=p.eps)

    def group_norm(self, y: Symbol, p: Params) -> Symbol:
        return self.record("group_norm", y, p.weight, p.bias, n=self._size(y), eps=p.eps).seen(headed=False)

    def normalize(self, x: Symbol) -> Symbol:
        return self.record("normalize", x, n=self._size(x))

    def dot(self, x: Symbol, y: Symbol | Constant) -> Symbol:
        return self.record("dot", x, y, n=self._size(x))

    def heads(self, x: Symbol) -> Symbol:
        return x.seen(headed=True)

    def flat(self, x: Symbol) -> Symbol:
        return x.seen(headed=False)

    def split(self, x: Symbol, n: int) -> list[Symbol]:
        width = x.width // n
        return [Symbol(self, x.step, x.offset + i * width, width) for i in range(n)]

    def _size(self, x: Symbol) -> int:
        return x.width // self.n_head

    # elements

    def exp(self, x: Any) -> Any:
        return self.record("exp", x) if isinstance(x, Symbol) else np.exp(x)

    def tanh(self, x: Any) -> Any:
        return self.record("tanh", x) if isinstance(x, Symbol) else np.tanh(x)

    def sigmoid(self, x: Any) -> Any:
        return self.record("sigmoid", x) if isinstance(x, Symbol) else 1 / (1 + np.exp(-x))

    def silu(self, x: Any) -> Any:
        return self.record("silu", x) if isinstance(x, Symbol) else x * self.sigmoid(x)

    def relu(self, x: Any) -> Any:
        return self.record("relu", x) if isinstance(x, Symbol) else np.maximum(x, 0)

    # sequences

    def token_shift(self, x: Symbol, shift: int) -> tuple[Symbol, int]:
        return self.record("shift", x, state=shift), shift

    def wkv4(self, k: Symbol, v: Symbol, log_decay: Any, bonus: Any, state: int) -> tuple[Symbol, int]:
        return self.record("wkv4", k, v, log_decay, bonus, state=state), state

    def wkv5(self, r: Symbol, k: Symbol, v: Symbol, log_decay: Any, bonus: Any, state: int) -> tuple[Symbol, int]:
        return self.wkv6(r, k, v, log_decay, bonus, state)  # a decay for all rows is a constant operand

    def wkv6(self, r: Symbol, k: Symbol, v: Symbol, log_decay: Any, bonus: Any, state: int) -> tuple[Symbol, int]:
        return self.record("wkv6", r, k, v, log_decay, bonus, state=state, n=self._size(r)), state

    def wkv7(
        self, r: Symbol, log_decay: Symbol, k: Symbol, v: Symbol, a: Symbol, b: Symbol, state: int
    ) -> tuple[Symbol, int]:
        return self.record("wkv7", r, log_decay, k, v, a, b, state=state, n=self._size(r)), state

    # observation

    def tap(self, name: str, x: Any) -> Any:
        full = f"layers.{self.layer}.{name}"
        if full in self.taps or name in self.taps:
            self.tapped[full] = x
        return x


def program(config: Config, model: SimpleNamespace, taps: Iterable[str] = ()) -> Program:
    """The steps of one run over R rows. `taps`: names of points, "layers.3.att.k", or "att.k" for every layer's."""
    o = Ops(config.n_head, frozenset(taps))
    x = forward.embed(o, model, None)
    x = forward.blocks(o, version(config), model, x, places(config))
    logits = forward.head(o, model, o.pick(x))
    return Program(o.steps, logits.step, o.tapped)


def places(config: Config) -> Sequence[SimpleNamespace]:
    """Where each piece of each layer begins in the flat state."""
    layers, at = [], 0
    for _ in range(config.n_layer):
        layers.append(SimpleNamespace())
        for piece in pieces(config):
            setattr(layers[-1], piece.name, at)
            at += piece.size
    return layers
