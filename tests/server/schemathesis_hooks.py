"""Loaded by schemathesis: valid requests made sensible, so that more of them get past the refusals into the model.

Its data obey the schema, but not what a schema cannot say: that a reply follows one form only, or which model there is.
What it made invalid on purpose is left alone, and every eighth request too. In a chain of requests an answer is kept
and comes in one piece, so that the next can use its id.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.generation.meta import TestPhase

FORMS = ("json_schema", "regex", "grammar", "response_format", "text", "tools")
TEXTS = ("content", "prompt", "messages")
REFUSED = ("model", "best_of", "suffix", "dimensions", "background", "include")
REFUSED += ("reasoning_effort", "reasoning", "think", "chat_template_kwargs")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    body = case.body
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or not isinstance(body, dict):
        return
    chance = crc32(json.dumps(body, sort_keys=True).encode())
    if case.meta.phase.name == TestPhase.STATEFUL:
        case.body = sensible(case.path, body, chance) | {"stream": False, "store": True}
    elif chance % 8:
        case.body = sensible(case.path, body, chance // 8)


def sensible(path: str, body: dict[str, Any], chance: int) -> dict[str, Any]:
    """`chance` decides which of several is kept, and what is asked beside."""
    made = {name: value for name, value in body.items() if name not in REFUSED}
    if not str(made.get("previous_response_id")).startswith(("resp_", "state_")):
        made.pop("previous_response_id", None)
    elif chance % 2:
        made.pop("instructions", None)
    keep_one(made, FORMS, chance)
    if path == "/tokenize":
        keep_one(made, TEXTS, chance)
    elif path != "/v1/embeddings" and chance % 3 == 0:
        made["stream"] = True
    if path == "/v1/chat/completions":
        made["logprobs"] = chance % 4 == 0
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(made.get(name), int):
            made[name] = made[name] % 32 + 1
    if isinstance(made.get("n"), int):
        made["n"] = made["n"] % 4 + 1
    for name in ("prompt", "input"):
        if name in made:
            made[name] = read(made[name])
    if isinstance(made.get("messages"), list):
        made["messages"] = [spoken(message) for message in made["messages"]]
    return made


def keep_one(body: dict[str, Any], names: tuple[str, ...], chance: int) -> None:
    there = [name for name in names if body.get(name)]
    for place, name in enumerate(there):
        if place != chance % len(there):
            del body[name]
    for name in {*names} - {*there}:
        body.pop(name, None)


def read(given: Any) -> Any:
    """A text or tokens that can be read: tokens are bytes, and nothing is empty."""
    if isinstance(given, int):
        return given % 256
    if isinstance(given, list):
        return [read(each) for each in given] or "a"
    return given or "a"


def spoken(message: Any) -> Any:
    """A message that says something, in parts that are texts."""
    if not isinstance(message, dict) or "role" not in message:
        return message
    content = message.get("content") or "a"
    if isinstance(content, list):
        content = [part | {"type": "text", "text": part.get("text") or "a"} for part in content]
    return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": content}
