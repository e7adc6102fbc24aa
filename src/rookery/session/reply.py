"""A reply while it is being made: it reads what was asked, writes, and becomes a turn of its talk when it ends."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from rookery.errors import InputError
from rookery.sampling import Sampler
from rookery.session.request import Asked, Request, record
from rookery.session.tree import Point, Reading
from rookery.state import State
from rookery.store import Node, Prefix, Span
from rookery.stream import Array, Draft, Progress, Stream

if TYPE_CHECKING:
    from rookery.session.session import Session


D = TypeVar("D", bound=Draft)
WORTH = 64  # tokens read for which a snapshot of what was asked is made: it may be asked again


class Reply:
    """Iterate it for its pieces as they come, or take `text`, which finishes it.

    The next call on its talk finishes a reply that nobody has begun to read, and cancels one that was left half read.
    An error in the middle cancels it too: what was written stays. One thread at a time: InputError for a second.
    """

    def __init__(self, session: Session, request: Request, progress: Progress | None) -> None:
        self.stop_reason: str | None = None  # "end", "stop", "length" or "cancelled" when finished
        self.prompt_tokens = self.read_tokens = 0  # asked, and of these really computed
        self.known_tokens = 0  # all that stands before it, the talk so far included
        self.prefill_seconds = self.decode_seconds = 0.0
        self.id: str | None = None  # of the turn that it became
        self._session, self._request, self._progress = session, request, progress
        self._draft: Draft | None = None
        self._marks: dict[int, Prefix] = {}
        self._asked: Asked | None = None
        self._drawn: list[int] = []  # when finished
        self._raw = request.begun  # the reply as it stands in the talk
        self._seen = len(session.model.tokenizer.decode(request.before)) + len(request.begun)  # of a reply that was cut
        self._started = bool(request.before)
        self._begun = self._closed = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._alone()
        self._begun = True
        try:
            return next(self._pieces)
        except StopIteration:
            raise
        except BaseException:
            self.cancel()
            raise

    @property
    def text(self) -> str:
        """The whole reply; where it went on with one that was cut, that one's words included."""
        for _ in self:
            pass
        return self._request.template.shown(self._raw)

    @property
    def tokens(self) -> list[int]:
        """Those drawn so far."""
        return self._draft.tokens[len(self._request.before) :] if self._draft else self._drawn

    @property
    def note(self) -> dict[str, Any]:
        """What the turn is to remember, to which may be added until it ends."""
        return self._request.note

    def cancel(self) -> None:
        """End it here: what was written stays, as a turn of the talk. A reply without a word leaves no turn."""
        self._alone()
        if self._closed:
            return
        self._pieces.close()
        self._end("cancelled")

    def settle(self) -> None:
        """What the next call on the talk does with it."""
        if self._begun:
            self.cancel()
        else:
            _ = self.text

    def _alone(self) -> None:
        if inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING:
            raise InputError("this reply is being written at this moment; wait for its piece, one thread at a time")

    # What makes it: `_run` alone, or an engine between these calls, in whichever threads, one after the other.

    def prepare(self) -> Reading:
        """What is to be read before it is written, with the places at which `passed` wants to know the state.

        May render a template and read the store. Raises InputError, TemplateError, StoreError.
        """
        self._begun = True
        tree, request = self._session._tree, self._request
        self._asked = asked = request.asked()
        tokens = [*asked.tokens, *request.before]
        marks = (*(span.begin for span in asked.spans), len(asked.tokens), len(tokens))  # others may ask otherwise
        reading = tree.plan(asked.base, tokens, marks)
        self.prompt_tokens, self.read_tokens = len(asked.tokens), len(reading.tokens)
        self.known_tokens = tree.prefix(asked.base).count + len(tokens)
        if self.read_tokens < WORTH:
            inside = [mark for mark in reading.marks if mark[0] < self.read_tokens]
            reading = reading._replace(marks=inside)
        self._marks = dict(reading.marks)
        return reading

    def passed(self, at: int, point: Point) -> None:
        """The state at a mark of the reading, which is taken over; for the store."""
        self._session._tree.put(self._marks[at], point)

    def draft(self) -> Draft:
        """What is to be written after the reading."""
        request, tokenizer = self._request, self._session.model.tokenizer
        return self._resumed(Draft(tokenizer, request.max_tokens, self._sampler(), self._stops(), request.constraint))

    def show(self, piece: str) -> str:
        """What a person sees of the next piece that was drawn."""
        self._raw += piece
        new = piece if self._started else self._request.template.shown(self._raw)  # which drops the blank before it
        if self._started and len(self._raw) - len(piece) < self._seen:
            new = self._raw[self._seen :]
        self._started = self._started or bool(new)
        return new

    def close(self, stop: str, draft: Draft, point: tuple[Array, State] | None) -> None:
        """It has ended: become a turn, and keep it, durably. `point`: logits and state after `draft.kept` tokens, which
        are taken over; None: unknown. Raises StoreError, CannotWrite: the turn is then kept with the next.
        """
        if self._closed:
            raise InputError("this reply has ended already")
        self._draft = draft
        self._pieces.close()
        self._close(stop, lambda: point)

    def _run(self) -> Generator[str, None, None]:
        session, request = self._session, self._request
        begin = time.perf_counter()
        point = session._tree.follow(self.prepare(), self._progress)
        self.prefill_seconds = time.perf_counter() - begin
        stream = Stream(
            session.model,
            [],
            request.max_tokens,
            self._sampler(),
            point.state,
            logits=point.logits,
            stop=self._stops(),
            constraint=request.constraint,
        )
        for piece in self._resumed(stream):
            if new := self.show(piece):
                yield new
        self._end(stream.stop_reason or "end")

    def _stops(self) -> tuple[str, ...]:
        return (*self._request.template.stops, *self._request.stops)

    def _sampler(self) -> Sampler:
        sampler = self._session.model.sampler(self._request.sampling)
        sampler.restore(self._request.sampler)
        return sampler

    def _resumed(self, draft: D) -> D:
        """With what was written of it in an earlier call."""
        self._raw += draft.resume(self._request.before)
        self._draft = draft
        return draft

    def _end(self, stop: str) -> None:
        if isinstance(self._draft, Stream):
            self.decode_seconds = self._draft.decode_seconds
            self._close(stop, self._draft.at_kept)
        else:
            self._close(stop, lambda: None)

    def _close(self, stop: str, after: Callable[[], tuple[Array, State] | None]) -> None:
        """Become a turn, unless nothing was written. The tokens say what was: a piece may have been lost on its way."""
        self._closed, self.stop_reason = True, stop
        draft, asked, request = self._draft, self._asked, self._request
        self._drawn, self._draft = self.tokens, None  # and the states it remembers, which may be large
        if draft is None or asked is None or (stop == "cancelled" and not self._drawn):
            self._session.release(self)
            return
        tree = self._session._tree
        encoding = getattr(tree.model.tokenizer, "encoding", "utf-8")
        self._raw = request.begun + draft.data.decode(encoding, "replace")
        tokens = (*asked.tokens, *draft.tokens[: draft.kept])
        node = Node(
            parent=request.parent,
            base=asked.base.id,
            kept=asked.base.kept,
            tokens=tokens,
            spans=_with_reply(asked.spans, len(asked.tokens), len(tokens)),
            tail=draft.tail,
            messages=(*request.messages, ("assistant", self._raw)),
            stop=stop,
            sampling=record(request, len(asked.tokens), draft.sampler),
            key=tree.key(asked.base, tokens),
            created=time.time(),
        )
        self.id = node.id
        self._session.take(self, node, after)


def _with_reply(spans: tuple[Span, ...], begin: int, end: int) -> tuple[Span, ...]:
    """The reply's span, which begins with what the prompt wrote of it."""
    if spans and spans[-1].role == "assistant":
        *spans_, last = spans
        return (*spans_, Span("assistant", last.begin, end))
    return (*spans, Span("assistant", begin, end))
