"""What the stateless routes read that is no talk: one text or several, in each of the ways to say one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rookery.server.errors import ApiError
from rookery.server.prompt import check_length
from rookery.server.service import Service
from rookery.server.shapes import MAX_TOKENS, Piece, Shape, Text, Token, texts

MOST = 1024  # texts of one request


class Given(Shape):
    """A text as llama.cpp's clients may say it."""

    prompt_string: Text | None = None
    content: Annotated[list[Piece], Field(max_length=1000, fail_fast=True)] | None = None


# One text: itself, token ids, or ids and texts one after the other.
Mixed = Annotated[list[Token | Text], Field(max_length=MAX_TOKENS, fail_fast=True)]
Prompts = Text | Given | Mixed | Annotated[list[Text | Given | Mixed], Field(max_length=MOST, fail_fast=True)]


def several(given: Any) -> bool:
    """Whether these are texts, and not the parts of one."""
    return isinstance(given, list) and not any(isinstance(part, int) for part in given)


def prompts(served: Service, given: Any, param: str) -> list[list[int]]:
    """Each text's tokens; slow for a long one. 400 for what cannot be read, with the field `param`."""
    found = [_tokens(served, text, param) for text in (given if several(given) else [given])]
    if not 0 < len(found) <= MOST:  # a list of texts may have passed for one text in many parts
        raise ApiError(400, f"{param}: {len(found)} texts; wanted 1 to {MOST}", param=param)
    return found


def _tokens(served: Service, text: Any, param: str) -> list[int]:
    """The tokens of one text. An empty one is the beginning of a text."""
    model = served.model
    if isinstance(text, Given):
        unknown = next(iter(text.model_extra or ()), None)
        if unknown is not None:
            raise ApiError(400, f"{param}: {unknown[:40]!r} cannot be read here", code="unsupported", param=param)
        text = text.prompt_string if text.content is None else "".join(texts(text.content, param))
    if text == "" and model.tokenizer.end is not None:
        return [model.tokenizer.end]
    parts = text if isinstance(text, list) else [text or ""]
    tokens = [token for part in parts for token in (model.tokenizer.encode(part) if isinstance(part, str) else [part])]
    if not tokens:
        raise ApiError(400, f"{param}: nothing to read; give a text or token ids", param=param)
    if max(tokens) >= model.config.n_vocab:
        raise ApiError(400, f"{param}: {max(tokens)} is no token; there are {model.config.n_vocab}", param=param)
    check_length(tokens, served.settings.max_prompt_tokens)
    return tokens
