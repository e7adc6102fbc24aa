"""The engine: many sequences, one step at a time, on one model or on several that share its weights.

C width, V vocabulary, R rows of a step.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.engine.events import Cancelled, Ended, Event, Failed, Marked, Read, Scored, Wrote
from rookery.engine.scheduler import Scheduler
from rookery.engine.scores import score
from rookery.engine.sequence import Branch, Sequence, Start
from rookery.errors import InputError
from rookery.model import CHUNK, Model

Array = npt.NDArray[Any]
Work = list[tuple[Branch, int]]

log = logging.getLogger("rookery.engine")

OPENERS = 2  # threads in which sequences find what they begin with


class Engine:
    """model: of sequences that name no other. max_batch: sequences side by side; max_waiting: in the queue behind
    them; prefill_rows: tokens of prompts read in a step while others write, see `scheduler`.

    `start` gives it a thread of its own; without one, `step` does one step at a time. `after_step` is called at the
    end of each. Any thread may submit and cancel.
    """

    def __init__(self, model: Model, max_batch: int = 16, max_waiting: int = 512, prefill_rows: int = 128) -> None:
        self.model = model
        self.after_step: Callable[[], None] = lambda: None
        self._scheduler = Scheduler(max_batch, max_waiting, CHUNK, prefill_rows)
        self._running: list[Branch] = []
        self._opened: list[tuple[Sequence, Start | Exception]] = []
        self._cancelled: list[Sequence] = []
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(OPENERS, "rookery-open")
        self._thread: threading.Thread | None = None
        self._closing = False
        self._counts = dict.fromkeys(("steps", "rows", "tokens_read", "tokens_written", "sequences", "failed"), 0)

    # from any thread

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises Busy where the queue is full, InputError where it could never run, Cancelled where
        the engine has been closed.
        """
        with self._changed:
            if self._closing:
                raise Cancelled
            self._scheduler.submit(sequence)
            self._counts["sequences"] += 1
            self._changed.notify()

    def cancel(self, sequence: Sequence) -> None:
        """End it with the next step, wherever it is; nothing happens if it has ended."""
        with self._changed:
            sequence.cancelled = True
            self._cancelled.append(sequence)
            self._changed.notify()

    def stats(self) -> dict[str, int]:
        """running, reading, waiting, places; and since the engine was made: steps, rows, tokens_read, ..."""
        with self._changed:
            running = list(self._running)
            now = {"waiting": self._scheduler.waiting, "places": self._scheduler.places}
        reading = sum(not branch.writing for branch in running)
        return {"running": len(running), "reading": reading, **now, **self._counts}

    def start(self) -> None:
        """Run in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run, name="rookery-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Cancel all that runs or waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown()
        with self._changed:
            left = self._scheduler.clear()
        for sequence in left:
            self._tell(sequence, Failed(Cancelled()))
        for sequence in {branch.sequence for branch in self._running} | {of for of, _ in self._opened}:
            self._cancel(sequence)
        self.after_step()

    # in the engine's thread

    def _run(self) -> None:
        while not self._closing:
            try:
                busy = self.step()
            except Exception as error:  # the engine's own fault: nobody is to wait for ever because of it
                log.exception("the engine failed outside of any one sequence")
                for sequence in {branch.sequence for branch in self._running}:
                    self._fail(sequence, error)
                busy = False
            if not busy:
                with self._changed:
                    if not (self._closing or self._opened or self._cancelled or self._scheduler.ready):
                        self._changed.wait()

    def step(self) -> bool:
        """One step; whether there was anything to do."""
        self._take_in()
        work = self._scheduler.plan(self._running)
        for (_, kind), part in self._groups(work).items():
            try:
                self._compute(kind, part)
            except Exception as error:  # of the back end: these are lost, the others go on
                log.warning("a step of %d tokens failed: %s", sum(rows for _, rows in part), error)
                for sequence in {branch.sequence for branch, _ in part}:
                    self._fail(sequence, error)
        self._counts["steps"] += bool(work)
        with suppress(Exception):  # as a listener's
            self.after_step()
        return bool(work)

    def _take_in(self) -> None:
        """Cancel, admit, and begin with what was opened."""
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            for sequence in cancelled:
                if self._scheduler.withdraw(sequence):
                    self._tell(sequence, Failed(Cancelled()))
            admitted = self._scheduler.admit()
            opened, self._opened = self._opened, []
        for sequence in admitted:
            self._pool.submit(self._open, sequence)
        for sequence in cancelled:
            if sequence.branches:
                self._cancel(sequence)
        for sequence, found in opened:
            if sequence.cancelled or isinstance(found, Exception):
                self._fail(sequence, found if isinstance(found, Exception) else Cancelled())
            else:
                self._begin(sequence, found)

    def _open(self, sequence: Sequence) -> None:
        """In a thread of the pool."""
        found: Start | Exception = Cancelled()
        if not (sequence.cancelled or self._closing):
            try:
                found = sequence.start()
                self._check(sequence, found)
            except BaseException as error:
                found = _fault(error)
        with self._changed:
            self._opened.append((sequence, found))
            self._changed.notify()

    def _check(self, sequence: Sequence, start: Start) -> None:
        """Raises where a sequence begins with something that cannot be: in a step it would be the others' end, too."""
        prompt, model = np.asarray(start.prompt, np.int64), self._model(sequence)
        config = model.config
        if len(start.drafts) not in (0, sequence.places) or not (len(prompt) or start.logits is not None):
            raise InputError(f"{len(start.drafts)} drafts in {sequence.places} places, {len(prompt)} tokens to read")
        if prompt.ndim != 1 or not ((prompt >= 0) & (prompt < config.n_vocab)).all():
            raise InputError(f"a prompt of what are no tokens; there are {config.n_vocab}")
        model.check(start.state)
        start.prompt, start.marks = prompt, tuple(sorted(start.marks))

    def _begin(self, sequence: Sequence, start: Start) -> None:
        branch = Branch(sequence, 0, start.state, np.asarray(start.prompt), None)
        branch.logits, branch.keep = start.logits, start.keep
        branch.marks = list(start.marks)
        sequence.drafts = start.drafts
        sequence.branches = [branch]
        self._running.append(branch)
        if not branch.left:
            self._guarded(self._write_on, branch)

    def _model(self, sequence: Sequence) -> Model:
        return sequence.model or self.model

    def _groups(self, work: Iterable[tuple[Branch, int]]) -> dict[tuple[object, str], Work]:
        """The work of a step by who can do it together and by what is wanted of it; the law of rows makes the parts
        invisible.
        """
        groups: defaultdict[tuple[object, str], Work] = defaultdict(list)
        for branch, rows in work:
            runner, kind = self._model(branch.sequence).runner, _kind(branch)
            groups[runner if kind == "hidden" else runner.family, kind].append((branch, rows))
        return groups

    def _compute(self, kind: str, part: Work) -> None:
        """Feed these and do what follows. `kind`: "plain", or with "every" row's logits, or what is "hidden"."""
        heard: list[Array] = []
        runners = [self._model(branch.sequence).runner for branch, _ in part]
        model = self._model(part[0][0].sequence)
        if kind == "hidden":
            last = f"layers.{model.config.n_layer - 1}.resid"
            ours = threading.get_ident()  # others may use the model meanwhile, and would be heard, too
            model.runner.listen(lambda _, x: heard.append(x) if threading.get_ident() == ours else None, [last])
        try:
            ids = [branch.todo[branch.at : branch.at + rows] for branch, rows in part]
            flats = [branch.state.flat for branch, _ in part]
            if all(runner is model.runner for runner in runners):
                outs = model.runner.step(ids, flats, kind == "every")
            else:
                outs = model.runner.together(runners, ids, flats, kind == "every")
        finally:
            if kind == "hidden":
                model.runner.listen(None)
        self._counts["rows"] += sum(rows for _, rows in part)
        hidden = np.split(heard[0], np.cumsum([rows for _, rows in part])[:-1]) if heard else [None] * len(part)
        for (branch, rows), logits, found in zip(part, outs, hidden, strict=True):
            if found is not None:
                total = found.astype(np.float64).sum(0)
                branch.sum = total if branch.sum is None else branch.sum + total
            self._guarded(self._fed, branch, rows, logits)

    def _guarded(self, do: Callable[..., None], branch: Branch, *more: Any) -> None:
        """What goes wrong with one sequence ends that one alone."""
        if branch not in branch.sequence.branches:
            return  # another branch of it has failed in this step
        try:
            do(branch, *more)
        except BaseException as error:
            self._fail(branch.sequence, error)

    def _fed(self, branch: Branch, rows: int, logits: Array) -> None:
        """A branch has been fed so many tokens; `logits`: [V], or [rows,V] where each row's are wanted."""
        if not branch.writing:
            self._counts["tokens_read"] += rows
            if logits.ndim == 2:
                self._score_prompt(branch, rows, logits)
                logits = logits[-1].copy()
        branch.at += rows
        branch.logits = logits
        if branch.writing:
            self._settled(branch) if branch.settling else self._draw(branch)
            return
        sequence = branch.sequence
        self._tell(sequence, Read(branch.at, len(branch.todo)))
        if branch.at in branch.marks:
            self._tell(sequence, Marked(branch.at, logits.copy(), branch.state.copy()))
        if not branch.left:
            self._write_on(branch)

    def _score_prompt(self, branch: Branch, rows: int, logits: Array) -> None:
        top = branch.sequence.prompt_scores or 0
        before = [branch.logits, *logits[:-1]]
        tokens = branch.todo[branch.at : branch.at + rows].tolist()
        branch.scores += [None if x is None else score(x, t, top) for x, t in zip(before, tokens, strict=True)]

    def _write_on(self, read: Branch) -> None:
        """The prompt has been read: go on with each draft from here."""
        sequence = read.sequence
        if sequence.prompt_scores is not None:
            self._tell(sequence, Scored(read.scores))
        hidden = None if read.sum is None else (read.sum / len(read.todo)).astype(np.float32)
        if not sequence.drafts:
            point = None if read.logits is None else (read.logits.copy(), read.state)
            self._over(read, Ended(0, None, "", point, hidden))
            return
        branches = [read]
        for index in range(1, len(sequence.drafts)):
            branches.append(Branch(sequence, index, read.state.copy(), read.todo[:0], None))
        for branch, draft in zip(branches, sequence.drafts, strict=True):
            branch.draft, branch.writing, branch.logits, branch.keep = draft, True, read.logits, read.keep
            if sequence.deltas:
                branch.before = branch.state.copy()
        sequence.branches = [*branches]
        self._running += branches[1:]
        for branch in branches:
            self._draw(branch)

    def _draw(self, branch: Branch) -> None:
        """The next token of a draft."""
        draft, logits, sequence = branch.draft, branch.logits, branch.sequence
        assert draft is not None
        assert logits is not None
        count = len(draft.tokens)
        text = draft.draw(logits)
        drawn = len(draft.tokens) > count
        if drawn:
            token = draft.tokens[-1]
            self._counts["tokens_written"] += 1
            said = None if sequence.scores is None else score(logits, token, sequence.scores)
            self._tell(sequence, Wrote(branch.index, text, token, said, self._delta(branch, count + 1)))
            branch.feed(token)
        if draft.stop_reason is None:
            if draft.holds:
                draft.remember(logits.copy(), branch.state.copy())
        elif drawn and branch.keep and draft.kept == len(draft.tokens):
            branch.settling = True
        else:
            self._settled(branch)

    def _delta(self, branch: Branch, count: int) -> tuple[float, ...] | None:
        every, before = branch.sequence.deltas, branch.before
        if before is None or count % every:
            return None
        branch.before = branch.state.copy()
        return tuple(branch.before.delta_by_layer(before).tolist())

    def _settled(self, branch: Branch) -> None:
        """A draft is finished: its last token fed, or never to be."""
        draft, point = branch.draft, None
        assert draft is not None
        assert branch.logits is not None
        fed = len(draft.tokens) - branch.left
        if branch.keep:
            here = branch.logits.copy(), branch.state
            point = here if draft.kept == fed else draft.remembered()
        self._over(branch, Ended(branch.index, draft, draft.end("length"), point, None))

    # ends

    def _over(self, branch: Branch, event: Event) -> None:
        self._running.remove(branch)
        sequence = branch.sequence
        sequence.branches.remove(branch)
        if not sequence.branches:
            self._release(sequence)
        self._tell(sequence, event)

    def _cancel(self, sequence: Sequence) -> None:
        """End each draft where it is; a sequence that has not begun to write has failed."""
        writing = [branch for branch in sequence.branches if branch.draft is not None]
        if not writing:
            self._fail(sequence, Cancelled())
        for branch in writing:
            draft = branch.draft
            assert draft is not None
            self._over(branch, Ended(branch.index, draft, draft.end("cancelled"), None, None))

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        for branch in sequence.branches:
            self._running.remove(branch)
        sequence.branches = []
        self._counts["failed"] += not isinstance(error, Cancelled)
        self._release(sequence)
        self._tell(sequence, Failed(_fault(error)))

    def _release(self, sequence: Sequence) -> None:
        sequence.drafts = ()  # and their grammars, which may be large
        with self._changed:
            self._scheduler.release(sequence)

    def _tell(self, sequence: Sequence, event: Event) -> None:
        with suppress(Exception):  # a listener's fault is not the engine's
            sequence.listen(event)


def _kind(branch: Branch) -> str:
    of = branch.sequence
    if branch.writing:
        return "plain"
    return "every" if of.prompt_scores is not None else "hidden" if of.hidden else "plain"


def _fault(error: BaseException) -> Exception:
    """As an Exception: the panic of a library written in Rust is none."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
