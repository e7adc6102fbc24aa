"""Session: one conversation with one model."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rookery import chat
from rookery import store as stores
from rookery.errors import FileError, InputError, NoSuchTalk, StoreError
from rookery.model import Model, whole
from rookery.sampling import Sampling
from rookery.session import file, settings
from rookery.session.ask import Writer
from rookery.session.head import Head
from rookery.session.reply import Reply
from rookery.session.request import Request, going_on
from rookery.session.tree import Place, Point, Tree, free_name, initial, new
from rookery.session.turns import Turn, drawn, message, said, turn
from rookery.state import State
from rookery.store import Node, Store
from rookery.store.node import check_name
from rookery.stream import Progress

CUT = ("length", "cancelled")  # ends of a reply that it can go on from


class Session:
    """A conversation: `say` goes on with it, `rewind` and `goto` go back, `branch` makes two of it.

    template: a chat template's name ("world", "g1", "raven", "coder", "plain"), the path of a .jinja file, its text,
        or a chat.Template; None: the model's own, else plain.
    sampling: how replies are drawn. seed: where its random numbers begin; drawn when None.
    store: where it is kept: None (in memory), the path of a SQLite file, "redis://...", or a store.Store.
    system: a text that stands before the talk. think, tools: as the template understands them.
    name: of the talk in its store, `head`: of the place in it; made up when None.
    state: the state before the first token; None: the model's. owner: whose it is, who shares no state with others.
    title: what a list of talks says of it.

    Every turn is in the store when its reply ends. Raises InputError, TemplateError, StoreError and FileError.
    """

    def __init__(
        self,
        model: Model,
        template: str | chat.Template | None = None,
        sampling: Sampling = settings.GREEDY,
        store: str | os.PathLike[str] | Store | None = None,
        *,
        system: str | None = None,
        think: str | None = None,
        tools: Sequence[Any] = (),
        seed: int | None = None,
        name: str | None = None,
        head: str = stores.MAIN,
        state: State | None = None,
        owner: str = "",
        title: str = "",
    ) -> None:
        check_name(head, "branch")
        noted = settings.noted(template, system, think, tools, model.sampler(sampling, seed).seed, owner, title)
        kept = stores.open(store)
        tree = new(model, kept, free_name(kept, name), noted, state)
        self._set(Head(tree, head, None, created=False), template, sampling)

    def _set(self, head: Head, template: str | chat.Template | None, sampling: Sampling | None) -> None:
        self._head, self._tree = head, head.tree
        node = None if head.at is None else head.tree.nodes[head.at]
        self.sampling = settings.sampling(node) if sampling is None else sampling
        self.settings: dict[str, Any] = json.loads(head.tree.talk.settings)
        noted = self.settings["template"]
        self.template = settings.template(noted, head.tree) if template is None else chat.load(template)
        last = self._record(head.at) if head.at else {}
        self.think: str | None = last.get("think", self.settings["think"])
        self.tools: list[Any] = last.get("tools", self.settings["tools"])
        self._reply: Reply | None = None

    @classmethod
    def standing(
        cls, head: Head, template: str | chat.Template | None = None, sampling: Sampling | None = None
    ) -> Session:
        """Stand where `head` does, and move it, if it stands there then; else on a head of its own."""
        session = object.__new__(cls)
        session._set(head, template, sampling)
        return session

    # going on

    def say(
        self,
        what: str | Sequence[chat.Message],
        max_tokens: int = 512,
        *,
        role: str = "user",
        seed: int | None = None,
        schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        stop: Sequence[str] = (),
        note: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """Say a text, or several messages, the last not the assistant's; the reply is made while it is iterated, or at
        once by `.text`.

        seed: begin the random numbers anew. schema, regex, grammar: what the reply must be, see rookery.chat.grammar.
        role: of a text; "tool" for what a tool answers. stop: texts that end the reply, besides the template's. note:
        JSON that the turn is to remember (`Turn.note`). progress: told of (tokens read, tokens in all) of what is said.
        """
        at = self.at
        limits = {k: v for k, v in (("schema", schema), ("regex", regex), ("grammar", grammar)) if v is not None}
        messages = said(what, role)
        options: dict[str, Any] = {"think": self.think, "tools": settings.listed(self.tools)}
        writer = Writer(self._tree, self.template, options)
        before = self._sampler_state(at) | {"penalties": []}
        if seed is not None:
            before = self.model.sampler(self.sampling, seed).state()
        request = Request(
            parent=at,
            messages=messages,
            asked=lambda: writer.ask(at, [*self._messages(at), *(message(*pair) for pair in messages)], len(messages)),
            template=self.template,
            options=options,
            max_tokens=whole("max_tokens", max_tokens),
            sampling=self.sampling,
            sampler=before,
            limits=limits,
            constraint=settings.constraint(self.model, self.template, limits),
            begun=self.template.begun(**options),
            note=settings.note(note),
            stops=tuple(stop),
        )
        return self._begin(request, progress)

    def proceed(self, max_tokens: int = 512, *, progress: Progress | None = None) -> Reply:
        """Go on with the last reply, which was cut, as if it had not been; `text` is then the whole of it.

        The turn that was cut stays in the tree beside the new one.
        """
        at = self.at
        if at is None or (node := self._tree.nodes[at]).stop not in CUT:
            raise InputError("there is no reply that was cut, so nothing to go on with: say something")
        record = self._record(at)
        request = Request(
            **going_on(node, record, self.model.tokenizer),
            template=self.template,
            options={"think": record["think"], "tools": record.get("tools", self.settings["tools"])},
            max_tokens=whole("max_tokens", max_tokens),
            sampling=self.sampling,
            constraint=settings.constraint(self.model, self.template, record["limits"]),
        )
        return self._begin(request, progress)

    def _begin(self, request: Request, progress: Progress | None) -> Reply:
        self._reply = Reply(self, request, progress)
        return self._reply

    def take(self, reply: Reply, node: Node, after: Callable[[], tuple[Any, State] | None]) -> None:
        """A reply has become a turn: note it, stand on it, and keep it, whatever becomes of the state `after` it."""
        self.release(reply)
        self._head.take(node)
        try:
            if (found := after()) is not None:
                self._tree.hold(Place(node.id), Point(*found))
                self._tree.put(self._tree.prefix(Place(node.id)), Point(*found))
        finally:
            self._head.keep()

    def release(self, reply: Reply) -> None:
        """A reply has ended."""
        if self._reply is reply:
            self._reply = None

    # looking at it

    @property
    def model(self) -> Model:
        return self._tree.model

    @property
    def name(self) -> str:
        """Of the talk in its store."""
        return self._tree.talk.name

    @property
    def owner(self) -> str:
        """Whose talk it is; "" where nobody said."""
        return self._tree.owner

    @property
    def head(self) -> str:
        """Of our place in the talk."""
        return self._head.name

    @property
    def system(self) -> str | None:
        system: str | None = self.settings["system"]
        return system

    @property
    def at(self) -> str | None:
        """The id of the last turn, None before the first."""
        if self._reply is not None:
            self._reply.settle()
        return self._head.at

    @property
    def turns(self) -> list[Turn]:
        """The talk so far."""
        return [turn(node, self.template) for node in self._tree.path(self.at)]

    @property
    def tokens(self) -> list[int]:
        """All that the model has read and written."""
        return self._tree.tokens(Place(self.at))

    @property
    def state(self) -> State:
        """What the model knows now: a copy."""
        return self.state_at(self.at)

    def state_at(self, id: str | None) -> State:
        """What the model knew at the end of a turn (None: before the first): a copy."""
        return self._tree.point(Place(self._find(id))).state.copy()

    def tree(self) -> list[tuple[int, Turn, list[str], bool]]:
        """Every turn of the talk in drawing order: its depth, itself, the heads that stand on it, whether we do.

        The depth grows only where a turn has more than one that follows it.
        """
        here = self.at
        if self._head.created:
            self._tree.refresh()
        heads = self._tree.store.heads(self.name) if self._head.created else {}
        return [
            (depth, turn(node, self.template), standing, node.id == here)
            for depth, node, standing in drawn(self._tree.nodes, heads)
        ]

    # going back

    def rewind(self, n: int = 1) -> Session:
        """Go back by `n` turns, which stay in the tree. It costs no more in a long talk than in a short one."""
        path = self._tree.path(self.at)
        if whole("rewind", n) > len(path):
            raise InputError(f"cannot go back {n} turns: the talk has {len(path)}")
        return self._move(path[-n - 1].id if n < len(path) else None)

    def goto(self, id: str | None) -> Session:
        """Stand on any turn of the tree, named by its id or the beginning of it; None: before the first."""
        _ = self.at
        return self._move(self._find(id))

    def _find(self, id: str | None) -> str | None:
        """The whole id of the turn whose id begins so."""
        if id is None or id in self._tree.nodes:
            return id
        if self._head.created:
            self._tree.refresh()
        found = [known for known in self._tree.nodes if known.startswith(id)]
        if len(found) != 1 or id == "":
            what = "no turn" if not found else f"{len(found)} turns"
            raise InputError(f"{what} of this talk begins with {id!r}; see the tree for their names")
        return found[0]

    def _move(self, to: str | None) -> Session:
        self._head.at = to
        if self._head.created:
            self.keep()
        return self

    def keep(self) -> Session:
        """Bring to the store what it has not yet: then it has the talk, even one without a turn."""
        self._head.keep()
        return self

    def branch(self, name: str | None = None) -> Session:
        """Another session that stands where this one does; both go on, each for itself."""
        at = self.at
        self.keep()
        head = Head(self._tree, self.head if name is None else name, at)
        if name is None:
            head.fork(at)
        elif name in self._tree.store.heads(self.name):
            raise InputError(f"this talk has a branch {name!r} already; choose another name")
        else:
            self._tree.store.move(self.name, name, None, at)
        new = self.standing(head, self.template, self.sampling)
        new.think, new.tools = self.think, self.tools
        return new

    # keeping it

    @classmethod
    def resume(
        cls,
        store: str | os.PathLike[str] | Store,
        name: str,
        model: Model,
        *,
        head: str = stores.MAIN,
        template: str | chat.Template | None = None,
        sampling: Sampling | None = None,
        state: State | None = None,
        allow_lineage: bool = False,
    ) -> Session:
        """Go on with a talk of a store as if it had never stopped. `sampling` None: as its last reply was drawn.

        Raises StateError for a talk of another model; one of another quantisation of this model is read anew, token
        by token, where `allow_lineage` says so. StoreError for a name that is not there.
        """
        kept = stores.open(store)
        talk = kept.talk(name)
        heads = kept.heads(name)
        if head not in heads:
            raise NoSuchTalk(f"the talk {name!r} has no branch {head!r}; it has {', '.join(sorted(heads))}")
        file.check(talk, model, f"talk {name!r}", allow_lineage)
        tree = Tree(model, kept, talk, initial(model, kept, talk, state))
        tree.refresh()
        return cls.standing(Head(tree, head, heads[head]), template, sampling)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the talk with all its branches and the state it stands at to one file, whole or not at all."""
        at, heads = self.at, {}
        try:
            if self._head.created:
                self._tree.refresh()
                heads = self._tree.store.heads(self.name)
        except (StoreError, FileError) as error:  # all the more reason to save what is at hand
            warnings.warn(f"{error}; saved are the turns that are known here, and this branch", stacklevel=2)
        file.write(path, self._tree, heads | {self.head: at}, self.head, self._tree.point(Place(at)))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Model,
        store: str | os.PathLike[str] | Store | None = None,
        *,
        template: str | chat.Template | None = None,
        sampling: Sampling | None = None,
        allow_lineage: bool = False,
    ) -> Session:
        """Go on with a talk that was saved. Its turns are put into `store`, under a name that is free there.

        Raises FileError for a damaged file and StateError for a talk of another model, see `resume`.
        """
        kept = stores.open(store)
        tree, heads, head = file.read(path, model, kept, allow_lineage)
        return cls.standing(Head(tree, head, heads[head]), template, sampling)

    def _messages(self, at: str | None) -> list[chat.Message]:
        system = [("system", self.system)] if self.system else []
        turns = [pair for node in self._tree.path(at) for pair in node.messages]
        return [message(*pair) for pair in system + turns]

    def _sampler_state(self, at: str | None) -> dict[str, Any]:
        if at is None:
            return self.model.sampler(self.sampling, self.settings["seed"]).state()
        return dict(self._record(at)["after"])

    def _record(self, at: str) -> dict[str, Any]:
        """How the reply of a turn was drawn."""
        return dict(json.loads(self._tree.nodes[at].sampling))

    def __repr__(self) -> str:
        return f"Session({self.name!r}, {len(self._tree.path(self._head.at))} turns, {self.model!r})"
