"""What /v1/responses takes and gives, in OpenAI's shapes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_TEXT = 16 << 20  # characters of one text; what the model may read is limited in tokens, by the settings
MAX_ITEMS = 10_000
MAX_PARTS = 1_000

Id = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class TextPart(BaseModel):
    type: Literal["input_text", "output_text", "text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]


class MessageItem(BaseModel):
    """What somebody said; `developer` is another word for system."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(BaseModel):
    """A function call that the model asked for earlier."""

    type: Literal["function_call"]
    call_id: Id
    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: Text


class CallOutputItem(BaseModel):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: Id
    output: Content


class ReasoningItem(BaseModel):
    """Thoughts of an earlier answer, sent back; they are left out of the history, as the templates do."""

    type: Literal["reasoning"]


def _kind(item: Any) -> Any:
    given = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return given if isinstance(given, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class TextFormat(BaseModel):
    """`schema` is that of json_schema."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] | None = None
    strict: bool | None = None
    description: Annotated[str, Field(max_length=10_000)] | None = None


class TextConfig(BaseModel):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(BaseModel):
    """`effort` chooses the think mode where the template has them."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class FunctionTool(BaseModel):
    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenTool(BaseModel):
    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=128)]


class StreamOptions(BaseModel):
    """`include_state_delta`: events `rookery.state_delta` with how far each layer's state moved."""

    include_state_delta: bool = False
    include_obfuscation: bool | None = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
