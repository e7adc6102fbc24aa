"""What is asked of an engine, and the branches in which it is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.engine.events import Event, Score
from rookery.errors import InputError
from rookery.model import Model
from rookery.state import State
from rookery.stream import Draft

Array = npt.NDArray[Any]


@dataclass
class Start:
    """What a sequence begins with, found when its turn comes. T tokens, V vocabulary."""

    state: State  # the engine's own from now on, changed in place
    prompt: List[int] | Array  # [T], read first; may be empty where `logits` is given
    logits: Array | None = None  # [V] at `state`
    marks: tuple[int, ...] = ()  # after how many tokens of the prompt a copy of the state is given out
    drafts: tuple[Draft, ...] = ()  # what is written after it, each from the same state; none: read only
    keep: bool = True  # whether the state at the end of each draft is wanted: one more token to feed for most


class Sequence:
    """One request: a prompt to read, and drafts to write after it, each in a branch of its own.

    start: called once, in a thread beside the engine's, when there is room; it may be slow, and what it raises becomes
        a Failed event. listen: called in the engine's thread with each event; quick, never raising.
    owner: among whom the waiting take turns. places: how many drafts.
    scores: tell how likely each written token was, with so many of the likeliest tokens beside it; prompt_scores: the
        same of the prompt. deltas: after every so many written tokens tell how far each layer's state moved.
    hidden: tell the prompt's mean of what the last layer gives. model: who reads and writes, `Model.adapted` of the
        engine's, say; None: the engine's. Sequences of one model share its steps.
    """

    def __init__(
        self,
        start: Callable[[], Start],
        listen: Callable[[Event], None],
        *,
        owner: str = "",
        places: int = 1,
        scores: int | None = None,
        prompt_scores: int | None = None,
        deltas: int = 0,
        hidden: bool = False,
        model: Model | None = None,
    ) -> None:
        if places < 1:
            raise InputError(f"places {places}: a whole number, 1 or more, is wanted")
        self.start, self.listen, self.owner, self.places = start, listen, owner, places
        self.scores, self.prompt_scores, self.deltas, self.hidden = scores, prompt_scores, deltas, hidden
        self.model = model
        self.drafts: tuple[Draft, ...] = ()
        self.branches: list[Branch] = []  # those that run
        self.cancelled = False
        self.admitted = self.submitted = time.monotonic()


class Branch:
    """One state on its way: the tokens to feed next and the draft that comes of it."""

    def __init__(self, sequence: Sequence, index: int, state: State, todo: Array, draft: Draft | None) -> None:
        self.sequence, self.index, self.state, self.draft = sequence, index, state, draft
        self.todo, self.at = todo, 0  # tokens to feed, and how many of them have been
        self.logits: Array | None = None  # [V] after all that was fed
        self.marks: list[int] = []  # of a prompt: where a step has to end
        self.writing = False
        self.settling = False  # feeds its last token, for the state after it
        self.keep = True
        self.before: State | None = None  # at the last delta
        self.scores: list[Score | None] = []  # of the prompt
        self.sum: Array | None = None  # over the prompt, of what the last layer gives [C]

    @property
    def left(self) -> int:
        """Tokens to feed."""
        return len(self.todo) - self.at

    @property
    def room(self) -> int:
        """Tokens to feed until a step has to end."""
        return next((mark for mark in self.marks if mark > self.at), len(self.todo)) - self.at

    def feed(self, token: int) -> None:
        """Feed this next."""
        self.todo, self.at = np.array([token], np.int64), 0
