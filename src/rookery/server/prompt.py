"""A stateless talk as the tokens that the model reads, with the places in it at which others may go on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rookery import chat
from rookery.errors import InputError, TemplateError
from rookery.server.errors import ApiError
from rookery.server.parts import THINK, THOUGHT
from rookery.server.shapes import Thinking
from rookery.server.tools import Offer
from rookery.tokenizer import Tokenizer
from rookery.tokenizer.simple import encode_text

EFFORTS = {"none": "fake", "minimal": "fake", "low": "short", "medium": "medium", "high": "long", "xhigh": "long"}


@dataclass(frozen=True)
class Prompt:
    """`marks`: numbers of tokens after which a state is worth keeping. `begun`: what of the reply `text` has at its
    end. `blank`: whether one space before the reply is no part of it.
    """

    text: str
    tokens: list[int]
    marks: tuple[int, ...]
    begun: str
    blank: bool


def think_mode(asked: Thinking) -> str | None:
    """The think mode that is asked for; None leaves it to the template."""
    if asked.reasoning_effort is not None:
        return EFFORTS[asked.reasoning_effort]
    kwargs = asked.chat_template_kwargs
    for name in (kwargs.model_extra or {}) if kwargs else {}:
        raise ApiError(
            400, f"chat_template_kwargs: {name[:40]} is not among what a request may set: enable_thinking",
            code="unsupported", param="chat_template_kwargs",
        )  # fmt: skip
    if kwargs is None or kwargs.enable_thinking is None:
        return None
    return "on" if kwargs.enable_thinking else "fake"


def options(template: chat.Template, think: str | None, offer: Offer | None, limited: bool) -> dict[str, Any]:
    """What `template` is to be rendered with, so that the opening of the reply suits what must follow it. 400 for a
    reply that would have to think and to follow a grammar from its first word on.
    """
    thinks = _thinks(template)
    if think == "fake" and not thinks:
        think = None  # it never thinks
    if not (offer or limited):
        return {"think": think, "tools": ()}
    mode = None if not thinks or (offer and offer.must) else "off"
    made: dict[str, Any] = {"think": mode, "tools": offer.tools if offer else ()}
    begun = template.begun(**made)
    if think not in (None, "off", "fake") or (THINK in begun and THOUGHT not in begun):
        raise ApiError(
            400, "a reply that is held to a schema, a grammar or tools does not think; ask for reasoning_effort none",
            code="unsupported", param="reasoning_effort",
        )  # fmt: skip
    return made


def _thinks(template: chat.Template) -> bool:
    try:
        template.begun(think="off")
    except InputError:
        return False
    return True


def prompt(
    template: chat.Template, tokenizer: Tokenizer, messages: Sequence[chat.Message], most: int, **options: Any
) -> Prompt:
    """Render and encode; slow for a long talk. 400 for more than `most` tokens. Raises InputError, TemplateError."""
    text = template.render(messages, **options)
    begun = template.begun(**options)
    tokens = tokenizer.encode(text)
    if not tokens:
        raise ApiError(400, "messages: nothing is said in them", param="messages")
    check_length(tokens, most)
    joints = [len(template.opening(messages, **options)), _old(template, messages, text, options), len(text)]
    marks = _marks(tokenizer, tokens, [text[:joint] for joint in joints])
    return Prompt(text, tokens, marks, begun, template.shown(" x") == "x")


def check_length(tokens: Sequence[int], most: int) -> None:
    if len(tokens) > most:
        raise ApiError(
            400,
            f"the prompt has {len(tokens)} tokens; this server reads at most {most}",
            code="context_length_exceeded",
        )


def _old(template: chat.Template, messages: Sequence[chat.Message], text: str, options: dict[str, Any]) -> int:
    """How much of `text` the last message has no part in."""
    with suppress(TemplateError):  # some insist on a last word of the user
        if len(messages) > 1:
            old = template.render(messages[:-1], reply=False, **options)
            return len(old) if text.startswith(old) else 0
    return 0


def _marks(tokenizer: Tokenizer, tokens: Sequence[int], heads: Sequence[str]) -> tuple[int, ...]:
    """How many tokens lie wholly within each beginning of the text."""
    encoding = getattr(tokenizer, "encoding", "utf-8")
    sizes = sorted({len(encode_text(head, encoding)) for head in heads} - {0})
    found: list[int] = []
    for n, end in enumerate(accumulate(len(tokenizer.token_bytes(token)) for token in tokens)):
        while len(found) < len(sizes) and end > sizes[len(found)]:
            found.append(n)
    found += [len(tokens)] * (len(sizes) - len(found))
    return tuple(sorted(set(found) - {0}))
