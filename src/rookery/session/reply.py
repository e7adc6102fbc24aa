"""A reply while it is being made: it reads what was asked, writes, and becomes a turn of its talk when it ends."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rookery.chat import Template
from rookery.errors import InputError
from rookery.sampling import Sampler, Sampling
from rookery.session.tree import Place, Point
from rookery.store import Node, Span
from rookery.stream import Constraint, Progress, Stream

if TYPE_CHECKING:
    from rookery.session.session import Session


WORTH = 64  # tokens read for which a snapshot of what was asked is made: it may be asked again


@dataclass(frozen=True)
class Asked:
    """What a reply answers, as tokens that continue `base`, and who said them."""

    base: Place
    tokens: list[int]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Request:
    """One call of `say` or `proceed`: all that a reply depends on besides the talk so far."""

    parent: str | None
    message: tuple[str, str]  # role and content
    asked: Callable[[], Asked]
    template: Template
    think: str | None
    max_tokens: int
    sampling: Sampling
    sampler: Mapping[str, Any]  # its state before
    limits: Mapping[str, Any] = field(default_factory=dict)  # schema, regex or grammar
    constraint: Constraint | None = None  # made of these
    before: tuple[int, ...] = ()  # tokens of this reply that were written in an earlier call
    begun: str = ""  # what the prompt has already written of the reply


class Reply:
    """Iterate it for its pieces as they come, or take `text`, which finishes it.

    The next call on its talk finishes a reply that nobody has begun to read, and cancels one that was left half read.
    An error in the middle cancels it too: what was written stays. One thread at a time: InputError for a second.
    """

    def __init__(self, session: Session, request: Request, progress: Progress | None) -> None:
        self.stop_reason: str | None = None  # "end", "stop", "length" or "cancelled" when finished
        self.prompt_tokens = self.read_tokens = 0  # asked, and of these really computed
        self.prefill_seconds = self.decode_seconds = 0.0
        self.id: str | None = None  # of the turn that it became
        self._session, self._request, self._progress = session, request, progress
        self._stream: Stream | None = None
        self._asked: Asked | None = None
        self._drawn: list[int] = []  # when finished
        self._raw = request.begun  # the reply as it stands in the talk
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
        return self._stream.tokens[len(self._request.before) :] if self._stream else self._drawn

    def cancel(self) -> None:
        """End it here: what was written stays, as a turn of the talk. A reply without a word leaves no turn."""
        self._alone()
        if self._closed:
            return
        self._pieces.close()
        self._close("cancelled")

    def settle(self) -> None:
        """What the next call on the talk does with it."""
        if self._begun:
            self.cancel()
        else:
            _ = self.text

    def _alone(self) -> None:
        if inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING:
            raise InputError("this reply is being written at this moment; wait for its piece, one thread at a time")

    def _run(self) -> Generator[str, None, None]:
        tree, request = self._session._tree, self._request
        begin = time.perf_counter()
        self._asked = asked = request.asked()
        earlier = tree.read_tokens
        marks = (*(span.begin for span in asked.spans), len(asked.tokens))  # where others may ask or begin otherwise
        point = tree.read(asked.base, [*asked.tokens, *request.before], marks, self._progress)
        self.prompt_tokens = len(asked.tokens)
        self.read_tokens = tree.read_tokens - earlier
        if self.read_tokens >= WORTH:
            tree.put(tree.prefix(asked.base).extend([*asked.tokens, *request.before]), point)
        self.prefill_seconds = time.perf_counter() - begin
        self._stream = stream = self._open(point)
        seen = len(self._session.model.tokenizer.decode(request.before)) + len(request.begun)  # of a reply that was cut
        started = bool(request.before)
        for piece in stream:
            self._raw += piece
            new = piece if started else request.template.shown(self._raw)  # which drops the blank before it
            if started and len(self._raw) - len(piece) < seen:
                new = self._raw[seen:]
            if new:
                started = True
                yield new
        self._close(stream.stop_reason or "end")

    def _open(self, point: Point) -> Stream:
        session, request = self._session, self._request
        sampler = session.model.sampler(request.sampling)
        sampler.restore(request.sampler)
        stream = Stream(
            session.model,
            [],
            request.max_tokens,
            sampler,
            point.state,
            logits=point.logits,
            stop=request.template.stops,
            constraint=request.constraint,
        )
        self._raw += stream.resume(request.before)
        return stream

    def _close(self, stop: str) -> None:
        """Become a turn, unless nothing was written. The tokens say what was: a piece may have been lost on its way."""
        self._closed, self.stop_reason = True, stop
        stream, asked, request = self._stream, self._asked, self._request
        self._drawn, self._stream = self.tokens, None  # and its states, which may be large
        if stream is None or asked is None or (stop == "cancelled" and not self._drawn):
            self._session.release(self)
            return
        self.decode_seconds = stream.decode_seconds
        tree = self._session._tree
        encoding = getattr(tree.model.tokenizer, "encoding", "utf-8")
        self._raw = request.begun + stream.data.decode(encoding, "replace")
        tokens = (*asked.tokens, *stream.tokens[: stream.kept])
        node = Node(
            parent=request.parent,
            base=asked.base.id,
            kept=asked.base.kept,
            tokens=tokens,
            spans=_with_reply(asked.spans, len(asked.tokens), len(tokens)),
            tail=stream.tail,
            messages=(request.message, ("assistant", self._raw)),
            stop=stop,
            sampling=_record(request, len(asked.tokens), stream.sampler),
            key=tree.key(asked.base, tokens),
            created=time.time(),
        )
        self.id = node.id
        self._session.take(self, node, stream.at_kept)


def _with_reply(spans: tuple[Span, ...], begin: int, end: int) -> tuple[Span, ...]:
    """The reply's span, which begins with what the prompt wrote of it."""
    if spans and spans[-1].role == "assistant":
        *spans_, last = spans
        return (*spans_, Span("assistant", last.begin, end))
    return (*spans, Span("assistant", begin, end))


def _record(request: Request, asked: int, sampler: Sampler) -> str:
    """`asked`: how many of the turn's tokens the model did not draw."""
    settings = {name: value for name, value in asdict(request.sampling).items() if name != "logit_bias"}
    bias = {str(token): repr(value) for token, value in request.sampling.logit_bias.items()}
    return json.dumps(
        {
            "settings": settings | {"logit_bias": bias},
            "asked": asked,
            "think": request.think,
            "before": dict(request.sampler),
            "after": sampler.state(),
            "limits": dict(request.limits),
        },
        sort_keys=True,
    )
