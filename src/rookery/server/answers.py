"""What the stateless routes answer, to describe the API. Routes make plain dicts; nothing here runs for them.

A field that is described without a default is always there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Json
from pydantic.json_schema import models_json_schema

from rookery.server.errors import ERRORS, ErrorBody

Logprob = float


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    """cached_tokens: of the prompt, those that were not read anew."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timings(BaseModel):
    """As llama.cpp's: tokens, milliseconds, and rates. predicted_ms begins with the first token written, so the rate is
    that of the others.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class TokenLogprob(BaseModel):
    token: str
    logprob: Logprob
    bytes: list[int]


class ScoredToken(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Of the model's own distribution, before penalties and cuts."""

    content: list[ScoredToken]
    refusal: None


class CalledFunction(BaseModel):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class MadeCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[MadeCall] = []


class ChatChoice(BaseModel):
    index: int
    message: Message
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ChatLogprobs | None
    token_ids: list[int] = []


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings
    prompt_token_ids: list[int] = []


class CompletionLogprobs(BaseModel):
    """A column each; the first token of all has nothing before it that could make it likely."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings | None = None


class DeltaFunction(BaseModel):
    name: str = ""
    arguments: str


class CallDelta(BaseModel):
    """`id`, `type` and the name come first, the arguments in pieces."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: DeltaFunction


class Delta(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[CallDelta] = []


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    logprobs: ChatLogprobs | None
    token_ids: list[int] = []


class ChatChunk(BaseModel):
    """The next piece of a choice; the last of all has no choices but the usage, if that was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class CompletionChunkChoice(CompletionChoice):
    finish_reason: Literal["stop", "length"] | None  # type: ignore[assignment]


class CompletionChunk(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class Event(BaseModel):
    """A server-sent event; one that does not say which is a message."""

    event: Literal["message"] = "message"


class ChatEvent(Event):
    data: Literal["[DONE]"] | Json[ChatChunk | ErrorBody]


class CompletionEvent(Event):
    data: Literal["[DONE]"] | Json[CompletionChunk | ErrorBody]


class ResponseEvent(Event):
    """`event` is the data's type, and the data are as OpenAI's of that type."""

    event: str  # type: ignore[assignment]
    data: Json[dict[str, Any]]


def gives(answer: Any, event: type[Event] | None = None) -> dict[str, Any]:
    """For the decorator of a route that answers in this JSON or, with `stream`, in such events."""
    given: dict[str, Any] = {"model": answer}
    if event is not None:
        reference = {"$ref": f"{COMPONENTS}{event.__name__}"}
        given["description"] = "JSON, or events with `stream`"
        given["content"] = {"text/event-stream": {"itemSchema": reference}}
    return {"responses": ERRORS | {200: given}, "response_model": None}


COMPONENTS = "#/components/schemas/"
JSON_IN: Literal["validation"] = "validation"  # so that JSON in a text is described as such


def event_shapes() -> dict[str, Any]:
    """Of all events, for the document: FastAPI knows nothing of streams."""
    found = [(event, JSON_IN) for event in Event.__subclasses__()]
    shapes: dict[str, Any] = models_json_schema(found, ref_template=COMPONENTS + "{model}")[1]["$defs"]
    return shapes
