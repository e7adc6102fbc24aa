"""Tools: told to the model, held to their schemas, called, and answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from puppet import puppet
from serving import Here

from rookery.chat.grammar import Grammar
from rookery.chat.roles import BUILTIN
from rookery.server.tools import Offer
from rookery.tokenizer import Bytes

ROUTE = "/v1/chat/completions"
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"$ref": "#/$defs/unit"}},
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {"unit": {"enum": ["C", "F"]}},
    },
}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": tool} for tool in (WEATHER, TIME)]
TEXT = Bytes()  # a grammar does not keep its tokenizer alive
CALL = '{"name": "get_weather", "arguments": {"city": "Rome", "unit": "C"}}'


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling) as made:
        yield made


def asked(server: Here, said: Any = "How is the weather in Rome?", status: int = 200, **fields: Any) -> Any:
    talk = said if isinstance(said, list) else [{"role": "user", "content": said}]
    with server.client() as client:
        answer = client.post(ROUTE, json={"messages": talk, "max_tokens": 80, "tools": TOOLS, **fields})
    assert answer.status_code == status, answer.text
    if not fields.get("stream") or status != 200:
        return answer.json()
    return joined(
        [json.loads(line[6:])["choices"][0] for line in answer.text.split("\n") if line.startswith("data: {")]
    )


def joined(pieces: list[Any]) -> Any:
    """A stream's pieces as the answer they stand for, as a client puts them together."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    for piece in pieces:
        delta = piece["delta"]
        if delta.get("content"):
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                function = {"name": call["function"]["name"], "arguments": ""}
                message["tool_calls"].append({"id": call["id"], "type": call["type"], "function": function})
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return {"choices": [{"message": message, "finish_reason": pieces[-1]["finish_reason"]}]}


def calls(answer: Any) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in answer["choices"][0]["message"]["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_must_come_keeps_to_its_schema(on_gosling: Here, seed: int, stream: bool) -> None:
    answer = asked(on_gosling, tool_choice="required", seed=seed, temperature=1.5, top_p=1, stream=stream)
    [(name, arguments)] = calls(answer)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"]["content"] is None
    if name == "get_weather":
        assert set(arguments) == {"city", "unit"}
        assert len(arguments["city"]) <= 8
        assert arguments["unit"] in ("C", "F")
    else:
        assert (name, arguments) == ("get_time", {})


def test_the_tool_that_was_chosen(on_gosling: Here) -> None:
    for name in ("get_weather", "get_time"):
        choice = {"type": "function", "function": {"name": name}}
        assert calls(asked(on_gosling, tool_choice=choice, seed=1))[0][0] == name


def test_a_call_that_is_cut_is_no_call_yet(on_gosling: Here) -> None:
    answer = asked(on_gosling, tool_choice="required", seed=1, max_tokens=20)
    assert answer["choices"][0]["finish_reason"] == "length"


def test_words_or_a_call_as_the_model_likes(serving: Callable[..., Here], tiny_v7: Any) -> None:
    server = serving(puppet(tiny_v7, " Sunny, I think."), template="g1")
    for stream in (False, True):
        answer = asked(server, stream=stream)
        assert answer["choices"][0]["message"]["content"] == "Sunny, I think."
        assert answer["choices"][0]["finish_reason"] == "stop"
    server = serving(puppet(tiny_v7, f" ```json\n{CALL}\n```"), template="g1")
    for stream in (False, True):
        answer = asked(server, stream=stream)
        assert calls(answer) == [("get_weather", {"city": "Rome", "unit": "C"})]
        assert answer["choices"][0]["message"]["content"] is None
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
    told = asked(server, tool_choice="none")["choices"][0]["message"]
    assert "tool_calls" not in told
    assert told["content"].startswith("```json")


def test_several_calls_where_they_are_asked_for(serving: Callable[..., Here], tiny_v7: Any) -> None:
    two = f' ```json\n[{CALL}, {{"name": "get_time", "arguments": {{}}}}]\n```'
    server = serving(puppet(tiny_v7, two), template="g1")
    both = [("get_weather", {"city": "Rome", "unit": "C"}), ("get_time", {})]
    for stream in (False, True):
        assert calls(asked(server, parallel_tool_calls=True, stream=stream, max_tokens=200)) == both
    one = asked(server, parallel_tool_calls=False, max_tokens=200)["choices"][0]
    assert len(one["message"].get("tool_calls", [])) <= 1


def test_a_talk_with_calls_and_results(serving: Callable[..., Here], tiny_v7: Any) -> None:
    """What is sent back reads as it was written, so that nothing but the result is read anew."""
    server = serving(puppet(tiny_v7, f" ```json\n{CALL}\n```", " It is 20 degrees."), template="g1")
    first = asked(server)
    message = first["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": '{"degrees": 20}'}
    talk = [{"role": "user", "content": "How is the weather in Rome?"}, message, result]
    second = asked(server, talk, return_token_ids=True)
    assert second["choices"][0]["message"]["content"] == "It is 20 degrees."
    asked_for = '\n\nUser: Function output:\n{"degrees": 20}\n\nAssistant:'
    assert bytes(second["prompt_token_ids"]).decode().endswith(f" ```json\n{CALL}\n```{asked_for}")
    usage = second["usage"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] <= len(asked_for) + 1


def test_the_tools_stand_where_the_model_learnt_them(serving: Callable[..., Here]) -> None:
    server = serving(template="world")
    answer = asked(server, "Hi", max_tokens=1, return_token_ids=True)
    text = bytes(answer["prompt_token_ids"]).decode()
    assert text == BUILTIN["g1"].render([{"role": "user", "content": "Hi"}], think="off", tools=[WEATHER, TIME])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "nope"),
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"tools": TOOLS + TOOLS[:1]}, "one name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"tools": [{"type": "web_search"}]}, "type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"if": {}}}}]}, "tool f"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nope"}}}]}, "nope"),
        ({"regex": "a"}, "exclude"),
        ({"reasoning_effort": "high"}, "think"),
    ],
)
def test_refusals(serving: Callable[..., Here], fields: dict[str, Any], word: str) -> None:
    assert word in asked(serving(template="g1"), status=400, **fields)["error"]["message"]


def test_a_template_of_other_speakers_has_no_form_for_them(serving: Callable[..., Here]) -> None:
    error = asked(serving(template="raven"), status=400)["error"]
    assert (error["code"], error["param"]) == ("unsupported", "tools")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (f" ```json\n{CALL}\n```", True),
        ("```json\n" + '{"name":"get_time","arguments":{}}' + "\n```", True),
        (" Words, and `code`.", None),
        ("", None),
        (" ```python", False),
        (' ```json\n{"name": "other', False),
        (' ```json\n{"name": "get_weather", "arguments": {"city": "Rome", "unit": "K', False),
        (f" ```json\n[{CALL}", False),
    ],
)
def test_the_grammar_of_a_free_reply(text: str, ends: bool | None) -> None:
    """`ends`: whether nothing can come after it; False: it is not allowed."""
    grammar = Grammar.from_lark(Offer((WEATHER, TIME)).lark(), TEXT, 256)
    allowed = True
    for byte in text.encode():
        if not grammar.allowed()[byte]:
            allowed = False
            break
        grammar.accept(byte)
    assert allowed == (ends is not False)
    if allowed:
        assert grammar.finished
        assert grammar.complete == bool(ends)
