"""Tools: how they are told to the model, how a call is held to their schemas, how calls and results are read again.

The form is that of RWKV-7 G1 (`rookery.chat.roles`, template g1): the tools as JSON in the system message, a call in a
```json block, the result as what the user says next. Models whose talk has the speakers User and Assistant get it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rookery import chat
from rookery.chat.roles import BUILTIN, Roles
from rookery.chat.schema import schema_text
from rookery.errors import InputError
from rookery.server.errors import ApiError
from rookery.server.parts import FENCE
from rookery.server.shapes import Called, Chosen, Said, Tool, ToolChoice, content

MOST = 8  # calls in one reply, where several are asked for
COMPACT = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "coerce_one_of": False,
    "lenient": False,
}  # as rookery.chat.grammar has schemas written


@dataclass(frozen=True)
class Offer:
    """The tools that a reply may call. `must`: it is a call; `many`: it may be several."""

    tools: tuple[Mapping[str, Any], ...]  # name, description, parameters
    must: bool = False
    many: bool = False

    def lark(self) -> str:
        """The grammar of the reply behind its opening. Raises InputError for a schema that cannot be followed."""
        rules, names = [], " | ".join(f"call{n}" for n in range(len(self.tools)))
        for n, tool in enumerate(self.tools):
            head = rf'/\{{"name": ?"{re.escape(tool["name"])}", ?"arguments": ?/'
            rules += [f'call{n}: {head} arguments{n} "}}"', f"arguments{n}: %json {_schema(tool)}"]
        several = f' | "[" call (/, ?/ call){{0,{MOST - 1}}} "]"' if self.many else ""
        block = f'"\\n" (call{several}) "\\n```"'
        start = block if self.must else f'/ ?/ (words | "{FENCE}" {block})'
        return "\n".join([f"start: {start}", "words: /(?s:[^` ].*)?/", f"call: {names}", *rules])


def _schema(tool: Mapping[str, Any]) -> str:
    try:
        schema = json.loads(schema_text(tool.get("parameters") or {}))
    except InputError as error:
        raise InputError(f"tool {tool['name']}: {error}") from None
    return json.dumps({"type": "object"} | schema | {"x-guidance": COMPACT})


def offer(tools: Sequence[Tool] | None, choice: ToolChoice | None, many: bool | None) -> Offer | None:
    """What OpenAI's fields ask for; None where no tool is to be called. 400 for a choice that is not among them."""
    found = [
        tool.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
        for tool in tools or ()
    ]
    return offered(found, choice.function.name if isinstance(choice, Chosen) else choice, many)


def offered(tools: Sequence[Mapping[str, Any]], choice: str | None, many: bool | None) -> Offer | None:
    """`choice`: "none", "auto" (or None), "required", else the name of the one tool that must be called."""
    names = [tool["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: two of them have one name", param="tools")
    if not tools and choice in ("none", "auto", None):
        return None
    if choice == "none":
        return None
    if tools and choice in ("auto", "required", None):
        return Offer(tuple(tools), must=choice == "required", many=bool(many))
    if not tools:
        raise ApiError(400, f"tool_choice: {choice!r} is asked for, but no tools are given", param="tool_choice")
    chosen = tuple(tool for tool in tools if tool["name"] == choice)
    if not chosen:
        raise ApiError(400, f"tool_choice: no tool of the name {choice!r} is among the tools", param="tool_choice")
    return Offer(chosen, must=True)


def needed(messages: Sequence[Said]) -> bool:
    """Whether the talk has calls or results in it, which only a template with a form for tools can write."""
    return any(message.role == "tool" or message.tool_calls for message in messages)


def with_tools(template: chat.Template) -> chat.Template:
    """The template, or g1's form for its speakers. 400 where neither is possible."""
    if isinstance(template, Roles) and template.tools:
        return template
    g1 = BUILTIN["g1"]
    assert isinstance(g1, Roles)
    if template.follows_reply().rstrip(" ") != g1.follows_reply():
        raise ApiError(
            400,
            f"tools: the template {template.name} has no form for them; start the server with --chat-template g1",
            code="unsupported",
            param="tools",
        )
    return replace(g1, stops=template.stops, sampling=template.sampling)


def talk(messages: Sequence[Said]) -> list[chat.Message]:
    """The messages as a template takes them. 400 for a message without words."""
    return [_message(message, place) for place, message in enumerate(messages)]


def _message(message: Said, place: int) -> chat.Message:
    text = content(message)
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise ApiError(400, f"messages[{place}]: wanted a content that is text", param=f"messages[{place}].content")
    if message.role == "assistant" and message.tool_calls:
        text = called([call.function for call in message.tool_calls], text)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text}


def called(calls: Sequence[Called], text: str = "") -> str:
    """A reply that calls tools, as the model writes it."""
    written = [f'{{"name": {json.dumps(call.name)}, "arguments": {_arguments(call)}}}' for call in calls]
    block = written[0] if len(written) == 1 else f"[{', '.join(written)}]"
    return f"{text}\n{FENCE}\n{block}\n```".lstrip("\n")


def _arguments(call: Called) -> str:
    try:
        json.loads(call.arguments)
    except ValueError:
        return json.dumps(call.arguments)
    return call.arguments.strip()
