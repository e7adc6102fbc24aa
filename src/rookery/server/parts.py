"""What a model writes, taken apart while it comes: thoughts, words for the reader, and calls of tools.

Thoughts are what stands in `<think>...</think>` at the beginning. A call is a JSON object of a name and arguments, or a
list of such, in a block that begins with ```json; it counts as one only where tools were offered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

THINK, THOUGHT, FENCE = "<think", "</think", "```json"
LONGEST = 2000  # characters in which a call must have named its tool

_NAME = re.compile(r'[\s,\[]*\{\s*"name"\s*:\s*"([^"\\]{1,256})"\s*,\s*"arguments"\s*:\s*(?=\{)')
_UNSURE = re.compile(r"\s*(?:<(?:/(?:t(?:h(?:i(?:nk?)?)?)?)?)?)?\Z")  # blanks and the beginning of </think


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Call:
    """The call number `index` begins; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Thought | Words | Call | Arguments


class Parts:
    """Push the text as it comes, then `end`. Joined, the pieces are the same wherever the text was cut.

    begun: what the prompt has already written of the reply. blank: whether the one space that follows the speaker's
    colon is no part of it. calls: whether tools were offered.
    """

    def __init__(self, begun: str = "", *, blank: bool = True, calls: bool = False) -> None:
        self.calls = 0  # so many have begun
        self._blank, self._offered = blank, calls
        self._held = ""
        self._step: Callable[[], list[Part] | None] = self._begin  # None: more text is needed
        self._early: list[Part] = []
        self._early = self.push(begun)

    def push(self, text: str) -> list[Part]:
        self._held += text
        found, self._early = self._early, []
        while self._held and (parts := self._step()) is not None:
            found += parts
        return found

    def end(self) -> list[Part]:
        """What was held back because more might have come."""
        found, held = self.push(""), self._held
        self._held = ""
        if not held or (self.calls and self._step in (self._call, self._arguments, self._closed)):
            return found
        if self._step == self._call:
            return [*found, Words(FENCE + held)]
        if self._step == self._thought:
            return [*found, Thought(held)] if held.strip() else found
        return [*found, Words(held)]

    def _begin(self) -> list[Part] | None:
        if self._blank:
            self._held, self._blank = self._held.removeprefix(" "), False
            return []
        if _maybe(self._held, THINK):
            return None
        if self._held.startswith(THINK):
            self._held = self._held.removeprefix(THINK)
            self._step = self._open
            return []
        return self._after()

    def _open(self) -> list[Part] | None:
        self._held = self._held.lstrip(">\n ")
        self._step = self._thought if self._held else self._open
        return []

    def _thought(self) -> list[Part] | None:
        thought, closed, rest = self._held.partition(THOUGHT)
        if closed:
            self._held, self._step = rest, self._close
            return [Thought(thought.rstrip())] if thought.strip() else []
        unsure = _UNSURE.search(self._held)
        assert unsure  # it matches nothing at the end, too
        if not unsure.start():
            return None
        sure, self._held = self._held[: unsure.start()], self._held[unsure.start() :]
        return [Thought(sure)]

    def _close(self) -> list[Part] | None:
        self._held = self._held.lstrip(">\n ")
        self._step = self._after if self._held else self._close
        return []

    def _after(self) -> list[Part] | None:
        """Thoughts are over, if there were any."""
        if self._offered and _maybe(self._held, FENCE):
            return None
        if self._offered and self._held.startswith(FENCE):
            self._held, self._step = self._held.removeprefix(FENCE), self._call
        else:
            self._step = self._words
        return []

    def _words(self) -> list[Part] | None:
        words, self._held = self._held, ""
        return [Words(words)]

    def _call(self) -> list[Part] | None:
        named = _NAME.match(self._held)
        if not named:
            if len(self._held) > LONGEST and not self.calls:
                self._held, self._step = FENCE + self._held, self._words
                return []
            return None
        self._held, self._step, self._scan = self._held[named.end() :], self._arguments, _Scan()
        self.calls += 1
        return [Call(self.calls - 1, f"call_{uuid4().hex[:24]}", named[1])]

    def _arguments(self) -> list[Part] | None:
        size = self._scan.push(self._held)
        text, self._held = self._held[:size], self._held[size:]
        if self._scan.done:
            self._step = self._closed
        return [Arguments(self.calls - 1, text)] if text else []

    def _closed(self) -> list[Part] | None:
        """Behind the arguments: the end of the object, perhaps another one."""
        rest = self._held.lstrip()
        if not rest:
            return None
        self._held, self._step = rest.removeprefix("}"), self._call
        return []


class Plain:
    """All of it is words: the same methods for a text that is no reply."""

    calls = 0

    def push(self, text: str) -> list[Part]:
        return [Words(text)] if text else []

    def end(self) -> list[Part]:
        return []


class _Scan:
    """Finds where a JSON object ends."""

    def __init__(self) -> None:
        self.done = False
        self._depth, self._text, self._escaped = 0, False, False

    def push(self, data: str) -> int:
        """How many characters of `data` belong to it."""
        for n, c in enumerate(data):
            if self._escaped:
                self._escaped = False
            elif self._text:
                self._escaped, self._text = c == "\\", c != '"'
            elif c == '"':
                self._text = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if not self._depth:
                    self.done = True
                    return n + 1
        return len(data)


def _maybe(text: str, beginning: str) -> bool:
    """Whether `text` may become one that starts so."""
    return len(text) < len(beginning) and beginning.startswith(text)
