"""/v1/completions: texts gone on with, and how likely they were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from rookery.engine import Ended, Score, Scored, Wrote
from rookery.sampling import Sampling
from rookery.server import choices
from rookery.server.answers import Completion, CompletionEvent, gives
from rookery.server.errors import ApiError
from rookery.server.keys import Caller, needs
from rookery.server.limits import compiler, limit
from rookery.server.parts import Plain, Words
from rookery.server.service import Service, service
from rookery.server.shapes import CompletionRequest, refuse_unknown
from rookery.server.sse import DONE, EventStream, frame, while_connected
from rookery.server.texts import prompts
from rookery.server.variants import Variant
from rookery.server.work import Ask, Work, check_scores, reply_tokens, system_fingerprint

router = APIRouter()
ROUTE = "/v1/completions"
DEFAULT_TOKENS = 16  # OpenAI's

Batch = list[Scored | Wrote | Ended]


@router.post(ROUTE, **gives(Completion, CompletionEvent))
@router.post("/completions", include_in_schema=False)
async def completions(
    body: CompletionRequest, request: Request, caller: Annotated[Caller, Depends(needs("chat"))]
) -> Response:
    """Go on with each prompt. With `echo` the prompt is part of the text, and of the log-probabilities."""
    served = service(request)
    variant = served.variant(body.model)
    refuse_unknown(body)
    made = await run_in_threadpool(_prepare, served, variant, body, caller.owner, request.state.request_id)
    if body.stream:
        return EventStream(made.frames(), served.settings.ping_seconds, served.settings.stuck_seconds)
    answer = await while_connected(request, made.whole())
    if request.url.path != ROUTE:  # llama.cpp's clients look for its own field there
        answer["content"] = answer["choices"][0]["text"]
    return JSONResponse(answer)


def _prepare(served: Service, variant: Variant, body: CompletionRequest, owner: str, request_id: str) -> _Completions:
    """All that is slow before the engine has the word: in a worker thread."""
    if body.suffix:
        raise ApiError(400, "suffix: this server cannot fill in; leave it out", code="unsupported", param="suffix")
    if body.best_of not in (None, body.n or 1):
        raise ApiError(
            400, "best_of: only as many as n; choose among them yourself", code="unsupported", param="best_of"
        )
    model = served.model
    held, sampling = limit(body), body.sampling(Sampling(), model.tokenizer)
    constraint = compiler(held, model.tokenizer, model.config.n_vocab) if held else None
    asks = [
        Ask(
            owner=owner,
            variant=variant,
            tokens=tokens,
            marks=(len(tokens),),
            max_tokens=reply_tokens(served, body.max_tokens, DEFAULT_TOKENS),
            sampling=sampling,
            seed=body.first_seed(),
            n=body.n or 1,
            stop=body.stops(),
            constraint=constraint,
            scores=body.logprobs,
            prompt_scores=body.logprobs if body.echo else None,
        )
        for tokens in prompts(served, body.prompt, "prompt")
    ]
    read = sum(len(ask.tokens) for ask in asks) if body.echo else 0
    check_scores(read + (0 if body.stream else sum(ask.n * ask.max_tokens for ask in asks)), body.logprobs)
    return _Completions(served, body, [Work(served, ask, ROUTE, request_id) for ask in asks])


class _Completions:
    """One request's answer: of every prompt all its texts, in this order."""

    def __init__(self, served: Service, body: CompletionRequest, works: list[Work]) -> None:
        self._body, self._works, self._tokenizer = body, works, served.model.tokenizer
        self._at_once = served.settings.max_batch
        self._n = body.n or 1
        count = self._n * len(works)
        self._choices = [choices.Choice(n, self._tokenizer, Plain()) for n in range(count)]
        self._columns = [choices.Columns(self._tokenizer) for _ in range(count)]
        self._prompt_scores: dict[int, list[Score | None]] = {}  # by work
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": works[0].ask.variant.name,
            "system_fingerprint": system_fingerprint(works[0].ask.variant),
        }
        self._ids = bool(body.return_token_ids or body.return_tokens)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        texts = [""] * len(self._choices)
        async with aclosing(_side_by_side(self._works, self._at_once)) as batches:
            async for place, batch in batches:
                for choice, text in self._texts(place, batch):
                    texts[choice.index] += text
        answered = []
        for choice, text in zip(self._choices, texts, strict=True):
            before, logprobs = self._beginning(choice)
            answered.append(self._piece(choice, before + text, _joined(logprobs, self._logprobs(choice))))
        extra = {"timings": self._works[0].timings()} if len(self._works) == 1 else {}
        return {**self._head, "choices": answered, "usage": self._usage(), **extra}

    async def frames(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        options = self._body.stream_options
        counted = options is not None and bool(options.include_usage)
        extra: dict[str, Any] = {"usage": None} if counted else {}
        begun: set[int] = set()
        async with aclosing(_side_by_side(self._works, self._at_once)) as batches:
            async for place, batch in batches:
                for choice, text in self._texts(place, batch):
                    before, logprobs = self._beginning(choice) if choice.index not in begun else ("", None)
                    begun.add(choice.index)
                    if text or choice.reason:
                        logprobs = _joined(logprobs, self._logprobs(choice))
                    if before or text or choice.reason:
                        yield frame({**self._head, "choices": [self._piece(choice, before + text, logprobs)], **extra})
        if counted:
            yield frame({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _texts(self, place: int, batch: Batch) -> list[tuple[choices.Choice, str]]:
        """What came of each text of work `place`."""
        found: dict[int, str] = {}
        for event in batch:
            if isinstance(event, Scored):
                self._prompt_scores[place] = event.scores
                continue
            index = place * self._n + event.index
            choice = self._choices[index]
            parts = choice.wrote(event) if isinstance(event, Wrote) else choice.ended(event)
            found[index] = found.get(index, "") + "".join(part.text for part in parts if isinstance(part, Words))
            if isinstance(event, Ended) and event.draft is None:  # nothing was to be written
                for each in self._choices[index : index + self._n]:
                    each.reason = "length"
                    found.setdefault(each.index, "")
        return [(self._choices[index], text) for index, text in found.items()]

    def _beginning(self, choice: choices.Choice) -> tuple[str, dict[str, Any] | None]:
        """What stands before the reply, if the prompt is to be seen."""
        place = choice.index // self._n
        tokens, columns = self._works[place].ask.tokens, self._columns[choice.index]
        if not self._body.echo:
            columns.skip(tokens)
            return "", None
        text = self._tokenizer.decode(tokens)
        scores = self._prompt_scores.get(place)
        return text, columns.add(zip(tokens, scores, strict=True)) if scores is not None else None

    def _piece(self, choice: choices.Choice, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        found = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason or None}
        if self._ids and choice.reason:
            found["token_ids"] = choice.tokens
            found["prompt_token_ids"] = self._works[choice.index // self._n].ask.tokens
        return found

    def _logprobs(self, choice: choices.Choice) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        return self._columns[choice.index].add((score.token, score) for score in choice.scores())

    def _usage(self) -> dict[str, Any]:
        return choices.usage(self._works, sum(work.written for work in self._works))


def _joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}


async def _side_by_side(works: Sequence[Work], at_once: int) -> AsyncGenerator[tuple[int, Batch]]:
    """The batches of all works, of not too many at once, as they come, with the number of the work."""
    queue: asyncio.Queue[tuple[int, Batch] | Exception] = asyncio.Queue(at_once)
    gate = asyncio.Semaphore(at_once)

    async def run(place: int, work: Work) -> None:
        async with gate:
            try:
                async with aclosing(work.batches()) as batches:
                    async for batch in batches:
                        await queue.put((place, batch))
            except Exception as error:
                await queue.put(error)

    tasks = [asyncio.create_task(run(place, work)) for place, work in enumerate(works)]
    left = sum(work.ask.n if work.ask.max_tokens else 1 for work in works)
    try:
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            left -= sum(isinstance(event, Ended) for event in found[1])
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
