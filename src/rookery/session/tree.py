"""The turns of one talk, and the states at them, which are read anew where no snapshot is left.

A turn continues the tokens of its `base`, which is nearly always its `parent`, the turn before it in the talk. Where a
template writes old turns in another way than they were written then, it continues the beginning of one (`Place`).
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


class Place(NamedTuple):
    """After so many of a turn's own tokens (None: all); `id` None is before the first token."""

    id: str | None
    kept: int | None = None


class Tree:
    """The turns of `talk` in `store`, and how `model` gets to each. `initial`: the state before the first token."""

    def __init__(self, model: Model, store: Store, talk: Talk, initial: State) -> None:
        self.model, self.store, self.talk, self.initial = model, store, talk, initial
        self.nodes: dict[str, Node] = {}
        start = sha256(initial.flat.tobytes()).hexdigest()
        arithmetic = model.arithmetic + (", states in float16" if store.half else "")
        self._start = Prefix.start(root(model.weights.fingerprint, talk.tokenizer, start, arithmetic))
        self._prefixes: dict[Place, Prefix] = {}
        self._live: dict[Place, Point] = {}
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
        missing: list[Place] = []
        point = None
        while place.id is not None and (point := self._known(place)) is None:
            missing.append(place)
            place = self._base(place)
        point = point or Point(None, self.initial)
        for place in reversed(missing):
            spans = self.nodes[str(place.id)].spans
            point = self.read(self._base(place), self._own(place), [span.begin for span in spans], progress)
            self.hold(place, point)
        if missing:
            self.put(self.prefix(missing[0]), point)
        return point

    def read(
        self, base: Place, tokens: Sequence[int], marks: Iterable[int] = (), progress: Progress | None = None
    ) -> Point:
        """Logits and state after `tokens` that continue `base`. Begins at the last of the places between them, `marks`
        and every GRID tokens, at which a snapshot is left, and leaves one at each place it passes.
        """
        start, total = self.prefix(base), len(tokens)
        grid = range(GRID - start.count % GRID, total, GRID)
        ends = sorted({mark for mark in (*marks, *grid) if 0 < mark < total} | ({total} if total else set()))
        prefixes: list[Prefix] = []
        for begin, end in zip([0, *ends], ends, strict=False):
            prefixes.append((prefixes[-1] if prefixes else start).extend(tokens[begin:end]))
        at, point = 0, None
        for end, prefix in zip(reversed(ends), reversed(prefixes), strict=True):
            if (point := self._snapshot(prefix.key)) is not None:
                at = end
                break
        point = point or self.point(base, progress)
        for end, prefix in zip(ends, prefixes, strict=True):
            if end > at:
                point = Point(*self.model.forward(tokens[at:end], point.state, progress=_from(at, total, progress)))
                self.read_tokens += end - at
                at = end
                if end < total:
                    self.put(prefix, point)
        return point

    def hold(self, place: Place, point: Point) -> None:
        """Keep the state at a place at hand."""
        self._live.pop(place, None)
        self._live[place] = point
        while len(self._live) > LIVE:
            del self._live[next(iter(self._live))]

    def put(self, prefix: Prefix, point: Point) -> None:
        """Give the store a state to keep for as long as it has room."""
        self.store.put(prefix.key, self.snapshot(point, prefix.count))

    def snapshot(self, point: Point, tokens: int) -> Snapshot:
        """What the model knows after so many tokens, to be kept."""
        of = self.model
        return Snapshot(point.state.flat, point.logits, tokens, of.weights.fingerprint, of.config.version)

    def _known(self, place: Place) -> Point | None:
        if (point := self._live.get(place)) is None and (point := self._snapshot(self.prefix(place).key)) is not None:
            self.hold(place, point)
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
