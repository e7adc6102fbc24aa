"""What /v1/responses is asked, in OpenAI's shapes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rookery.server.errors import ApiError
from rookery.server.shapes import MAX_ITEMS, Drawn, Effort, Free, Name, Shape, Text, at_most

MAX_PARTS = 1000


class Part(Shape):
    """A part of a content."""

    type: Name
    text: Text | None = None


Content = Text | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]


class MessageItem(Shape):
    """What somebody said. A developer's is a system message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(Shape):
    """A function call of an earlier answer, sent back."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: Text


class CallOutputItem(Shape):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: Name | None = None
    output: Content


class ReasoningItem(Shape):
    """Thoughts of an earlier answer, sent back: the templates leave old thoughts out, so these are passed over."""

    type: Literal["reasoning"]


def _kind(item: Any) -> str | None:
    given = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return given if isinstance(given, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]
Items = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class TextFormat(Shape):
    """`schema` is that of json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema_: Free | None = Field(None, alias="schema")
    strict: bool | None = None
    description: Text | None = None


class TextConfig(Shape):
    format: TextFormat | None = None


class Reasoning(Shape):
    """`effort` chooses the think mode where the template has them."""

    effort: Effort | None = None


class FunctionTool(Shape):
    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: Free | None = None
    strict: bool | None = None


class ChosenFunction(Shape):
    type: Literal["function"]
    name: Name


class StreamOptions(Shape):
    """`include_state_delta`: every few tokens an event `rookery.state_delta`, how far each layer's state moved."""

    include_state_delta: bool | None = None


MetadataKey = Annotated[str, Field(max_length=64)]
Metadata = Annotated[dict[MetadataKey, Annotated[str, Field(max_length=512)]], Field(max_length=16), at_most(16)]


class ResponseRequest(Drawn):
    """/v1/responses. top_k, min_p, typical_p, presence_penalty, frequency_penalty, penalty, penalty_decay, logit_bias,
    seed, stop, regex, grammar, think and stream_options.include_state_delta are extensions.

    previous_response_id: a response ("resp_..."), which is gone on with where it stands, so that an older one gives a
        branch; or a stored state ("state_..."), which means the end of its talk.
    instructions: the system text. It was read at the beginning of a talk, so with previous_response_id it may only be
        repeated.
    think: a think mode of the template, where it has them: off, fake, on, short, medium, long.
    """

    model: Name | None = None
    input: Text | Items
    instructions: Text | None = None
    previous_response_id: Name | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    text: TextConfig | None = None
    regex: Text | None = None
    grammar: Text | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    think: Literal["off", "fake", "on", "short", "medium", "long"] | None = None
    metadata: Metadata | None = None
    include: Annotated[list[Name], Field(max_length=20, fail_fast=True)] | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Name | None = None


class ForkRequest(Shape):
    """`at`: a turn's id, or a response's; left out: the head. `name`: of the new head."""

    at: Name | None = None
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None


class RewindRequest(Shape):
    turns: int = Field(1, ge=0, lt=2**31)


def text_of(content: str | list[Part]) -> str:
    """The text of a content, its parts on lines of their own. 400 for a part that is no text."""
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in ("input_text", "output_text", "text", "refusal") or part.text is None:
            said = f"input: a part of type {part.type!r}; these models read text alone"
            raise ApiError(400, said, code="unsupported", param="input")
    return "\n".join(part.text or "" for part in content)
