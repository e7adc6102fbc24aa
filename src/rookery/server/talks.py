"""The stored talks of a server's clients: sessions that stand where an id says, lists, branches, states in and out.

No HTTP here. Every call may read the store and blocks; threads may share a Talks, and processes a store: what the store
says is asked for anew, and only turns, which never change, are kept at hand.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from rookery import chat
from rookery import tokenizer as tokenizers
from rookery.errors import InputError, NoSuchTalk, StateError
from rookery.model import Model
from rookery.sampling import Sampling
from rookery.server import state_files, talk_ids
from rookery.server.talk_ids import Id, parse, unknown
from rookery.server.talk_lists import Info, Listed, entry, listed
from rookery.session import Session, settings
from rookery.session.head import Head
from rookery.session.tree import INITIAL, Live, Place, Point, Reading, Tree, initial, new
from rookery.session.turns import Turn, drawn, turn
from rookery.state import State
from rookery.store import MAIN, Node, Store, Talk

HOT = 64  # talks whose turns are kept at hand
BUDGET = 256 << 20  # bytes of states kept at hand

Read = Callable[[Tree, Reading], Point]  # who computes what must be read anew


@dataclass
class _Hot:
    """A talk at hand. `names`: its turns by the second half of their responses' ids."""

    tree: Tree
    template: chat.Template
    names: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """The id of the turn that is called so."""
        if name not in self.names:
            for id, node in list(self.tree.nodes.items()):
                if id not in self.names:
                    self.names[called(node)] = id
                    self.names[id] = id  # last: another thread takes it as a sign that the other is there
        return self.names.get(name)

    def learn(self, name: str) -> str | None:
        """As `find`, of turns that another process may have made, too."""
        if (found := self.find(name)) is None:
            self.tree.refresh()
            found = self.find(name)
        return found


class Talks:
    """`others`: models besides `model` that talks may be held with. `initials`: states that talks may begin with and
    that are always there, so that the store keeps no copy for each talk. `template`: of new talks that name none.
    `read`: who reads tokens whose state is not known (default: the model, in the caller's thread). `hot`: talks at
    hand; `budget`: bytes of states at hand.
    """

    def __init__(
        self,
        model: Model,
        store: Store,
        template: chat.Template | None = None,
        *,
        others: Sequence[Model] = (),
        initials: Sequence[State] = (),
        templates: Sequence[chat.Template] = (),
        read: Read | None = None,
        hot: int = HOT,
        budget: int = BUDGET,
    ) -> None:
        """templates: others that talks may have been begun with, besides the built-in ones."""
        self.model, self.store, self._limit = model, store, hot
        self._models = {each.weights.fingerprint: each for each in (model, *others)}
        self._initials = {sha256(state.flat.tobytes()).hexdigest(): state for state in initials}
        self._template = template
        self._templates = [made for made in (template, *templates) if made is not None]
        self._read = read or (lambda tree, reading: tree.follow(reading))
        self._live = Live(budget // (4 * (model.state_size + model.config.n_vocab)))
        self._lock = threading.Lock()
        self._hot: OrderedDict[str, _Hot] = OrderedDict()

    # sessions

    def begin(
        self,
        owner: str,
        *,
        model: Model | None = None,
        template: chat.Template | None = None,
        system: str | None = None,
        think: str | None = None,
        tools: Sequence[Any] = (),
        sampling: Sampling = settings.GREEDY,
        seed: int | None = None,
        title: str = "",
        state: State | None = None,
    ) -> Session:
        """A new talk, which the store gets with its first turn, or by `session.keep()`. Raises InputError."""
        chosen = template or self._template
        of = model or self.model
        drawn_from = of.sampler(sampling, seed).seed
        noted = settings.noted(chosen, system, think, tools, drawn_from, owner, title)
        tree = new(of, self.store, talk_ids.fresh(owner), noted, state, self._live)
        tree.lends_initial = noted_initial(tree.talk) in self._initials
        hot = self._add(tree.talk.name, _Hot(tree, chosen or settings.template(None, tree)))
        return Session.standing(Head(tree, MAIN, None, created=False), hot.template, sampling)

    def open(self, owner: str, id: str) -> Session:
        """Stand at the turn or head that `id` names. What is said there is a branch of its own where a head stands
        elsewhere by then. Raises NoSuchTalk, StateError for another model's talk.
        """
        hot, at, head = self._find(owner, parse(id))
        return Session.standing(Head(hot.tree, head, at), hot.template)

    def turn(self, owner: str, id: str) -> Turn:
        """The turn that a response's id names. Raises NoSuchTalk."""
        hot, at, _ = self._find(owner, parse(id))
        if at is None:
            raise unknown()
        return turn(hot.tree.nodes[at], hot.template)

    def state(self, owner: str, id: str) -> State:
        """The state at a turn or head; read anew where nothing keeps it. A copy."""
        hot, at, _ = self._find(owner, parse(id))
        place = Place(at)
        point = self._read(hot.tree, hot.tree.plan(place, ()))
        hot.tree.hold(place, point)
        return point.state.copy()

    # lists

    def list(self, owner: str, limit: int = 20, after: str | None = None) -> list[Listed]:
        """The owner's talks, the last used first; those after the one of the id `after`. Raises NoSuchTalk for an
        `after` that is none of them.
        """
        shelf, last = talk_ids.shelf(owner), None
        if after is not None:
            last = talk_ids.stored(owner, parse(after).talk)
            with _hidden():
                self.store.talk(last)
        return [listed(talk, used) for talk, used in self.store.talks(shelf, last, limit)]

    def info(self, owner: str, id: str, preview: int = 200) -> Info:
        """The tree of a talk's turns, texts cut to `preview` characters; heads; where `id` stands."""
        wanted = parse(id)
        hot, at, head = self._find(owner, wanted)
        talk, heads = hot.tree.talk, self._heads(hot.tree.talk.name)
        nodes = self.store.nodes(talk.name)
        ids = {id: talk_ids.response(talk.name, called(node)) for id, node in nodes.items()}
        return Info(
            talk=listed(talk, max((node.created for node in nodes.values()), default=talk.created)),
            id=talk_ids.state(talk.name, head),
            at=ids.get(at or ""),
            turns=[entry(turn(node, hot.template), ids, preview) for _, node, _ in drawn(nodes, heads)],
            heads={name: ids.get(there or "") for name, there in heads.items()},
        )

    # branches

    def fork(self, owner: str, id: str, name: str | None = None) -> str:
        """A new head where `id` stands: its id. Raises InputError for a name that is taken or is none."""
        hot, at, head = self._find(owner, parse(id))
        store, talk = self.store, hot.tree.talk.name
        if name is None:
            made = Head(hot.tree, head, at)
            made.fork(at)
            return talk_ids.state(talk, made.name)
        talk_ids.check_head(name)
        if name in store.heads(talk) or not store.move(talk, name, None, at):
            raise InputError(f"this talk has a branch {name!r} already; choose another name")
        return talk_ids.state(talk, name)

    def rewind(self, owner: str, id: str, turns: int = 1) -> str:
        """Move a head back; its id, another one where the head has moved on meanwhile. Raises InputError."""
        session = self.open(owner, id)
        if parse(id).turn is not None:
            raise InputError("a response stays where it is; go back with a state's id, or go on from an older response")
        return talk_ids.of(session.rewind(turns))

    def delete_turn(self, owner: str, id: str) -> None:
        """Delete a turn that no other follows: heads that stand on it go back to the one before it. The talk stays.
        Raises InputError where others follow it.
        """
        hot, at, _ = self._find(owner, parse(id))
        if at is None or parse(id).turn is None:
            raise unknown()
        with _hidden():
            self.store.cut(hot.tree.talk.name, at)
        self._forget(hot.tree.talk.name)

    def delete(self, owner: str, id: str) -> None:
        """Delete a whole talk. Raises InputError for the id of one of its branches."""
        named = parse(id)
        if named.turn is not None or named.head != MAIN:
            self._find(owner, named)
            raise InputError("a branch is no talk of its own; delete the whole talk by the id of its main state")
        name = talk_ids.stored(owner, named.talk)
        with _hidden():
            self.store.remove(name)
        self._forget(name)

    # states in and out

    def export(self, owner: str, id: str) -> bytes:
        """The state at a turn or head as a safetensors file, as State.save writes it."""
        return state_files.encode(self.state(owner, id))

    def import_(self, owner: str, data: bytes, title: str = "") -> str:
        """A new talk that begins with the state in a safetensors file: its id. Kept for good, as long as the talk is.

        Raises StateError for another model's state or one with numbers that are not finite, FileError for bytes that
        are no such file, StoreError and CannotWrite.
        """
        model, state = state_files.decode(data, *self._models.values())
        session = self.begin(owner, model=model, state=state, title=title)
        tree = session._tree
        logits, _ = self._read(tree, Reading(Point(None, tree.initial), [0], [], []))
        if logits is None or not np.isfinite(logits).all():
            raise StateError("the state holds numbers so large that the model gives none; it is damaged")
        return talk_ids.of(session.keep())

    # within

    def _find(self, owner: str, named: Id) -> tuple[_Hot, str | None, str]:
        """The talk, the turn that is meant, and the head that it moves."""
        name = talk_ids.stored(owner, named.talk)
        heads = self._heads(name)
        hot = self._at_hand(name)
        if named.turn is None:
            if named.head not in heads:
                raise unknown()
            at = heads[named.head]
            if at is not None and hot.learn(at) is None:
                raise unknown()  # deleted just now
            return hot, at, named.head
        at = hot.learn(named.turn)
        if at is None or not (at in heads.values() or self.store.has_turn(name, at)):
            raise unknown()  # deleted elsewhere, or never kept
        return hot, at, next((head for head in sorted(heads) if heads[head] == at), MAIN)

    def _heads(self, name: str) -> dict[str, str | None]:
        try:
            return self.store.heads(name)
        except NoSuchTalk:
            self._forget(name)
            raise unknown() from None

    def _at_hand(self, name: str) -> _Hot:
        with self._lock:
            if name in self._hot:
                self._hot.move_to_end(name)
                return self._hot[name]
        with _hidden():
            talk = self.store.talk(name)
        model = self._model_of(talk)
        tree = Tree(model, self.store, talk, self._initial(model, talk), self._live)
        tree.refresh()
        return self._add(name, _Hot(tree, self._template_of(tree)))

    def _add(self, name: str, hot: _Hot) -> _Hot:
        """The one that is at hand from now on: another thread may have been faster."""
        with self._lock:
            hot = self._hot.setdefault(name, hot)
            while len(self._hot) > self._limit:
                self._hot.popitem(last=False)
            return hot

    def _forget(self, name: str) -> None:
        with self._lock:
            self._hot.pop(name, None)

    def _model_of(self, talk: Talk) -> Model:
        found = self._models.get(talk.fingerprint)
        if found is None or talk.tokenizer != tokenizers.digest(found.tokenizer):
            raise StateError("this talk was held with another model than the one that is served; it needs that one")
        return found

    def _initial(self, model: Model, talk: Talk) -> State:
        try:
            given = self._initials.get(noted_initial(talk) or "")
            return initial(model, self.store, talk, given and State(model.config, given.flat, model.weights))
        except StateError:
            raise StateError(
                "the state that this talk began with is lost: the server was started with another --state, or without; "
                "begin a new talk, or ask for the server to be started with the same one"
            ) from None

    def _template_of(self, tree: Tree) -> chat.Template:
        noted = json.loads(tree.talk.settings)["template"]
        for known in self._templates:
            if settings.source(known) == noted:
                return known
        return settings.template(noted, tree)


def noted_initial(talk: Talk) -> str | None:
    """The digest of the state of its own that it began with."""
    found: str | None = json.loads(talk.settings).get(INITIAL)
    return found


def called(node: Node) -> str:
    """The second half of the id of the response that a turn is."""
    name = json.loads(node.sampling).get("note", {}).get(talk_ids.RESPONSE)
    return name if isinstance(name, str) else node.id


@contextmanager
def _hidden() -> Iterator[None]:
    """Says of a talk that is not there no more than that."""
    try:
        yield
    except NoSuchTalk:
        raise unknown() from None
