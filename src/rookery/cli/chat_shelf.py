"""Where the talks of `rookery chat` lie, and how one begins or goes on."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from rookery.cli import chat_commands as commands
from rookery.cli.options import SAMPLING
from rookery.errors import FileError, InputError, RookeryError, StoreError

MAIN, PROFILE = "main", "demo"  # where a template recommends nothing: narrow, which keeps a small model sensible


def data_folder() -> str:
    """$XDG_DATA_HOME/rookery; the variable counts only where it is an absolute path, as its specification says."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.local/share"), "rookery")


class Keeper:
    """`with keeper:` around what makes a turn: where the turn could not be kept, one line says so, and the talk has it
    all the same and tries again with the next. Other warnings are said after it, a line each.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn, self._lost = warn, False

    def __enter__(self) -> None:
        self._catching = warnings_to(self._warn)
        self._found = self._catching.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        lost = isinstance(error, FileError | StoreError)
        if lost:
            self._found.clear()  # of the same cause
            if not self._lost:
                self._warn(f"{error}; the talk goes on in memory")
        self._lost = lost
        self._catching.__exit__(None, None, None)
        return lost


@contextmanager
def warnings_to(say: Callable[[str], None]) -> Iterator[list[Any]]:
    """Say what was warned of meanwhile, a line each."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield found
    for warning in found:
        say(str(warning.message))


class Shelf:
    """The talks of one model: new ones, kept ones, and those in files. Talks are private, so folders are made 0700."""

    def __init__(self, model: Any, args: argparse.Namespace, warn: Callable[[str], None], state: Any = None) -> None:
        """state: what new talks begin with; None: the model's own."""
        self.model, self.args, self.state = model, args, state
        self.home = data_folder()
        self.folder = os.path.join(self.home, "talks")
        self.store = self._open(warn)
        self.history = None if args.no_save else os.path.join(self.home, "history")

    def _open(self, warn: Callable[[str], None]) -> Any:
        """The store that was named, else the usual one; where that cannot be had, memory, and one line that says so."""
        from rookery import store

        if self.args.no_save:
            return store.open(None)
        try:
            self.make_folders()
            return store.open(self.args.store or os.path.join(self.home, "talks.db"))
        except (RookeryError, OSError) as error:
            if self.args.store or self.args.resume is not None:
                raise
            warn(f"{error}; this talk is kept in memory only")
            return store.open(None)

    def make_folders(self) -> None:
        for folder in (self.home, self.folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def start(self) -> Any:
        """The session that the command line asks for."""
        args = self.args
        if args.resume is None:
            return self.new(system=args.system, think=args.think, name=args.name)
        for flag in ("template", "system", "name", "state"):
            if getattr(args, flag) is not None:
                raise InputError(f"--{flag} is for a new talk; --resume goes on with what the talk has")
        session = self.resume(args.resume)
        if self._flags() or args.profile:
            session.sampling = self._sampling(session.sampling)
        return session

    def new(self, **settings: Any) -> Any:
        """A new talk; `settings` are those of Session."""
        from rookery.session import Session

        template = self.args.template
        if template is not None and template.endswith(".jinja"):
            template = os.path.abspath(template)  # the talk may go on in another folder
        session = Session(self.model, template, store=self.store, seed=self.args.seed, state=self.state, **settings)
        session.sampling = self._sampling(session.template.sampling)
        return session

    def resume(self, name: str, head: str | None = None) -> Any:
        """The kept talk of this name, or the newest of this model for "", on the branch that was last used."""
        from rookery.session import Session

        mine = [talk for talk, _, own in self.talks() if own]
        if not name and not mine:
            raise InputError("no talk of this model is kept yet; leave out --resume to begin one")
        name = name or mine[0]
        head = head or self._last_head(name)
        return self._as_it_was(Session.resume(self.store, name, self.model, head=head))

    def _last_head(self, name: str) -> str:
        nodes = self.store.nodes(name)
        heads = {head: nodes[at].created for head, at in self.store.heads(name).items() if at is not None}
        return max(heads, key=heads.__getitem__, default=MAIN)

    def load(self, path: str) -> Any:
        """The talk in a file of the folder."""
        from rookery.session import Session

        if not os.path.exists(path):
            there = ", ".join(commands.saved(self.folder)) or "none"
            raise InputError(f"no talk of this name was saved; there are: {there}")
        return self._as_it_was(Session.load(path, self.model, self.store))

    def _as_it_was(self, session: Any) -> Any:
        """`session` with the sampling of its last turn; before the first, as a new talk."""
        if session.at is None:
            session.sampling = self._sampling(session.template.sampling)
        return session

    def talks(self) -> list[tuple[str, float, bool]]:
        """Name, time of last use, and whether it is this model's; the newest first."""
        mine = self.model.weights.fingerprint
        return [(talk.name, used, talk.fingerprint == mine) for talk, used in self.store.talks()]

    def _sampling(self, base: Any) -> Any:
        """The sampling of the profile that was named, else `base`, else the usual, with the flags that were given."""
        from rookery.chat import PROFILES

        if self.args.profile or base is None:
            base = PROFILES[self.args.profile or PROFILE]
        return replace(base, **self._flags())

    def _flags(self) -> dict[str, Any]:
        given = {key: getattr(self.args, key) for key in SAMPLING}
        return {key: value for key, value in given.items() if value is not None}
