"""What the stateless routes answer, to describe the API. Routes make plain dicts; nothing here runs for them.

A field that is described without a default is always there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from rookery.server.errors import ERRORS

JSON_OR_EVENTS: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {
        "description": "JSON, or events with `stream`",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
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
    """As llama.cpp's: tokens, milliseconds, and tokens a second. predicted_ms begins with the first token written."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
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
