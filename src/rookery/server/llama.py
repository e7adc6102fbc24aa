"""Routes that clients of llama.cpp's server know: /completion, /embedding, and how many tokens a talk has.

Only what suits a model with a state is here: there are no slots, no context to be full, and no cache to be chosen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, Json
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from rookery.engine import Ended, Score, Wrote
from rookery.sampling import Sampling
from rookery.server import choices, embeddings, tokens
from rookery.server.answers import Event, Timings, gives
from rookery.server.errors import ApiError, ErrorBody
from rookery.server.keys import Caller, needs
from rookery.server.limits import compiler, limit
from rookery.server.service import Service, service
from rookery.server.shapes import Drawn, Limited, Name, Shape, refuse_unknown
from rookery.server.sse import EventStream, frame, while_connected
from rookery.server.texts import Prompts, prompts, several
from rookery.server.variants import Variant
from rookery.server.work import Ask, Work, reply_tokens

router = APIRouter()
STOPS = {"end": "eos", "stop": "word", "length": "limit"}
FOREVER = -1  # llama.cpp's way to ask for no limit

Chats = Annotated[Caller, Depends(needs("chat"))]
Reads = Annotated[Caller, Depends(needs("read"))]


class LlamaRequest(Drawn, Limited):
    """A prompt is a text, token ids, or ids and texts one after the other; or a list of prompts. What is left out is as
    for /v1/completions, n_predict as for a chat.
    """

    model: Name | None = None
    prompt: Prompts
    n_predict: int | None = Field(None, ge=FOREVER, lt=2**31)
    max_tokens: int | None = Field(None, ge=FOREVER, lt=2**31)
    n_probs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    return_tokens: bool | None = None


class Likely(BaseModel):
    id: int
    token: str
    logprob: float
    bytes: list[int]


class Probable(Likely):
    top_logprobs: list[Likely]


class LlamaPiece(BaseModel):
    index: int
    content: str
    tokens: list[int]
    stop: Literal[False]
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[Probable] = []


class LlamaCompletion(BaseModel):
    """`tokens_cached`: of the prompt, those that were not read anew. `tokens` is empty unless it is asked for."""

    index: int
    content: str
    tokens: list[int]
    stop: Literal[True]
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    prompt: str
    generation_settings: dict[str, Any]
    has_new_line: bool
    truncated: Literal[False]
    stop_type: Literal["eos", "word", "limit"]
    stopping_word: str
    timings: Timings
    completion_probabilities: list[Probable] = []


class LlamaEvent(Event):
    data: Json[LlamaPiece | LlamaCompletion | ErrorBody]


class EmbeddingRequest(Shape):
    model: Name | None = None
    content: Prompts


class LlamaEmbedding(BaseModel):
    """One vector, its length one, in a list of one."""

    index: int
    embedding: list[list[float]]


class CountRequest(tokens.Talk):
    model: Name | None = None


class Counted(BaseModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post("/completion", **gives(LlamaCompletion | list[LlamaCompletion], LlamaEvent))
async def completion(body: LlamaRequest, request: Request, caller: Chats) -> Response:
    """Go on with a prompt. `stream` is for one prompt; its events are pieces, and at the end all but the text."""
    served = service(request)
    variant = served.variant(body.model)
    refuse_unknown(body)
    made = await run_in_threadpool(_prepare, served, variant, body, caller.owner, request.state.request_id)
    if not body.stream:
        answers = await while_connected(request, _all(made))
        return JSONResponse(answers if several(body.prompt) else answers[0])
    if several(body.prompt):
        raise ApiError(400, "stream: wanted one prompt", code="unsupported", param="stream")
    return EventStream(made[0].frames(), served.settings.ping_seconds, served.settings.stuck_seconds)


@router.post("/embedding", **gives(list[LlamaEmbedding]))
async def embedding(body: EmbeddingRequest, request: Request, caller: Chats) -> Response:
    """A vector for each text, as /v1/embeddings gives it."""
    served = service(request)
    variant = served.variant(body.model)
    texts = await run_in_threadpool(prompts, served, body.content, "content")
    vectors = await while_connected(request, embeddings.vectors(served, variant, texts, caller.owner, "mean"))
    return JSONResponse([{"index": n, "embedding": [vector.tolist()]} for n, vector in enumerate(vectors)])


@router.post("/v1/chat/completions/input_tokens", **gives(Counted))
@router.post("/chat/completions/input_tokens", include_in_schema=False)
async def input_tokens(body: CountRequest, request: Request, caller: Reads) -> Counted:
    """How many tokens a talk has, up to where the reply begins."""
    served = service(request)
    served.variant(body.model)
    text = await run_in_threadpool(tokens.written, served, body, body.messages, body.tools)
    return Counted(input_tokens=len(await run_in_threadpool(served.model.tokenizer.encode, text)))


def _prepare(served: Service, variant: Variant, body: LlamaRequest, owner: str, request_id: str) -> list[_Completion]:
    """All that is slow before the engine has the word: in a worker thread."""
    model, held = served.model, limit(body)
    constraint = compiler(held, model.tokenizer, model.config.n_vocab) if held else None
    asked = body.max_tokens if body.n_predict is None else body.n_predict
    made = []
    for n, prompt in enumerate(prompts(served, body.prompt, "prompt")):
        ask = Ask(
            owner=owner,
            variant=variant,
            tokens=prompt,
            marks=(len(prompt),),
            max_tokens=reply_tokens(served, None if asked == FOREVER else asked, served.settings.default_tokens),
            sampling=body.sampling(Sampling(), model.tokenizer),
            seed=body.first_seed(),
            stop=body.stops(),
            constraint=constraint,
            scores=body.n_probs or None,
        )
        made.append(_Completion(served, body, Work(served, ask, "/completion", request_id), n))
    return made


async def _all(made: Sequence[_Completion]) -> list[dict[str, Any]]:
    """The answers. The engine has its own limit to what it does at once."""
    tasks = [asyncio.create_task(each.whole()) for each in made]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Completion:
    """One prompt gone on with."""

    def __init__(self, served: Service, body: LlamaRequest, work: Work, index: int) -> None:
        self._served, self._body, self._work, self._index = served, body, work, index
        self._tokenizer = served.model.tokenizer

    async def whole(self) -> dict[str, Any]:
        text, scores = "", []
        async with aclosing(self._work.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Wrote | Ended):
                        text += event.text
                    if isinstance(event, Wrote) and event.score is not None:
                        scores.append(event.score)
                    if isinstance(event, Ended):
                        return self._end(event, text, text) | self._probable(scores)
        raise AssertionError("work ends with its reply")

    async def frames(self) -> AsyncIterator[bytes]:
        """An event for each token, though some complete no text, and one for the end."""
        text = ""
        async with aclosing(self._work.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Wrote):
                        text += event.text
                        yield frame(self._piece(event) | self._probable([event.score] if event.score else []))
                    elif isinstance(event, Ended):
                        yield frame(self._end(event, text + event.text, event.text))

    def _piece(self, event: Wrote) -> dict[str, Any]:
        return {
            "index": self._index,
            "content": event.text,
            "tokens": [event.token],
            "stop": False,
            "tokens_predicted": self._work.written,
            "tokens_evaluated": len(self._work.ask.tokens),
        }

    def _end(self, event: Ended, text: str, content: str) -> dict[str, Any]:
        ask, draft = self._work.ask, event.draft
        reason = (draft.stop_reason if draft else None) or "length"
        written = draft.tokens if draft else []
        return {
            "index": self._index,
            "content": content,
            "tokens": written if self._body.return_tokens else [],
            "stop": True,
            "model": ask.variant.name,
            "tokens_predicted": len(written),
            "tokens_evaluated": len(ask.tokens),
            "tokens_cached": self._work.cached,
            "prompt": self._tokenizer.decode(ask.tokens),
            "generation_settings": self._settings(),
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": STOPS.get(reason, "limit"),
            "stopping_word": self._stopped_by(written) if reason == "stop" else "",
            "timings": self._work.timings(),
        }

    def _settings(self) -> dict[str, Any]:
        """What the text was written with, by llama.cpp's names."""
        ask, drawn = self._work.ask, self._work.ask.sampling
        bias = [
            {"token": token, "bias": None if math.isinf(value) else value} for token, value in drawn.logit_bias.items()
        ]
        return {
            "n_predict": ask.max_tokens,
            "seed": ask.seed,
            "temperature": drawn.temperature,
            "top_k": drawn.top_k,
            "top_p": drawn.top_p,
            "min_p": drawn.min_p,
            "typical_p": drawn.typical_p,
            "presence_penalty": drawn.presence,
            "frequency_penalty": drawn.frequency,
            "logit_bias": bias,
            "stop": list(ask.stop),
            "n_probs": ask.scores or 0,
            "stream": bool(self._body.stream),
        }

    def _stopped_by(self, written: Sequence[int]) -> str:
        """The stop text that stands first in what was written."""
        text = self._tokenizer.decode(written)
        return min(self._work.ask.stop, key=lambda stop: text.find(stop) % (len(text) + 1))

    def _probable(self, scores: Sequence[Score]) -> dict[str, Any]:
        if not self._body.n_probs:
            return {}
        found = choices.chat_logprobs(scores, self._tokenizer)["content"]
        for token, score in zip(found, scores, strict=True):
            token["id"] = score.token
            for likely, (id, _) in zip(token["top_logprobs"], score.top, strict=True):
                likely["id"] = id
        return {"completion_probabilities": found}
