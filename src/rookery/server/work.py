"""One stateless prompt at the engine: begun from what is known of it, remembered for the next, counted and recorded."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from rookery import engine
from rookery.engine import Cancelled, Ended, Event, Failed, Marked, Read, Scored, Start, Wrote
from rookery.sampling import Sampling
from rookery.server import feed
from rookery.server.errors import ApiError, gone
from rookery.server.service import Service
from rookery.server.variants import Variant
from rookery.state import State
from rookery.stream import Constraint, Draft

MOST_SCORES = 1 << 20  # about 100 bytes each
CACHED_FROM = 16  # tokens of a prompt for which a state is worth its memory


@dataclass(frozen=True, kw_only=True)
class Ask:
    """`tokens` to read by `variant`, and `n` replies to write after them, each of `max_tokens` at most; their seeds are
    `seed`, `seed` + 1, ... `marks`: after how many tokens a state is worth keeping. scores, prompt_scores: see
    engine.Sequence.
    """

    owner: str
    variant: Variant
    tokens: Sequence[int]
    max_tokens: int
    sampling: Sampling
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    marks: tuple[int, ...] = ()
    scores: int | None = None
    prompt_scores: int | None = None


class Work:
    """Iterate `batches` once."""

    def __init__(self, service: Service, ask: Ask, route: str, request_id: str) -> None:
        self.ask = ask
        self.cached = self.written = 0  # tokens of the prompt that were known; tokens of all replies
        self._service, self._route, self._request_id = service, route, request_id
        self._begin, self._first, self._last = time.perf_counter(), 0.0, 0.0  # of the first and last token written
        self._before: State | None = None
        self._clock = service.metrics.sequence()

    async def batches(self) -> AsyncGenerator[list[Scored | Wrote | Ended]]:
        """What happens, until every reply has ended: all that is there by now, at least one. Raises Busy, what the
        engine failed with, and ApiError 503 where the server ends before.
        """
        async with feed.open(self._service, self._sequence) as events:
            async for batch in events.batches():
                told: list[Scored | Wrote | Ended] = []
                for event in batch:
                    self._note(event)
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Ended) and event.draft and event.draft.stop_reason == "cancelled":
                        raise _slow() if events.slow else gone()
                    if isinstance(event, Scored | Wrote | Ended):
                        told.append(event)
                if told:
                    yield told

    def timings(self) -> dict[str, float]:
        """Counts, milliseconds and rates, as llama.cpp names them. The first token written is the prompt's last logits,
        so the time of writing is that of the others.
        """
        read, others = len(self.ask.tokens) - self.cached, max(0, self.written - 1)
        before, after = 1000 * max(0.0, self._first - self._begin), 1000 * (self._last - self._first)
        return {
            "cache_n": self.cached,
            "prompt_n": read,
            "prompt_ms": before,
            "prompt_per_token_ms": before / read if read else 0.0,
            "prompt_per_second": 1000 * read / before if before else 0.0,
            "predicted_n": self.written,
            "predicted_ms": after,
            "predicted_per_token_ms": after / others if others else 0.0,
            "predicted_per_second": 1000 * others / after if after else 0.0,
        }

    def _sequence(self, listen: Callable[[Event], None]) -> engine.Sequence:
        ask = self.ask

        def heard(event: Event) -> None:
            self._count(event)
            listen(event)

        return engine.Sequence(
            self._start,
            heard,
            owner=ask.owner,
            places=ask.n if ask.max_tokens else 1,
            scores=ask.scores,
            prompt_scores=ask.prompt_scores,
            model=ask.variant.model,
        )

    def _start(self) -> Start:
        """In a worker thread of the engine."""
        ask, by = self.ask, self.ask.variant
        self._begin = time.perf_counter()
        whole = ask.prompt_scores is not None
        known, logits, state = (0, None, by.state()) if whole else by.prefixes.find(ask.owner, ask.tokens)
        self.cached = known
        if self._service.records.on:
            self._before = state.copy()
        return Start(
            state=state,
            prompt=ask.tokens[known:],
            logits=logits,
            marks=() if whole else tuple(mark - known for mark in ask.marks if mark - known >= CACHED_FROM),
            drafts=tuple(self._draft(n) for n in range(ask.n)) if ask.max_tokens else (),
            keep=not whole,
        )

    def _draft(self, n: int) -> Draft:
        ask, model = self.ask, self.ask.variant.model
        seed = None if ask.seed is None else (ask.seed + n) % (1 << 64)
        constraint = ask.constraint.copy() if ask.constraint else None  # those who wait hold none of their own
        sampler = model.sampler(ask.sampling, seed)
        return Draft(model.tokenizer, ask.max_tokens, sampler, stop=ask.stop, constraint=constraint)

    def _count(self, event: Event) -> None:
        """In the engine's thread, when it happens; also where nobody waits for it any more."""
        match event:
            case Read():
                self._clock.read()
            case Wrote():
                self._clock.wrote()
                self._last = time.perf_counter()
                self._first = self._first or self._last
            case Ended():
                self._clock.ended(_reason(event))
                self._record(event, _reason(event))
            case Failed():
                self._clock.ended("cancelled" if isinstance(event.error, Cancelled) else "failed")

    def _note(self, event: Event) -> None:
        """Keep what may be asked again."""
        match event:
            case Wrote():
                self.written += 1
            case Marked():
                self._keep(self.ask.tokens[: self.cached + event.at], event.logits, event.state)
            case Ended():
                self._ended(event)

    def _ended(self, event: Ended) -> None:
        draft = event.draft
        if event.index == 0:
            self._service.metrics.prompt(len(self.ask.tokens), self.cached)
        if draft is not None and event.point is not None and self.ask.prompt_scores is None:
            self._keep([*self.ask.tokens, *draft.tokens[: draft.kept]], *event.point)

    def _keep(self, tokens: Sequence[int], logits: Any, state: State) -> None:
        if len(tokens) >= CACHED_FROM:
            self.ask.variant.prefixes.put(self.ask.owner, tokens, logits, state)

    def _record(self, event: Ended, reason: str) -> None:
        records, model = self._service.records, self.ask.variant.model
        if not records.on:
            return
        settings = self.ask.sampling.plain()
        records.write(
            request=self._request_id,
            route=self._route,
            owner=self.ask.owner,
            model=model.weights.fingerprint,
            sampling=settings | {"seed": event.draft.sampler.seed if event.draft else None},
            entered={"tokens": [int(token) for token in self.ask.tokens[self.cached :]], "cached": self.cached},
            changed={"before": None, "after": None, "delta": self._delta(event)},
            left={"tokens": event.draft.tokens if event.draft else [], "stop_reason": reason},
        )

    def _delta(self, event: Ended) -> list[float] | None:
        """How far each layer's state moved: L2 over sqrt(n)."""
        if self._before is None or event.point is None:
            return None
        moved: list[float] = event.point[1].delta_by_layer(self._before).tolist()
        return moved


def reply_tokens(served: Service, asked: int | None, default: int) -> int:
    """How long a reply may be. 400 for more than the server allows."""
    most = served.settings.max_tokens
    if asked is not None and asked > most:
        raise ApiError(400, f"max_tokens: {asked} are asked for; this server writes at most {most}", param="max_tokens")
    return min(default, most) if asked is None else asked


def check_scores(tokens: int, top: int | None) -> None:
    """400 for more log-probabilities in one answer than memory should hold; `tokens` may have some, `top` each."""
    if top is not None and tokens * (1 + top) > MOST_SCORES:
        raise ApiError(
            400,
            f"logprobs: {tokens} tokens with {top} others each are too many for one answer, which has room for "
            f"{MOST_SCORES}; ask for fewer, or stream what is written",
            param="logprobs",
        )


def system_fingerprint(of: Variant) -> str:
    """What decides the answers besides the request: the weights, how they are computed, and what texts begin with."""
    said = f"{of.model.weights.fingerprint} {of.model.arithmetic}" + (f" {of.digest}" if of.digest else "")
    return f"fp_{sha256(said.encode()).hexdigest()[:12]}"


def _slow() -> ApiError:
    return ApiError(400, "this stream was read far more slowly than written, and is ended", code="slow_reader")


def _reason(event: Ended) -> str:
    return (event.draft.stop_reason if event.draft else None) or "length"
