"""From the list of steps to the plan: what is fused, which steps share a phase, and where every value lies.

Each pass takes steps in order and leaves steps in order. What the arithmetic is, the first two passes decide, from
the version file alone: a plan with taps computes the same bits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

from rookery import _native
from rookery.backends.native.pack import Weight
from rookery.backends.native.plan import MAX_ROWS, Buffer, Call, Lane, Operand, Phase, Plan, Tap
from rookery.backends.native.symbols import BF16, CODES, F32, Constant, Program, Step, Symbol

BY_ROWS = {"embed", "pick", "layer_norm"}  # need a whole row, and nothing but rows
BY_COLUMNS = {"linear", "choose", "shift", "wkv4", "wkv6", "wkv7"}  # need many rows, or much work for a single one
# read beside their own rows and columns: only what an earlier phase wrote
APART = {"linear", "choose", "shift", "pick"}
IN_PLACE = {"add", "subtract", "multiply", "divide", "negative", "exp", "tanh", "sigmoid", "silu", "relu", "fma"}
FORMS = {"f32": F32, "bf16": BF16, "codes": CODES}


def plan(program: Program) -> Plan:
    steps = encode(fuse(program.steps))
    wanted = {program.logits} | {x.step for x in program.taps.values() if isinstance(x, Symbol)}
    steps = live(steps, wanted)
    where = sink(steps, levels(steps), wanted)
    return Placing(steps, where, program).plan()


# -- what is computed --------------------------------------------------------------------------------------------------


def fuse(steps: list[Step]) -> list[Step]:
    """a + b * c in one step, where nothing else uses the product."""
    uses = Counter(x.step for step in steps for x in step.symbols())
    for step in steps:
        if step.op != "add":
            continue
        for x, other in (step.inputs, step.inputs[::-1]):
            if isinstance(x, Symbol) and x.step.op == "multiply" and uses[x.step] == 1 and x.width == x.step.width:
                step.op, step.inputs = "fma", (other, *x.step.inputs)
                break
    return steps


def encode(steps: list[Step]) -> list[Step]:
    """Before linears that read bf16 or codes, a step that writes their input so; once for all that share it."""
    made: dict[tuple[Step, int, int, int], Step] = {}
    after: defaultdict[Step, list[Step]] = defaultdict(list)
    for step in steps:
        form = FORMS[step.weight.reads] if isinstance(step.weight, Weight) else F32
        if form == F32:
            continue
        (x,) = step.symbols()
        key = (x.step, x.offset, x.width, form)
        if key not in made:
            made[key] = Step("encode", x.width, (x,), form=form, outputs=x.step.outputs)
            after[x.step].append(made[key])
        step.inputs = (Symbol(x.ops, made[key]),)
    return [each for step in steps for each in (step, *after[step])]


def live(steps: list[Step], wanted: Iterable[Step]) -> list[Step]:
    """Those that something wanted, or a state, depends on."""
    needed = set(wanted)
    for step in reversed(steps):
        if step in needed or step.state >= 0:
            needed |= {step, *(x.step for x in step.symbols())}
    return [step for step in steps if step in needed]


# -- when --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class When:
    """The phase of a step: phases run in this order, and steps of one `When` in one phase."""

    level: int
    outputs: bool
    by_rows: bool


def barrier(x: Symbol, maker: When, reader: Step, by_rows: bool) -> bool:
    """Whether `reader` must wait for a later phase than the one that makes x."""
    if reader.op in APART or maker.by_rows != by_rows or maker.outputs != reader.outputs:
        return True
    return x.offset != 0 or x.width != x.step.width


def levels(steps: list[Step]) -> dict[Step, When]:
    """The earliest phase of every step."""
    when: dict[Step, When] = {}

    def earliest(step: Step, by_rows: bool) -> When:
        after = (when[x.step].level + barrier(x, when[x.step], step, by_rows) for x in step.symbols())
        return When(max(after, default=0), step.outputs, by_rows)

    for step in steps:
        ways = [by_rows for by_rows in (False, True) if step.op not in (BY_COLUMNS if by_rows else BY_ROWS)]
        when[step] = min((earliest(step, by_rows) for by_rows in ways), key=lambda w: w.level)
    return when


def sink(steps: list[Step], when: dict[Step, When], wanted: Iterable[Step]) -> dict[Step, When]:
    """Light steps that only later phases use move there, where their value may stay local."""
    kept = set(wanted)
    latest: dict[Step, int] = {}
    for step in reversed(steps):
        mine = when[step]
        light = step.op not in BY_COLUMNS | BY_ROWS and not mine.by_rows and step not in kept
        if light and latest.get(step, mine.level) > mine.level:
            mine = when[step] = When(latest[step], mine.outputs, mine.by_rows)
        for x in step.symbols():
            bound = mine.level - barrier(x, when[x.step], step, mine.by_rows)
            latest[x.step] = min(latest.get(x.step, bound), bound)
    return when


# -- where -------------------------------------------------------------------------------------------------------------


class Placing:
    """Phases and lanes of the steps, and a buffer for every value."""

    def __init__(self, steps: list[Step], when: dict[Step, When], program: Program) -> None:
        self.steps, self.when, self.program = steps, when, program
        self.kept = {x.step for x in program.taps.values() if isinstance(x, Symbol)}
        self.readers: defaultdict[Step, list[Step]] = defaultdict(list)
        for step in steps:
            for x in step.symbols():
                self.readers[x.step].append(step)
        self.buffers: dict[Step, Buffer] = {}
        self.constants: dict[bytes, int] = {}
        self.values: list[Constant] = []

    def plan(self) -> Plan:
        together: defaultdict[When, list[Step]] = defaultdict(list)
        for step in self.steps:
            together[self.when[step]].append(step)
        order = sorted(together)
        chains = [self.chains(together[when]) for when in order]
        slots = [[self.local(chain) for chain in phase] for phase in chains]
        self.share(chains)
        phases = tuple(
            Phase(when.by_rows, when.outputs, tuple(map(self.lane, phase, used)))
            for when, phase, used in zip(order, chains, slots, strict=True)
        )
        tapped = self.program.taps.items()
        taps = {
            name: Tap(self.buffers[x.step], x.offset, x.width, x.headed) for name, x in tapped if isinstance(x, Symbol)
        }
        return Plan(phases, self.values, taps, {name: x for name, x in tapped if not isinstance(x, Symbol)})

    def chains(self, steps: list[Step]) -> list[list[Step]]:
        """The connected steps of one phase, each chain in order."""
        found: list[list[Step]] = []
        for step in steps:
            made = {x.step for x in step.symbols()}
            joined = [chain for chain in found if not made.isdisjoint(chain)]
            found = [chain for chain in found if chain not in joined]
            found.append([*(s for chain in joined for s in chain), step])
        place = {step: i for i, step in enumerate(steps)}
        return [sorted(chain, key=place.__getitem__) for chain in found]

    def local(self, chain: list[Step]) -> int:
        """Slots for values that only this chain uses, each free again after its last use; how many there are."""
        free: list[int] = []
        count = 0
        for step in chain:
            makers = dict.fromkeys(x.step for x in step.symbols())
            over = [self.buffers[m].at for m in makers if self.is_local(m) and self.readers[m][-1] is step]
            if step.op in IN_PLACE:
                free, over = free + over, []
            if self.is_local(step):
                if not free:
                    free.append(count)
                    count += 1
                self.buffers[step] = Buffer(step.width, place="local", at=free.pop())
            free += over
        return count

    def is_local(self, step: Step) -> bool:
        when = self.when[step]
        apart = when.by_rows or step.form != F32 or step in self.kept or step is self.program.logits
        return not apart and all(self.when[reader] == when for reader in self.readers[step])

    def share(self, chains: list[list[list[Step]]]) -> None:
        """Places in the arena for all other values: the lowest that nothing alive in the same phases takes."""
        phase_of = {step: i for i, phase in enumerate(chains) for chain in phase for step in chain}
        taken: list[tuple[int, int, int]] = []  # begin, end, the last phase that reads it
        for step in sorted(phase_of, key=phase_of.__getitem__):
            if step in self.buffers:
                continue
            if step is self.program.logits:
                self.buffers[step] = Buffer(step.width, place="logits")
                continue
            taken = sorted(t for t in taken if t[2] >= phase_of[step])
            size, at = MAX_ROWS * _native.core.Engine.input_bytes(step.form, step.width), 0
            for begin, end, _ in taken:
                if begin - at >= size:
                    break
                at = max(at, end)
            last = len(chains) if step in self.kept else max(map(phase_of.__getitem__, self.readers[step]), default=0)
            taken.append((at, at + size, max(last, phase_of[step])))
            self.buffers[step] = Buffer(step.width, step.form, at=at)

    def lane(self, chain: list[Step], slots: int) -> Lane:
        tile = lcm(32, *(step.n for step in chain if step.n))  # panels of 16 rows, blocks of 32 and heads stay whole
        return Lane(chain[0].width, tile, slots, tuple(map(self.call, chain)))

    def call(self, s: Step) -> Call:
        return Call(s.op, self.buffers[s], tuple(map(self.operand, s.inputs)), s.weight, s.state, s.n, s.eps)

    def operand(self, x: Symbol | Constant) -> Operand:
        if isinstance(x, Symbol):
            return Operand(self.buffers[x.step], x.offset)
        key = x.tobytes()
        if key not in self.constants:
            self.constants[key] = len(self.values)
            self.values.append(x)
        return Operand(self.constants[key])
