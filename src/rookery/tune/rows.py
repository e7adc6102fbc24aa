"""A row of a data set as what is to be learnt: a text, or a talk. The forms are those that instruction data come in.

{"text"}; {"messages": [{"role", "content"}]}, OpenAI's, with "tools" and calls of them; {"conversations": [{"from",
"value"}]}, ShareGPT's; a pair of columns such as {"prompt", "completion"}, PAIRS has them, with a "system" if wanted;
{"instruction", "instances": [{"input", "output"}]}, self-instruct's. Other columns are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from rookery.chat.template import Message
from rookery.errors import InputError

# The last column is the reply, the first the question; what stands between is added to it where a row has it.
PAIRS: tuple[tuple[str, ...], ...] = (
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("question", "answer"),
    ("query", "response"),
)
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "system": "system",
        "developer": "system",
        "user": "user",
        "human": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        "tool": "tool",
        "function": "tool",
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """A `text`, or where that is None a talk of `messages`, in which `tools` may be called."""

    text: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()


def rows(row: Any, fields: Sequence[str] = ()) -> list[Row]:
    """What a JSON row says: one Row, of self-instruct's as many as it has instances.

    fields: columns to take instead of the known ones, the last of them the reply. Raises InputError.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"is {_kind(row)}; wanted an object such as {_WANTED}")
    if fields:
        return [_pair(row, fields, given=True)]
    for name in ("messages", "conversations"):
        if name in row:
            return [Row(messages=(*_system(row), *messages(row[name], name)), tools=_tools(row))]
    if "instances" in row and "instruction" in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances) or not instances:
            raise InputError('"instances": wanted a list of objects with input and output')
        return [_pair({**row, **one}, ("instruction", "input", "output")) for one in instances]
    for columns in PAIRS:
        if columns[0] in row and columns[-1] in row:
            return [_pair(row, columns)]
    if "text" in row:
        return [Row(text=_text(row, "text"))]
    here = ", ".join(map(str, row))[:100]
    raise InputError(f"has the columns {here}; wanted {_WANTED}, or name them with data.fields")


_WANTED = '{"text"}, {"messages"} or {"prompt", "completion"}'


def messages(given: Any, name: str = "messages") -> tuple[Message, ...]:
    """A list of {"role", "content"} or {"from", "value"} as templates take them. Raises InputError."""
    if not isinstance(given, list) or not given:
        raise InputError(f'"{name}": wanted a list of messages, not {_kind(given)}')
    return tuple(_message(one, f"message {place + 1}") for place, one in enumerate(given))


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {_kind(given)}; wanted a role and a content")
    said = given.get("role", given.get("from"))
    if not isinstance(said, str):
        raise InputError(f'{where} has no "role"; wanted one of {", ".join(ROLES)}')
    if said not in ROLES:
        near = get_close_matches(said, ROLES, 1, 0.0)[0]
        raise InputError(f"{where} has the unknown role {said[:40]!r}; the nearest is {near}, of {', '.join(ROLES)}")
    text = _content(given.get("content", given.get("value")), where, bool(given.get("tool_calls")))
    if given.get("tool_calls"):
        text = f"{text}\n```json\n{_calls(given['tool_calls'], where)}\n```".lstrip("\n")
    return {"role": ROLES[said], "content": text}  # type: ignore[typeddict-item]


def _content(content: Any, where: str, calls: bool) -> str:
    """Text, OpenAI's list of parts that are text, or nothing where tools are called."""
    if content is None and calls:
        return ""
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
    if not isinstance(content, str):
        raise InputError(f"{where}: its content is {_kind(content)}; wanted text")
    return content


def _calls(calls: Any, where: str) -> str:
    """Calls of tools as g1 writes them: an object, or a list of several."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f'{where}: a call of a tool is {{"function": {{"name", "arguments"}}}}')
        arguments = function.get("arguments", {})
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        found.append(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {written}}}')
    return found[0] if len(found) == 1 else f"[{', '.join(found)}]"


def _pair(row: Mapping[str, Any], columns: Sequence[str], given: bool = False) -> Row:
    """Columns one after the other, a line end between, and the reply. Known ones between the two may be missing."""
    *asked, reply = columns
    if not asked:
        raise InputError(f"data.fields = {[*columns]}: wanted the columns of the question and, last, that of the reply")
    between = set() if given else set(asked[1:])
    texts = [_text(row, name, may_lack=name in between) for name in asked]
    question: Message = {"role": "user", "content": "\n".join(filter(None, texts))}
    answer: Message = {"role": "assistant", "content": _text(row, reply)}
    return Row(messages=(*_system(row), question, answer))


def _system(row: Mapping[str, Any]) -> tuple[Message, ...]:
    text = _text(row, "system", may_lack=True)
    return ({"role": "system", "content": text},) if text else ()


def _tools(row: Mapping[str, Any]) -> tuple[Any, ...]:
    tools = row.get("tools") or []
    if not isinstance(tools, list):
        raise InputError(f'"tools" is {_kind(tools)}; wanted a list')
    return tuple(tools)


def _text(row: Mapping[str, Any], name: str, may_lack: bool = False) -> str:
    if may_lack and row.get(name) is None:
        return ""
    if name not in row:
        raise InputError(f'has no "{name}"; its columns are {", ".join(map(str, row))[:100]}')
    text = row[name]
    if not isinstance(text, str):
        raise InputError(f'"{name}" is {_kind(text)}; wanted text')
    if not text.strip() and not may_lack:
        raise InputError(f'"{name}" is empty; wanted text')
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
