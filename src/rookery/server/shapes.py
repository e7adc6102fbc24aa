"""What the generating routes are asked: every number has a range, every text and list a length.

Fields that no route knows are let through, for clients send many; those that would change the answer are refused by
`refuse_unknown`, never passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rookery.errors import InputError
from rookery.sampling import Sampling
from rookery.server.errors import ApiError
from rookery.tokenizer import Tokenizer

MAX_TEXT = 1 << 25  # characters; the body as a whole has its own limit
MAX_ITEMS = 10_000  # messages of a talk
MAX_TOKENS = 1 << 24
MAX_BIAS = 1024


def at_most(count: int) -> BeforeValidator:
    """For an object: its length is seen to before what is in it, as `fail_fast` does for a list. Without them a body of
    some MB, wrong in every place, becomes complaints of some GB.
    """

    def check(value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) > count:
            raise ValueError(f"{len(value)} names; at most {count} may be given")
        return value

    return BeforeValidator(check)


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[list[Stop], Field(max_length=16, fail_fast=True)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(max_length=MAX_TOKENS, fail_fast=True)]
Free = Annotated[dict[str, Any], Field(max_length=1000)]  # a JSON object that goes on as it is
BiasKey = Annotated[str, Field(max_length=200)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Pair = Annotated[tuple[Token | BiasKey, Bias | Literal[False]], Field(strict=False)]  # in JSON it is a list

# What other servers know and this one does not: the values that ask for nothing.
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "audio": (None,), "function_call": (None, "none"), "functions": (None, []), "web_search_options": (None,),
    "modalities": (None, ["text"]), "repeat_penalty": (None, 1), "repetition_penalty": (None, 1),
    "length_penalty": (None, 1), "mirostat": (None, 0), "xtc_probability": (None, 0), "dry_multiplier": (None, 0),
    "tfs_z": (None, 1), "dynatemp_range": (None, 0), "ignore_eos": (None, False), "min_tokens": (None, 0),
    "use_beam_search": (None, False), "bad_words": (None, []), "stop_token_ids": (None, []), "guided_json": (None,),
    "guided_regex": (None,), "guided_grammar": (None,), "guided_choice": (None,), "structured_outputs": (None,),
    "echo": (None, False), "continue_final_message": (None, False), "add_generation_prompt": (None, True),
    "chat_template": (None,), "lora": (None, []), "prompt_logprobs": (None,), "n_predict": (None,),
    "post_sampling_probs": (None, False), "response_fields": (None, []), "n_indent": (None, 0),
}  # fmt: skip


class Shape(BaseModel):
    """Numbers are numbers and texts are texts: nothing is guessed from another type."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class Drawn(Shape):
    """How tokens are drawn. What is left out comes from the model's profile; see rookery.sampling for the order.

    presence_penalty, frequency_penalty: by the rule `penalty`; where that is left out, by OpenAI's, without any decay.
    seed: -1 draws one. logit_bias: token ids, or texts whose every token is meant; -100 bans a token, as does false in
        llama.cpp's list of pairs.
    """

    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    penalty: Literal["rwkv", "rapid", "openai"] | None = None
    penalty_decay: float | None = Field(None, ge=0, le=1)
    logit_bias: (
        Annotated[dict[BiasKey, Bias], Field(max_length=MAX_BIAS), at_most(MAX_BIAS)]
        | Annotated[list[Pair], Field(max_length=MAX_BIAS, fail_fast=True)]
        | None
    ) = None
    seed: int | None = Field(None, ge=-1, lt=2**63)
    stop: Stop | Stops | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def first_seed(self) -> int | None:
        return None if self.seed == -1 else self.seed

    def sampling(self, base: Sampling, tokenizer: Tokenizer) -> Sampling:
        """`base` with what was asked. Raises InputError."""
        asked = {
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p,
            "typical_p": self.typical_p, "presence": self.presence_penalty, "frequency": self.frequency_penalty,
            "penalty": self.penalty, "decay": self.penalty_decay,
        }  # fmt: skip
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if self.penalty is None and {"presence", "frequency"} & given.keys():
            given = {"presence": 0.0, "frequency": 0.0, "penalty": "openai"} | given
        if self.logit_bias:
            given["logit_bias"] = _bias(self.logit_bias, tokenizer)
        return replace(base, **given)


def _bias(asked: Mapping[str, float] | Sequence[Pair], tokenizer: Tokenizer) -> dict[int, float]:
    found: dict[int, float] = {}
    for name, value in asked.items() if isinstance(asked, Mapping) else asked:
        key = str(name)
        number = key.isascii() and key.isdecimal()
        for token in [int(key)] if number else tokenizer.encode(key):
            if token >= tokenizer.vocab_size:
                raise InputError(f"logit_bias: {key} is no token; the vocabulary has {tokenizer.vocab_size}")
            found[token] = -math.inf if value is False or value == -100 else value
    return found


class Piece(Shape):
    """A part of a message's content."""

    type: Name
    text: Text | None = None


class Called(Shape):
    name: Name
    arguments: Text = ""


class ToolCall(Shape):
    id: Name = ""
    type: Literal["function"] = "function"
    function: Called


class Said(Shape):
    """One message. A developer's is a system message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Piece], Field(max_length=1000, fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Name | None = None


class Function(Shape):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: Free | None = None
    strict: bool | None = None


class Tool(Shape):
    type: Literal["function"]
    function: Function


class ChosenName(Shape):
    name: Name


class Chosen(Shape):
    type: Literal["function"]
    function: ChosenName


Tools = Annotated[list[Tool], Field(max_length=128, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | Chosen


class NamedSchema(Shape):
    name: Name | None = None
    schema_: Free | None = Field(None, alias="schema")
    strict: bool | None = None


class Format(Shape):
    """`schema` beside json_object is llama.cpp's way to give one."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Free | None = Field(None, alias="schema")


class Limited(Shape):
    """What the reply must be; at most one of these."""

    response_format: Format | None = None
    json_schema: Free | None = None
    regex: Text | None = None
    grammar: Text | None = None


class StreamOptions(Shape):
    include_usage: bool | None = None


class TemplateOptions(Shape):
    enable_thinking: bool | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Thinking(Shape):
    """Whether the model thinks before it answers, where its template knows how."""

    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None


class ChatRequest(Drawn, Limited, Thinking):
    """/v1/chat/completions. penalty, penalty_decay, top_k, min_p, typical_p, regex, grammar, json_schema,
    chat_template_kwargs and return_token_ids are extensions.
    """

    model: Name | None = None
    messages: list[Said] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    return_token_ids: bool | None = None
    return_tokens: bool | None = None
    user: Name | None = None
    metadata: Free | None = None


class CompletionRequest(Drawn, Limited):
    """/v1/completions. A prompt is a text, token ids, or a list of either."""

    model: Name | None = None
    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(max_length=1024, fail_fast=True)]
        | Annotated[list[Tokens], Field(max_length=1024, fail_fast=True)]
    )
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    n: int | None = Field(None, ge=1, le=128)
    best_of: int | None = Field(None, ge=1, le=128)
    echo: bool | None = None
    suffix: Text | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens: bool | None = None
    user: Name | None = None


def refuse_unknown(request: BaseModel) -> None:
    """400 for a field that this server does not know and that would change the answer."""
    for name, value in (request.model_extra or {}).items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise ApiError(400, f"{name}: this server cannot do that; leave it out", code="unsupported", param=name)


def content(message: Said) -> str:
    """The text of a message, its parts on lines of their own. 400 for a part that is no text."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(texts(message.content, "messages"))


def texts(pieces: Sequence[Piece], param: str) -> list[str]:
    """Each piece's text. 400 for one that is no text."""
    for piece in pieces:
        if piece.type not in ("text", "input_text", "output_text") or piece.text is None:
            said = f"{param}: a part of type {piece.type!r}; these models read text alone"
            raise ApiError(400, said, code="unsupported", param=param)
    return [piece.text or "" for piece in pieces]
