"""/v1/chat/completions: a talk that its client keeps and sends whole each time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from rookery.engine import Ended, Scored, Wrote
from rookery.server import choices, tools
from rookery.server.answers import ChatCompletion, ChatEvent, gives
from rookery.server.errors import ApiError
from rookery.server.keys import Caller, needs
from rookery.server.limits import Limit, compiler, limit
from rookery.server.parts import Part, Parts
from rookery.server.prompt import Prompt, options, prompt, think_mode
from rookery.server.service import Service, service
from rookery.server.shapes import ChatRequest, refuse_unknown
from rookery.server.sse import DONE, EventStream, frame, while_connected
from rookery.server.variants import Variant
from rookery.server.work import Ask, Work, check_scores, reply_tokens, system_fingerprint

router = APIRouter()
ROUTE = "/v1/chat/completions"


@router.post(ROUTE, **gives(ChatCompletion, ChatEvent))
@router.post("/chat/completions", include_in_schema=False)
async def chat_completions(
    body: ChatRequest, request: Request, caller: Annotated[Caller, Depends(needs("chat"))]
) -> Response:
    """Reply to the last message. With `stream` the answer is server-sent events, ended by `data: [DONE]`."""
    served = service(request)
    variant = served.variant(body.model)
    refuse_unknown(body)
    chat = await run_in_threadpool(_prepare, served, variant, body, caller.owner, request.state.request_id)
    if body.stream:
        return EventStream(chat.frames(), served.settings.ping_seconds, served.settings.stuck_seconds)
    return JSONResponse(await while_connected(request, chat.whole()))


def _prepare(served: Service, variant: Variant, body: ChatRequest, owner: str, request_id: str) -> _Chat:
    """All that is slow before the engine has the word: in a worker thread."""
    tokenizer, template = served.model.tokenizer, served.template
    offer = tools.offer(body.tools, body.tool_choice, body.parallel_tool_calls)
    asked = limit(body)
    if offer and asked:
        raise ApiError(400, "tools and a form for the reply exclude each other; leave one out", code="unsupported")
    if offer or tools.needed(body.messages):
        template = tools.with_tools(template)
    made = options(template, think_mode(body), offer, asked is not None)
    read = prompt(template, tokenizer, tools.talk(body.messages), served.settings.max_prompt_tokens, **made)
    if asked:
        asked = replace(asked, blank=read.blank and not read.begun)
    held = Limit("lark", offer.lark()) if offer else asked
    ask = Ask(
        owner=owner,
        variant=variant,
        tokens=read.tokens,
        marks=read.marks,
        max_tokens=reply_tokens(served, body.max_completion_tokens or body.max_tokens, served.settings.default_tokens),
        sampling=body.sampling(served.left_out(held is not None), tokenizer),
        seed=body.first_seed(),
        n=body.n or 1,
        stop=tuple(dict.fromkeys([*template.stops, *body.stops()])),
        constraint=compiler(held, tokenizer, served.model.config.n_vocab) if held else None,
        scores=(body.top_logprobs or 0) if body.logprobs else None,
    )
    check_scores(0 if body.stream else ask.n * ask.max_tokens, ask.scores)
    return _Chat(served, body, ask, read, offer is not None, request_id)


class _Chat:
    """One request's answer."""

    def __init__(
        self, served: Service, body: ChatRequest, ask: Ask, read: Prompt, calls: bool, request_id: str
    ) -> None:
        self._served, self._body = served, body
        self._prompt = read
        self._work = Work(served, ask, ROUTE, request_id)
        tokenizer = served.model.tokenizer
        self._choices = [
            choices.Choice(n, tokenizer, Parts(read.begun, blank=read.blank, calls=calls)) for n in range(ask.n)
        ]
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": ask.variant.name,
            "system_fingerprint": system_fingerprint(ask.variant),
        }
        self._ids = bool(body.return_token_ids or body.return_tokens)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        parts: list[list[Part]] = [[] for _ in self._choices]
        async with aclosing(self._work.batches()) as batches:
            async for batch in batches:
                for choice, found in self._parts(batch):
                    parts[choice.index] += found
        answered = [self._answered(choice, found) for choice, found in zip(self._choices, parts, strict=True)]
        extra = {"prompt_token_ids": self._prompt.tokens} if self._ids else {}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": answered,
            "usage": self._usage(),
            "timings": self._work.timings(),
            **extra,
        }

    def _answered(self, choice: choices.Choice, parts: list[Part]) -> dict[str, Any]:
        found = {"index": choice.index, "message": choices.message(parts), "finish_reason": choice.reason}
        return found | {"logprobs": self._logprobs(choice)} | ({"token_ids": choice.tokens} if self._ids else {})

    async def frames(self) -> AsyncIterator[bytes]:
        """The answer as events: whose turn it is, the pieces, why it ended, what it cost."""
        options = self._body.stream_options
        counted = options is not None and bool(options.include_usage)
        begun, left = False, len(self._choices)
        async with aclosing(self._work.batches()) as batches:
            async for batch in batches:
                if not begun:
                    begun = True
                    for choice in self._choices:
                        yield self._chunk(choice, {"role": "assistant", "content": ""}, counted)
                for choice, found in self._parts(batch):
                    if piece := choices.delta(found):
                        yield self._chunk(choice, piece, counted, self._logprobs(choice))
                    if choice.reason:
                        left -= 1
                        rest = self._logprobs(choice) if choice.unsaid else None
                        yield self._chunk(choice, {}, counted, rest, last=not left)
        if counted:
            yield frame(self._event() | {"choices": [], "usage": self._usage()})
        yield DONE

    def _chunk(
        self,
        choice: choices.Choice,
        piece: dict[str, Any],
        counted: bool,
        logprobs: dict[str, Any] | None = None,
        last: bool = False,
    ) -> bytes:
        part = {"index": choice.index, "delta": piece, "logprobs": logprobs, "finish_reason": None}
        if not piece:
            part |= {"finish_reason": choice.reason} | ({"token_ids": choice.tokens} if self._ids else {})
        extra: dict[str, Any] = {"usage": None} if counted else {}
        return frame(self._event() | {"choices": [part]} | extra | ({"timings": self._work.timings()} if last else {}))

    def _event(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _parts(self, batch: Sequence[Scored | Wrote | Ended]) -> list[tuple[choices.Choice, list[Part]]]:
        """What came of each choice."""
        found: dict[int, list[Part]] = {}
        for event in batch:
            if isinstance(event, Wrote):
                found.setdefault(event.index, []).extend(self._choices[event.index].wrote(event))
            elif isinstance(event, Ended):
                found.setdefault(event.index, []).extend(self._choices[event.index].ended(event))
        return [(self._choices[index], parts) for index, parts in found.items()]

    def _logprobs(self, choice: choices.Choice) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return choices.chat_logprobs(choice.scores(), self._served.model.tokenizer)

    def _usage(self) -> dict[str, Any]:
        return choices.usage([self._work], self._work.written)
