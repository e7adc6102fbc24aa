"""Text to tokens and back, in the shapes of llama.cpp and of vLLM; a talk as the text that the model reads.

RWKV puts no token before a text, so add_special and add_special_tokens change nothing. The end of a text has no text of
its own: where its name (`end_name`) is all that /tokenize is given as `prompt`, that token is meant, which is how
lm-eval finds its id.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from rookery import chat
from rookery.chat.jinja import Jinja
from rookery.server import tools
from rookery.server.choices import token_data
from rookery.server.errors import ERRORS, ApiError
from rookery.server.keys import Caller, needs
from rookery.server.prompt import check_length, think_mode
from rookery.server.service import Service, service
from rookery.server.shapes import MAX_ITEMS, Name, Said, Shape, Text, Thinking, Tokens, Tools
from rookery.tokenizer import Tokenizer

router = APIRouter()
Reader = Annotated[Caller, Depends(needs("read"))]
END = "<|endoftext|>"


class Talk(Thinking):
    """A talk to be written as its template does."""

    messages: list[Said] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    tools: Tools | None = None
    add_generation_prompt: bool | None = None


class TokenizeRequest(Thinking):
    """`content` is llama.cpp's field, `prompt` or `messages` vLLM's; one of them."""

    model: Name | None = None
    content: Text | None = None
    with_pieces: bool | None = None
    add_special: bool | None = None
    prompt: Text | None = None
    messages: Annotated[list[Said], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)] | None = None
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Piece(BaseModel):
    """`piece`: text, or the bytes of what is only a part of a character."""

    id: int
    piece: str | list[int]


class Tokenized(BaseModel):
    """Without `content` in the request also how many there are and may be, and their texts."""

    tokens: list[int] | list[Piece]
    count: int | None = None
    max_model_len: int | None = None
    token_strs: list[str] | None = None


class DetokenizeRequest(Shape):
    model: Name | None = None
    tokens: Tokens


class Detokenized(BaseModel):
    """The text, as llama.cpp and as vLLM call it."""

    content: str
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    eos_token: str | None
    bos_token: str | None
    pad_token: str | None
    chat_template: str | None


class Written(BaseModel):
    prompt: str


@router.post("/tokenize", responses=ERRORS, response_model_exclude_unset=True)
async def tokenize(body: TokenizeRequest, request: Request, caller: Reader) -> Tokenized:
    """The tokens of a text or a talk."""
    served = service(request)
    served.variant(body.model)
    return await run_in_threadpool(_tokenized, served, body)


@router.post("/detokenize", responses=ERRORS)
async def detokenize(body: DetokenizeRequest, request: Request, caller: Reader) -> Detokenized:
    """The text of tokens; what is no UTF-8 becomes U+FFFD."""
    served = service(request)
    served.variant(body.model)
    text = await run_in_threadpool(served.model.tokenizer.decode, body.tokens)
    return Detokenized(content=text, prompt=text)


@router.get("/tokenizer_info", responses={status: ERRORS[status] for status in (401, 403, 503)})
async def tokenizer_info(request: Request, caller: Reader) -> TokenizerInfo:
    """What a client needs to know to count tokens itself. `chat_template` is null where it is no Jinja text."""
    served = service(request)
    tokenizer = served.model.tokenizer
    end = end_name(tokenizer)
    return TokenizerInfo(
        tokenizer_class=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        model_max_length=served.settings.max_prompt_tokens,
        eos_token=end,
        bos_token=end,
        pad_token=end,
        chat_template=jinja(served.template),
    )


@router.post("/apply-template", responses=ERRORS)
async def apply_template(body: Talk, request: Request, caller: Reader) -> Written:
    """A talk as the model reads it."""
    return Written(prompt=await run_in_threadpool(written, service(request), body, body.messages, body.tools))


def end_name(tokenizer: Tokenizer) -> str | None:
    """What the token that ends a text is called here; None where there is none."""
    return None if tokenizer.end is None else END


def jinja(template: chat.Template) -> str | None:
    """The template's source, if it is Jinja."""
    return template.source if isinstance(template, Jinja) else None


def _tokenized(served: Service, body: TokenizeRequest) -> Tokenized:
    given = [field for field in ("content", "prompt", "messages") if getattr(body, field) is not None]
    if len(given) != 1:
        raise ApiError(400, "wanted one of content, prompt and messages")
    tokenizer = served.model.tokenizer
    if body.messages is not None:
        tokens = tokenizer.encode(written(served, body, body.messages, body.tools))
    elif body.prompt == end_name(tokenizer) and tokenizer.end is not None:
        tokens = [tokenizer.end]
    else:
        tokens = tokenizer.encode(body.content or body.prompt or "")
    check_length(tokens, served.settings.max_prompt_tokens)
    if body.content is None:
        texts = [_text(token, tokenizer) for token in tokens] if body.return_token_strs else None
        most = served.settings.max_prompt_tokens
        return Tokenized(tokens=tokens, count=len(tokens), max_model_len=most, token_strs=texts)
    if body.with_pieces:
        return Tokenized(tokens=[Piece(id=token, piece=_piece(token, tokenizer)) for token in tokens])
    return Tokenized(tokens=tokens)


def written(served: Service, body: Any, messages: list[Said], offered: Tools | None) -> str:
    """A talk as its template writes it; slow for a long one. Raises what the template raises."""
    template, think, reply = served.template, think_mode(body), body.add_generation_prompt is not False
    if isinstance(template, Jinja):  # it has a form for tools or none, which it alone knows
        given = [tool.model_dump(exclude_none=True) for tool in offered or ()]
        return template.render(tools.talk(messages), reply, think=think, tools=given)
    offer = tools.offer(offered, "auto", None)
    if offer or tools.needed(messages):
        template = tools.with_tools(template)
    think = think or ("off" if offer else None)
    return template.render(tools.talk(messages), reply, think=think, tools=offer.tools if offer else ())


def _text(token: int, tokenizer: Tokenizer) -> str:
    return token_data(token, tokenizer).decode(getattr(tokenizer, "encoding", "utf-8"), "replace")


def _piece(token: int, tokenizer: Tokenizer) -> str | list[int]:
    data = token_data(token, tokenizer)
    try:
        return data.decode(getattr(tokenizer, "encoding", "utf-8"))
    except UnicodeDecodeError:
        return list(data)
