"""The loop of a talk: a line in, a reply or a command's effect out, by a Session and on a Screen."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rookery.cli import chat_commands as commands
from rookery.cli.chat_commands import Command
from rookery.cli.chat_look import Screen, Status, ago, brief, plural, tree_lines
from rookery.cli.chat_shelf import MAIN, Keeper, Shelf, warnings_to
from rookery.cli.options import SAMPLING
from rookery.cli.progress import Job
from rookery.errors import InputError, RookeryError

SILENCE = "nothing has been said yet"
Progress = Callable[[int, int], None]


class Chat:
    """One person and one model. `handle` takes what was typed; a mistake is one line, and the talk goes on."""

    def __init__(self, model: str, session: Any, shelf: Shelf, screen: Screen, max_tokens: int) -> None:
        """model: what to call it."""
        self.session, self.shelf, self.screen, self.max_tokens = session, shelf, screen, max_tokens
        self._model = model
        self._speed: float | None = None
        self._keeper = Keeper(screen.error)

    def handle(self, line: str) -> bool:
        """Do what `line` says. False when the person wants to leave."""
        with warnings_to(self.screen.note):
            try:
                said = commands.parse(line)
                if isinstance(said, Command):
                    return said.name != "quit" and self._obey(said)
                if said:
                    self._reply(lambda progress: self.session.say(said, self.max_tokens, progress=progress))
            except RookeryError as error:
                self.screen.error(str(error))
            except OSError as error:
                self.screen.error(f"{error.filename}: {error.strerror}")
        return True

    def _obey(self, command: Command) -> bool:
        getattr(self, f"_{command.name}")(command.argument)
        return True

    # replies

    def _reply(self, start: Callable[[Progress], Any], earlier: str = "") -> None:
        """Show a reply as it comes; `earlier` is what was shown of it before. Ctrl-C ends it, and the talk has it."""
        job = Job("reading the message", "tokens")
        shown, reply = earlier, start(job.update)
        with self._keeper, CtrlC() as ctrl_c:
            for piece in ctrl_c.watch(job, reply):
                shown += piece
                self.screen.piece(piece)
            reply.cancel()  # nothing, where it has ended
        self.screen.piece(reply.text[len(shown) :])  # what was held back
        self.screen.end()
        if reply.tokens and reply.decode_seconds:
            self._speed = len(reply.tokens) / reply.decode_seconds
        if said := ending(reply):
            self.screen.note(f"({said})")

    def _more(self, _: str) -> None:
        last = self._turns()[-1]
        self._reply(lambda progress: self.session.proceed(self.max_tokens, progress=progress), last.reply)

    def _retry(self, _: str) -> None:
        last = self._turns()[-1]
        self.session.rewind(1)
        before = self.session.at
        try:
            seed = secrets.randbits(32)
            self._reply(lambda progress: self.session.say(last.messages, self.max_tokens, seed=seed, progress=progress))
        finally:
            if self.session.at == before:  # no word was written
                self.session.goto(last.id)

    # the tree

    def _turns(self) -> list[Any]:
        turns: list[Any] = self.session.turns
        if not turns:
            raise InputError(SILENCE)
        return turns

    def _rewind(self, argument: str) -> None:
        n, turns = commands.whole(argument or "1", "/rewind"), self._turns()
        if n > len(turns):
            raise InputError(f"/rewind {n}: the talk has {plural(len(turns), 'turn')} here")
        self.session.rewind(n)
        self._moved()

    def _branch(self, argument: str) -> None:
        sampling, think = self.session.sampling, self.session.think
        self.session = self.session.branch(commands.name(argument) if argument else None)
        self.session.sampling, self.session.think = sampling, think
        self.screen.note(f"on branch {self.session.head} now; /goto leads to another by its name")

    def _goto(self, argument: str) -> None:
        if argument in {head for *_, heads, _ in self.session.tree() for head in heads}:
            sampling, think = self.session.sampling, self.session.think
            self.session = self.shelf.resume(self.session.name, argument)
            self.session.sampling, self.session.think = sampling, think
        else:
            self.session.goto(argument)
        self._moved()

    def _moved(self) -> None:
        """Say where the talk stands."""
        turns = self.session.turns
        self.screen.note(f"after: {brief(turns[-1].user, 50)}" if turns else "at the beginning")

    def _tree(self, _: str) -> None:
        rows = self.session.tree()
        if not rows:
            raise InputError(SILENCE)
        self.screen.lines(tree_lines([(turn.parent, turn, *where) for _, turn, *where in rows]))

    # the model

    def _state(self, _: str) -> None:
        turns = self.session.turns
        before = self.session.state_at(turns[-2].id if len(turns) > 1 else None) if turns else None
        self.screen.state(self.session.state, before)

    def _set(self, argument: str) -> None:
        if not argument:
            self.screen.table(None, self._settings())
            return
        key, value = commands.setting(argument)
        if key == commands.MAX_TOKENS:
            self.max_tokens = commands.whole(value, key)
        elif key == "think":
            self.session.template.opening([{"role": "user", "content": "?"}], think=value)  # refuses what it has not
            self.session.think = value
        else:
            self.session.sampling = commands.changed(self.session.sampling, key, value)
        self.screen.note(f"{key} = {dict(self._settings())[key]}")

    def _settings(self) -> list[tuple[str, str]]:
        sampling = self.session.sampling
        values = {key: getattr(sampling, key) for key in SAMPLING}
        values |= {commands.MAX_TOKENS: self.max_tokens, "think": self.session.think or "not set"}
        return [(key, f"{value:g}" if isinstance(value, float) else str(value)) for key, value in values.items()]

    def _system(self, argument: str) -> None:
        old = self.session
        if old.tree():
            raise InputError("/system comes before the first turn; rookery chat --system begins another talk")
        self.session = self.shelf.new(system=argument, think=old.think, name=old.name)
        self.session.sampling = old.sampling
        self.screen.note(f"system: {brief(argument)}")

    # talks

    def _talks(self, _: str) -> None:
        rows = [(name, ago(used), "" if mine else "of another model") for name, used, mine in self.shelf.talks()]
        if not rows:
            raise InputError("no talk is kept yet")
        self.screen.table(("talk", "last used", ""), rows)

    def _resume(self, argument: str) -> None:
        self._switch(self.shelf.resume(argument and commands.name(argument)))

    def _save(self, argument: str) -> None:
        path = commands.talk_file(self.shelf.folder, argument)
        self.shelf.make_folders()
        self.session.save(path)
        self.screen.note(f"saved to {path}")

    def _load(self, argument: str) -> None:
        self._switch(self.shelf.load(commands.talk_file(self.shelf.folder, argument)))

    def _switch(self, session: Any) -> None:
        self.session = session
        self._recall()

    def _recall(self) -> None:
        """Which talk this is, and its last turn."""
        turns = self.session.turns
        self.screen.note(f"talk {self._place()}, {plural(len(turns), 'turn')}")
        if turns:
            self.screen.note(f"> {turns[-1].user}")
            self.screen.piece(turns[-1].reply)
            self.screen.end()

    def _help(self, _: str) -> None:
        self.screen.help()

    def choices(self, command: str) -> Iterable[str]:
        """What may follow a command, for the Tab key."""
        if command in ("save", "load"):
            return commands.saved(self.shelf.folder)
        if command == "resume":
            return [name for name, _, mine in self.shelf.talks() if mine]
        if command == "goto":
            rows = self.session.tree()
            return [*(head for *_, heads, _ in rows for head in heads), *(turn.id[:8] for _, turn, *_ in rows)]
        return commands.SETTINGS if command == "set" else ()

    def greet(self) -> None:
        """The first lines: who talks, and where help is."""
        template = f", format {self.session.template.name}" if self.session.template.name else ""
        self.screen.heading(self._model, template)
        self.screen.note("/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves.")
        if self.session.template.name == "plain" and self.shelf.args.template is None:
            self.screen.note("No chat format is known for this model: it goes on with your text. See --template.")
        if self.session.turns:
            self._recall()

    def _place(self) -> str:
        """The talk, and the branch where it is not the main one."""
        name, head = self.session.name, self.session.head
        return f"{name}/{head}" if head != MAIN else f"{name}"

    def status(self) -> Status:
        """What the status line says now."""
        session = self.session
        return Status(
            self._model,
            self._place(),
            len(session.turns),
            4 * self.shelf.model.state_size,
            self._speed,
            sampling_line(session.sampling),
        )


def sampling_line(sampling: Any) -> str:
    """`greedy`, or temperature and top_p."""
    return "greedy" if sampling.greedy else f"temperature {sampling.temperature:g} top_p {sampling.top_p:g}"


def ending(reply: Any) -> str:
    """What a person should know of the end of a reply."""
    if reply.id is None:
        return "stopped before its first word; the talk is as it was"
    if reply.stop_reason == "length":
        return f"cut at {plural(len(reply.tokens), 'token')}; /more goes on"
    if reply.stop_reason == "cancelled":
        return "stopped; /more goes on"
    return "" if reply.text.strip() else "an empty reply"


class CtrlC:
    """Ctrl-C while a reply is written: raised while the prompt is read, after that noticed between two pieces.

    So no step of the model and no turn on its way into the store is torn.
    """

    def __init__(self) -> None:
        self._reading = self._asked = False

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on(self, *_: object) -> None:
        self._asked = True
        if self._reading:
            raise KeyboardInterrupt

    def watch(self, job: Job, reply: Iterator[str]) -> Iterator[str]:
        """The reply's pieces until Ctrl-C; `job` watches over the wait for the first."""
        try:
            with job:
                self._reading = True
                piece = next(reply, None)
                self._reading = False
        except KeyboardInterrupt:
            return
        while piece is not None:
            yield piece
            piece = None if self._asked else next(reply, None)
