"""What the routes of stored talks answer, for the description of the API (see answers.py)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Status = Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]
Anything = dict[str, Any]


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Anything]
    logprobs: list[Anything]


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(BaseModel):
    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Anything]
    content: list[ReasoningText]


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]


class ReadDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class WrittenDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """input_tokens: those of the talk so far included, which are cached."""

    input_tokens: int
    input_tokens_details: ReadDetails
    output_tokens: int
    output_tokens_details: WrittenDetails
    total_tokens: int


class ResponseFault(BaseModel):
    code: str
    message: str


class Incomplete(BaseModel):
    reason: str


class Place(BaseModel):
    """`state`: the id of the talk under /v1/states."""

    state: str


class StoredResponse(BaseModel):
    """What a response repeats of its request has the request's shape."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: Literal[False]
    error: ResponseFault | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str] | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: Anything | None
    service_tier: str
    store: bool
    temperature: float | None
    text: Anything
    tool_choice: str | Anything
    tools: list[Anything]
    top_logprobs: int
    top_p: float | None
    truncation: str
    usage: ResponseUsage | None
    user: str | None
    rookery: Place


class Page(BaseModel):
    object: Literal["list"]
    data: list[Anything]
    first_id: str
    last_id: str
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["response", "state"]
    deleted: Literal[True]


class ListedState(BaseModel):
    """A talk. Times are in seconds since 1970."""

    id: str
    object: Literal["state"]
    created_at: int
    used_at: int
    title: str
    instructions: str | None


class StatePage(Page):
    data: list[ListedState]  # type: ignore[assignment]


class TurnEntry(BaseModel):
    """A response in the tree of its talk; texts are cut. `text`: what was said. `tokens`: read and written."""

    id: str
    parent: str | None
    role: str
    said: str
    text: str
    reply: str
    tokens: int
    created: float
    stop_reason: str


class StateTree(ListedState):
    """`at`: the response that the head stands at. `heads`: all of them, by name."""

    at: str | None
    turns: list[TurnEntry]
    heads: dict[str, str | None]


class ImportedState(BaseModel):
    id: str
    object: Literal["state"]


class StateHead(ImportedState):
    at: str | None


class PieceNumbers(BaseModel):
    """In the state's units; delta, rel_delta and cosine against the state before the first token; the ranks are means
    over the heads. null: not defined.
    """

    norm: float | None
    rms: float | None
    max_abs: float | None
    delta: float | None
    rel_delta: float | None
    cosine: float | None
    effective_rank: float | None = None
    stable_rank: float | None = None


class StateSummary(BaseModel):
    id: str
    object: Literal["state.summary"]
    layers: list[dict[str, PieceNumbers]]
