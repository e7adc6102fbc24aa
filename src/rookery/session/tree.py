"""The turns of one talk, and the states at them, which are read anew where no snapshot is left.

A turn continues the tokens of its `base`, which is nearly always its `parent`, the turn before it in the talk; where a
template writes old turns in another way than they were written then, the base is an earlier one, or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from rookery import tokenizer as tokenizers
from rookery.model import Model
from rookery.state import State
from rookery.store import Node, Prefix, Snapshot, Store, Talk, root
from rookery.stream import Array, Progress

GRID = 8192  # tokens from one snapshot inside a long text to the next
LIVE = 4  # states held at hand besides the store's: one for each of some heads


class Point(NamedTuple):
    """What the model knows at some token: its logits [V] there (None before the first) and its state."""

    logits: Array | None
    state: State


class Tree:
    """The turns of `talk` in `store`, and how `model` gets to each. `initial`: the state before the first token."""

    def __init__(self, model: Model, store: Store, talk: Talk, initial: State) -> None:
        self.model, self.store, self.talk, self.initial = model, store, talk, initial
        self.nodes: dict[str, Node] = {}
        start = sha256(initial.flat.tobytes()).hexdigest()
        self._start = Prefix.start(root(model.weights.fingerprint, talk.tokenizer, start, model.arithmetic))
        self._prefixes: dict[str, Prefix] = {}
        self._live: dict[str, Point] = {}
        self.read_tokens = 0  # computed so far, all turns together

    # the tree

    def refresh(self) -> None:
        """Learn the turns that others have added."""
        self.nodes |= self.store.nodes(self.talk.name)

    def path(self, id: str | None) -> list[Node]:
        """The turns of the talk up to this one, the first first."""
        found = []
        while id is not None:
            found.append(self.nodes[id])
            id = found[-1].parent
        return found[::-1]

    def chain(self, id: str | None) -> list[Node]:
        """The turns whose tokens, one after the other, lead to this one."""
        found = []
        while id is not None:
            found.append(self.nodes[id])
            id = found[-1].base
        return found[::-1]

    def tokens(self, id: str | None) -> list[int]:
        """All that has been read at the end of a turn."""
        return [token for node in self.chain(id) for token in node.tokens]

    def prefix(self, id: str | None) -> Prefix:
        """The key of all that has been read at the end of a turn."""
        missing = []
        while id is not None and id not in self._prefixes:
            missing.append(self.nodes[id])
            id = missing[-1].base
        at = self._start if id is None else self._prefixes[id]
        for node in reversed(missing):
            at = self._prefixes[node.id] = at.extend(node.tokens)
        return at

    def key(self, base: str | None, tokens: Sequence[int]) -> str:
        """Under which the state after `tokens` that continue `base` is kept."""
        return self.prefix(base).extend(tokens).key

    # the states

    def point(self, id: str | None, progress: Progress | None = None) -> Point:
        """Logits and state at the end of a turn: at hand, from the store, or read anew from the nearest turn before."""
        missing: list[Node] = []
        point = None
        while id is not None and (point := self._known(id)) is None:
            missing.append(self.nodes[id])
            id = missing[-1].base
        point = point or Point(None, self.initial)
        for node in reversed(missing):
            point = self.read(node.base, node.tokens, [s.begin for s in node.spans], progress)
            self.hold(node.id, point)
        if missing:
            self.put(self.prefix(missing[0].id), point)
        return point

    def read(
        self, base: str | None, tokens: Sequence[int], marks: Iterable[int] = (), progress: Progress | None = None
    ) -> Point:
        """Logits and state after `tokens` that continue turn `base`. Begins at the last of the places between them,
        `marks` and every GRID tokens, at which a snapshot is left, and leaves one at each place it passes.
        """
        start, total = self.prefix(base), len(tokens)
        grid = range(GRID - start.count % GRID, total, GRID)
        places = sorted({mark for mark in (*marks, *grid) if 0 < mark < total} | ({total} if total else set()))
        prefixes: list[Prefix] = []
        for begin, end in zip([0, *places], places, strict=False):
            prefixes.append((prefixes[-1] if prefixes else start).extend(tokens[begin:end]))
        at, point = 0, None
        for place, prefix in zip(reversed(places), reversed(prefixes), strict=True):
            if (point := self._snapshot(prefix.key)) is not None:
                at = place
                break
        point = point or self.point(base, progress)
        for place, prefix in zip(places, prefixes, strict=True):
            if place > at:
                point = Point(*self.model.forward(tokens[at:place], point.state, progress=_from(at, total, progress)))
                self.read_tokens += place - at
                at = place
                if place < total:
                    self.put(prefix, point)
        return point

    def hold(self, id: str, point: Point) -> None:
        """Keep the state at a turn at hand."""
        self._live.pop(id, None)
        self._live[id] = point
        while len(self._live) > LIVE:
            del self._live[next(iter(self._live))]

    def put(self, prefix: Prefix, point: Point) -> None:
        """Give the store a state to keep for as long as it has room."""
        self.store.put(prefix.key, self.snapshot(point, prefix.count))

    def snapshot(self, point: Point, tokens: int) -> Snapshot:
        """What the model knows after so many tokens, to be kept."""
        of = self.model
        return Snapshot(point.state.flat, point.logits, tokens, of.weights.fingerprint, of.config.version)

    def _known(self, id: str) -> Point | None:
        if (point := self._live.get(id)) is None and (point := self._snapshot(self.prefix(id).key)) is not None:
            self.hold(id, point)
        return point

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


def header(model: Model, name: str, settings: str, created: float, schema: int) -> Talk:
    """What is noted of a talk of this model."""
    of = model.weights
    return Talk(name, schema, of.fingerprint, of.lineage, tokenizers.digest(model.tokenizer), settings, created)


def _from(at: int, total: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda done, _: progress(at + done, total)
