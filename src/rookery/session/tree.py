"""The turns of one talk, and the states at them, which are read anew where no snapshot is left.

A turn continues the tokens of its `base`, which is nearly always its `parent`, the turn before it in the talk. Where a
template writes old turns in another way than they were written then, it continues the beginning of one (`Place`).
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import uuid4

from rookery import tokenizer as tokenizers
from rookery.errors import FileError, InputError, NoSuchTalk, StateError
from rookery.model import Model
from rookery.state import State
from rookery.store import SCHEMA, Node, Prefix, Snapshot, Store, Talk, beginning, root
from rookery.stream import Array, Progress

GRID = 8192  # tokens from one snapshot inside a long text to the next
LIVE = 4  # states held at hand besides the store's: one for each of some heads
INITIAL = "initial"  # in a talk's settings: the digest of a state of its own that it began with


class Point(NamedTuple):
    """What the model knows at some token: its logits [V] there (None before the first) and its state."""

    logits: Array | None
    state: State


class Place(NamedTuple):
    """After so many of a turn's own tokens (None: all); `id` None is before the first token."""

    id: str | None
    kept: int | None = None


class Live:
    """The states last used, so many of them. Trees of one model may share it, and threads."""

    def __init__(self, limit: int = LIVE) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._points: OrderedDict[Place, Point] = OrderedDict()

    def get(self, place: Place) -> Point | None:
        with self._lock:
            if place in self._points:
                self._points.move_to_end(place)
            return self._points.get(place)

    def hold(self, place: Place, point: Point) -> None:
        with self._lock:
            self._points[place] = point
            self._points.move_to_end(place)
            while len(self._points) > self.limit:
                self._points.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._points.clear()


class Reading(NamedTuple):
    """What is to be read from a point on, whose arrays are shared: nobody changes them."""

    point: Point
    tokens: list[int]
    marks: list[tuple[int, Prefix]]  # after so many of the tokens a snapshot is to be left, in rising order
    turns: list[tuple[int, Place]]  # the ends of turns among them


@dataclass
class _Part:
    """Tokens that continue `base`: those of a turn up to `place`, or what is new."""

    place: Place | None
    base: Place
    tokens: Sequence[int]
    marks: set[int]
    ends: list[tuple[int, Prefix]] = field(default_factory=list)


class Tree:
    """The turns of `talk` in `store`, and how `model` gets to each. `initial`: the state before the first token.

    Threads may share it. Talks of two owners never share a state.
    """

    lends_initial = False  # whether the state that the talk began with is another's to keep

    def __init__(self, model: Model, store: Store, talk: Talk, initial: State, live: Live | None = None) -> None:
        self.model, self.store, self.talk, self.initial = model, store, talk, initial
        self.nodes: dict[str, Node] = {}
        start = sha256(initial.flat.tobytes()).hexdigest()
        arithmetic = model.arithmetic + (", states in float16" if store.half else "")
        self.owner: str = json.loads(talk.settings).get("owner", "")
        self._start = Prefix.start(root(model.weights.fingerprint, talk.tokenizer, start, arithmetic, self.owner))
        self._prefixes: dict[Place, Prefix] = {}
        self._live = Live() if live is None else live
        self._lock = threading.RLock()
        self.read_tokens = 0  # computed so far, all turns together

    # the tree

    def refresh(self) -> None:
        """Learn the turns that others have added."""
        self.nodes.update(self.store.nodes(self.talk.name))

    def path(self, id: str | None) -> list[Node]:
        """The turns of the talk up to this one, the first first."""
        found = []
        while id is not None:
            found.append(self.nodes[id])
            id = found[-1].parent
        return found[::-1]

    def chain(self, place: Place) -> list[tuple[Node, tuple[int, ...]]]:
        """The turns whose tokens, one after the other, lead to a place, and these tokens."""
        found = []
        while place.id is not None:
            node = self.nodes[place.id]
            found.append((node, node.tokens[: place.kept]))
            place = Place(node.base, node.kept)
        return found[::-1]

    def tokens(self, place: Place) -> list[int]:
        """All that has been read at a place."""
        return [token for _, tokens in self.chain(place) for token in tokens]

    def prefix(self, place: Place) -> Prefix:
        """The key of all that has been read at a place."""
        missing: list[Place] = []
        with self._lock:
            while place.id is not None and place not in self._prefixes:
                missing.append(place)
                place = self._base(place)
            at = self._start if place.id is None else self._prefixes[place]
            for place in reversed(missing):
                at = self._prefixes[place] = at.extend(self._own(place))
            return at

    def key(self, place: Place, tokens: Sequence[int]) -> str:
        """Under which the state after `tokens` that continue a place is kept."""
        return self.prefix(place).extend(tokens).key

    def _base(self, place: Place) -> Place:
        node = self.nodes[str(place.id)]
        return Place(node.base, node.kept)

    def _own(self, place: Place) -> tuple[int, ...]:
        return self.nodes[str(place.id)].tokens[: place.kept]

    # the states

    def point(self, place: Place, progress: Progress | None = None) -> Point:
        """Logits and state at a place: at hand, from the store, or read anew from the nearest place before it."""
        return self.follow(self.plan(place, ()), progress)

    def read(
        self, base: Place, tokens: Sequence[int], marks: Iterable[int] = (), progress: Progress | None = None
    ) -> Point:
        """Logits and state after `tokens` that continue `base`; snapshots are left as `plan` says."""
        return self.follow(self.plan(base, tokens, marks), progress)

    def plan(self, base: Place, tokens: Sequence[int], marks: Iterable[int] = ()) -> Reading:
        """What is left to be read to come to the end of `tokens`, which continue `base`. Nothing is computed.

        It begins at the last known of the places at hand and those at which snapshots are left: `marks`, counted within
        `tokens`, the turns' spans, and every GRID tokens.
        """
        with self._lock:
            parts: list[_Part] = []
            at, point = 0, None
            part = _Part(None, base, tokens, {*marks})
            while True:
                parts.append(part)
                at, point = self._latest(part)
                if point is not None or part.base.id is None:
                    break
                node = self.nodes[part.base.id]
                wanted = {span.begin for span in node.spans}
                if len(parts) == 1:
                    wanted.add(len(self._own(part.base)))
                part = _Part(part.base, self._base(part.base), self._own(part.base), wanted)
            return _flat(point or Point(None, self.initial), at, parts[::-1])

    def follow(self, reading: Reading, progress: Progress | None = None) -> Point:
        """Read it; leaves the snapshots, and keeps the states at the ends of turns at hand."""
        tokens, marks, turns = reading.tokens, dict(reading.marks), dict(reading.turns)
        point, at, total = reading.point, 0, len(tokens)
        for end in sorted({*marks, *turns, *([total] if total else [])}):
            point = Point(*self.model.forward(tokens[at:end], point.state, progress=_from(at, total, progress)))
            self.read_tokens += end - at
            at = end
            if end in turns:
                self.hold(turns[end], point)
            if end in marks:
                self.put(marks[end], point)
        return point

    def _ends(self, part: _Part) -> list[tuple[int, Prefix]]:
        """Where a state may be known: its marks, the grid, and its end."""
        start, total = self.prefix(part.base), len(part.tokens)
        grid = range(GRID - start.count % GRID, total, GRID)
        found: list[tuple[int, Prefix]] = []
        for end in sorted({n for n in (*part.marks, *grid, total) if 0 < n <= total}):
            begin, prefix = found[-1] if found else (0, start)
            found.append((end, prefix.extend(part.tokens[begin:end])))
        return found

    def _latest(self, part: _Part) -> tuple[int, Point | None]:
        """The last of its ends that is known, and what is known there."""
        total = len(part.tokens)
        if part.place is not None and (point := self._live.get(part.place)) is not None:
            return total, point  # without a look at its tokens, which may be many
        part.ends = self._ends(part)
        for end, prefix in reversed(part.ends):
            if (point := self._snapshot(prefix.key)) is not None:
                if part.place is not None and end == total:
                    self.hold(part.place, point)
                return end, point
        return 0, None

    def hold(self, place: Place, point: Point) -> None:
        """Keep the state at a place at hand."""
        self._live.hold(place, point)

    def keep_initial(self) -> None:
        """Have the store keep the state that the talk began with, if it is one of its own. Raises StoreError,
        CannotWrite.
        """
        if INITIAL in json.loads(self.talk.settings) and not self.lends_initial:
            self.store.put(beginning(self.talk.name), self.snapshot(Point(None, self.initial), 0), keep=True)

    def put(self, prefix: Prefix, point: Point) -> None:
        """Give the store a state to keep for as long as it has room."""
        self.store.put(prefix.key, self.snapshot(point, prefix.count))

    def snapshot(self, point: Point, tokens: int) -> Snapshot:
        """What the model knows after so many tokens, to be kept."""
        of = self.model
        return Snapshot(point.state.flat, point.logits, tokens, of.weights.fingerprint, of.config.version)

    def _snapshot(self, key: str) -> Point | None:
        found = self.store.get(key)
        return None if found is None else self.accept(found)

    def accept(self, found: Snapshot) -> Point | None:
        """What a snapshot holds, if it is this model's."""
        start, vocab = self.initial.flat, self.model.config.n_vocab
        if found.logits is None or found.fingerprint != self.model.weights.fingerprint:
            return None
        if found.flat.shape != start.shape or found.logits.shape != (vocab,):
            return None
        flat = found.flat.astype(start.dtype, copy=False)
        return Point(found.logits, State(self.model.config, flat, self.model.weights))


def _flat(point: Point, at: int, parts: Sequence[_Part]) -> Reading:
    """One reading of all the parts, from after `at` tokens of the first of them, where `point` is known."""
    reading = Reading(point, [], [], [])
    for part in parts:
        begin, total = len(reading.tokens) - at, len(part.tokens)
        reading.tokens.extend(part.tokens[at:])
        for n, prefix in part.ends:
            if n > at and (n < total or n in part.marks):
                reading.marks.append((begin + n, prefix))
        if part.place is not None and at < total:
            reading.turns.append((begin + total, part.place))
        at = 0
    return reading


def free_name(store: Store, name: str | None) -> str:
    """`name`, or one that is made up, for a new talk. Raises InputError if it is taken, or is none."""
    if name is None:
        return f"{time.strftime('%Y-%m-%d-%H%M')}-{uuid4().hex[:6]}"
    with suppress(NoSuchTalk):
        with suppress(FileError):  # one that cannot be read has the name all the same
            store.talk(name)
        raise InputError(f"there is a talk {name!r} in this store already; go on with it, or choose another name")
    return name


def new(
    model: Model,
    store: Store,
    name: str,
    noted: Mapping[str, Any],
    state: State | None = None,
    live: Live | None = None,
) -> Tree:
    """A talk that the store does not have yet. `noted`: its settings. Raises StateError for another model's state."""
    if state is not None:
        model.check(state)
        noted = {**noted, INITIAL: sha256(state.flat.tobytes()).hexdigest()}
    of = model.weights
    digest = tokenizers.digest(model.tokenizer)
    talk = Talk(name, SCHEMA, of.fingerprint, of.lineage, digest, json.dumps(noted), time.time())
    return Tree(model, store, talk, model.state() if state is None else state.copy(), live)


def initial(model: Model, store: Store, talk: Talk, state: State | None = None) -> State:
    """The state before the first token of a stored talk: the model's, or the one that it began with, which the store
    kept, or which is given. Raises StateError.
    """
    digest = json.loads(talk.settings).get(INITIAL)
    if state is None and digest is not None and (found := store.get(beginning(talk.name))) is not None:
        state = State(model.config, found.flat, model.weights)
    if digest != (None if state is None else sha256(state.flat.tobytes()).hexdigest()):
        raise StateError(f"the talk {talk.name!r} began with another state; give that one: state=")
    return model.state() if state is None else state.copy()


def _from(at: int, total: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda done, _: progress(at + done, total)
