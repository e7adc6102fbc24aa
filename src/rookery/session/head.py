"""Where a session stands in its talk, and how the store comes to know it."""

from __future__ import annotations

from rookery import store as stores
from rookery.session.tree import Tree
from rookery.store import Node
from rookery.store.node import check_name


class Head:
    """The head `name` of a talk, at turn `at`. `created`: whether the talk is in the store.

    Where the store fails, the head stands where it is to all the same, and the next `keep` makes up for it.
    """

    def __init__(self, tree: Tree, name: str, at: str | None, created: bool = True) -> None:
        self.tree, self.name, self.at, self.created = tree, check_name(name, "branch"), at, created
        self._stored = at  # where the store has it
        self._unsaved: list[Node] = []

    def take(self, node: Node) -> None:
        """Stand on a new turn."""
        self.tree.nodes[node.id] = node
        self.at = node.id
        self._unsaved.append(node)

    def keep(self) -> None:
        """Bring to the store what it has not yet. Where another process has moved the head, go on under a new name."""
        store, talk = self.tree.store, self.tree.talk.name
        if not self.created:
            store.create(self.tree.talk)
            try:
                self.tree.keep_initial()
            except BaseException:  # a talk without its beginning could not be gone on with
                store.remove(talk)
                raise
            self.created = True
            if self.name != stores.MAIN:
                store.move(talk, self.name, None, None)
        while self._unsaved:
            node = self._unsaved[0]
            self._placed(node.id, store.add(talk, node, self.name, self._stored))
            self._unsaved.pop(0)
        if self._stored != self.at:
            self._placed(self.at, store.move(talk, self.name, self._stored, self.at))

    def _placed(self, at: str | None, ours: bool) -> None:
        if not ours:
            self.fork(at)
        self._stored = at

    def fork(self, at: str | None) -> None:
        """Take a name that is free, for a head at `at`."""
        store, talk = self.tree.store, self.tree.talk.name
        stem, moved = self.name.rsplit("~", 1)[0][:90], False
        while not moved:
            taken = store.heads(talk)
            self.name = next(new for n in range(2, 2**31) if (new := f"{stem}~{n}") not in taken)
            moved = store.move(talk, self.name, None, at)
