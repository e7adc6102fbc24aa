"""What a request to /v1/responses asks, as work that can begin: the talk it goes on with, what is said in it, and how
the reply is to be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from rookery import chat
from rookery.server import limits, prompt, shapes, talk_ids, tools
from rookery.server.errors import ApiError
from rookery.server.limits import Limit
from rookery.server.responses_answer import Answer, Note, Told
from rookery.server.responses_shapes import (
    CallItem,
    CallOutputItem,
    ChosenFunction,
    MessageItem,
    ResponseRequest,
    text_of,
)
from rookery.server.responses_work import Work
from rookery.server.service import Service
from rookery.server.work import reply_tokens
from rookery.session import Session

TITLE = 80  # characters of what is said first that a list of talks shows
MUTE = "reasoning.encrypted_content"  # asked for by clients by default; there is none here


def work(service: Service, owner: str, asked: ResponseRequest, request_id: str = "") -> Work:
    """Find the talk and compile what the reply must follow: slow, and in a thread. What is said is rendered, and the
    state looked for, when the engine has room.

    Raises ApiError and whatever a session raises.
    """
    _refuse(service, asked)
    messages = said(asked)
    session = _session(service, owner, asked, messages)
    how = _how(session, asked)
    session.sampling = asked.sampling(service.left_out(bool(how.limits)), session.model.tokenizer)
    session.think = how.think
    most = reply_tokens(service, asked.max_output_tokens, service.settings.default_tokens)
    note = Note(uuid4().hex, int(time.time()), _repeated(asked, session), calls=how.calls)
    answer = Answer(talk_ids.code(session.name), service.variant_of(session).name, note, session.system, session.tools)
    blank = session.template.shown(" x") == "x"
    told = Told(answer.output, how.begun(session), blank=blank, calls=how.calls)
    seed = asked.first_seed()
    reply = session.say(messages, most, seed=seed, stop=asked.stops(), **how.limits)
    deltas = asked.stream_options is not None and bool(asked.stream_options.include_state_delta)
    made = Work(service, session, reply, answer, told, owner=owner, request_id=request_id)
    made.store, made.streamed, made.deltas = asked.store is not False, bool(asked.stream), deltas
    return made


def said(asked: ResponseRequest) -> list[chat.Message]:
    """What is said in this turn."""
    if isinstance(asked.input, str):
        return [{"role": "user", "content": asked.input}]
    found: list[chat.Message] = []
    for item in asked.input:
        if isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            found.append({"role": role, "content": text_of(item.content)})
        elif isinstance(item, CallItem):
            call = shapes.Called(name=item.name, arguments=item.arguments)
            found.append({"role": "assistant", "content": tools.called([call])})
        elif isinstance(item, CallOutputItem):
            found.append({"role": "tool", "content": text_of(item.output)})
    if not found or found[-1]["role"] == "assistant":
        raise ApiError(400, "input: its last item must be what somebody said or a function answered", param="input")
    return found


def _refuse(service: Service, asked: ResponseRequest) -> None:
    """400 or 404 for what cannot be had here."""
    service.variant(asked.model)
    shapes.refuse_unknown(asked)
    unsupported = {
        "background": asked.background,
        "include": set(asked.include or ()) - {MUTE},
        "conversation": (asked.model_extra or {}).get("conversation"),
        "prompt": (asked.model_extra or {}).get("prompt"),
    }
    for name, value in unsupported.items():
        if value:
            raise ApiError(400, f"{name}: this server cannot do that; leave it out", code="unsupported", param=name)


def _session(service: Service, owner: str, asked: ResponseRequest, messages: Sequence[chat.Message]) -> Session:
    """The talk, standing where it is gone on with."""
    if asked.previous_response_id is None:
        title = next((each["content"] for each in messages if each["role"] == "user"), "")[:TITLE]
        by = service.variant(asked.model)
        session = service.talks.begin(
            owner,
            model=by.model,
            state=by.initial,
            system=asked.instructions or None,
            seed=asked.first_seed(),
            title=title,
        )
    else:
        session = service.talks.open(owner, asked.previous_response_id)
        _check_model(service, session, asked)
        _check_instructions(session, asked)
    if asked.tools is not None:
        session.tools = [tool.model_dump(exclude_none=True) for tool in asked.tools]
    if session.tools or any(message["role"] == "tool" for message in messages):
        session.template = tools.with_tools(session.template)
    return session


def _check_model(service: Service, session: Session, asked: ResponseRequest) -> None:
    held = service.variant_of(session)
    if asked.model and service.variant(asked.model) is not held:
        raise ApiError(
            400,
            f"model: this talk is held with {held.name!r}, whose state another cannot read; leave model out, or begin "
            "a new talk",
            code="model_changed",
            param="model",
        )


def _check_instructions(session: Session, asked: ResponseRequest) -> None:
    if asked.instructions is not None and asked.instructions != (session.system or ""):
        raise ApiError(
            400,
            "instructions: those of this talk were read at its beginning and are part of its state; leave them out, "
            "begin a new talk, or say the new ones as a system message in input",
            code="instructions_changed",
            param="instructions",
        )


@dataclass(frozen=True)
class _How:
    """How the reply is opened and what it must follow; `calls`: whether it may call a tool."""

    think: str | None
    limits: Mapping[str, Any]
    calls: bool

    def begun(self, session: Session) -> str:
        return session.template.begun(think=self.think, tools=session.tools)


def _how(session: Session, asked: ResponseRequest) -> _How:
    told = session.tools
    choice = asked.tool_choice.name if isinstance(asked.tool_choice, ChosenFunction) else asked.tool_choice
    offer = tools.offered(told, choice, asked.parallel_tool_calls)
    limit = _limit(asked)
    if offer and limit:
        raise ApiError(400, "text.format: a reply that may call tools follows no schema; set tool_choice to none")
    if offer:
        limit = Limit("grammar", offer.lark(), blank=True)
    think = prompt.options(session.template, _think(session, asked), offer, limit is not None)["think"]
    if think is None and told and not (offer and offer.must):
        think = "off"  # else the template begins a call
    if limit is not None:  # the session compiles it again, when this has shown that it can be
        limits.compiler(limit, session.model.tokenizer, session.model.config.n_vocab)
    return _How(think, {limit.kind: limit.text} if limit else {}, offer is not None)


def _think(session: Session, asked: ResponseRequest) -> str | None:
    if asked.think is not None:
        return asked.think
    effort = asked.reasoning.effort if asked.reasoning else None
    return prompt.think_mode(shapes.Thinking(reasoning_effort=effort)) if effort else session.settings["think"]


def _limit(asked: ResponseRequest) -> Limit | None:
    """What text.format, regex or grammar ask for."""
    given = asked.text.format if asked.text else None
    format = given and {"type": given.type, "json_schema": {"schema": given.schema_}}
    fields = {"response_format": format, "regex": asked.regex, "grammar": asked.grammar}
    return limits.limit(shapes.Limited.model_validate(fields))


def _repeated(asked: ResponseRequest, session: Session) -> dict[str, Any]:
    """The fields of the answer that repeat the request's, or say what stood for those left out."""
    format = (
        asked.text.format.model_dump(by_alias=True, exclude_none=True) if asked.text and asked.text.format else None
    )
    if format and format["type"] == "json_schema":
        format = {"name": "schema"} | format
    choice = asked.tool_choice
    return {
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": bool(asked.parallel_tool_calls),
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
        "store": asked.store is not False,
        "temperature": session.sampling.temperature,
        "text": {"format": format or {"type": "text"}},
        "tool_choice": choice.model_dump() if isinstance(choice, ChosenFunction) else choice or "auto",
        "top_p": session.sampling.top_p,
        "user": asked.user,
    }
