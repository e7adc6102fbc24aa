"""/v1/responses: the events in OpenAI's order and shapes, and what an answer says of itself."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from rookery.server.responses_events import Output

TAG = "0123456789abcdef0123456789abcdef"


def test_events_of_thoughts_words_and_a_call_are_openais_in_order():
    output = Output(TAG)
    events = [
        *output.push("reasoning", "Hm"),
        *output.push("reasoning", "m."),
        *output.push("message", "Hel"),
        *output.push("message", ""),
        *output.push("message", "lo"),
        *output.push("function_call", '{"a"', name="f"),
        *output.push("function_call", ":1}"),
        *output.push("function_call", "{}", name="g"),
        *output.finish("completed"),
    ]
    expected = (
        ["response.output_item.added", "response.content_part.added"]
        + ["response.reasoning_text.delta"] * 2
        + ["response.reasoning_text.done", "response.content_part.done", "response.output_item.done"]
        + ["response.output_item.added", "response.content_part.added"]
        + ["response.output_text.delta"] * 2
        + ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
        + ["response.output_item.added"]
        + ["response.function_call_arguments.delta"] * 2
        + ["response.function_call_arguments.done", "response.output_item.done"]
        + ["response.output_item.added", "response.function_call_arguments.delta"]
        + ["response.function_call_arguments.done", "response.output_item.done"]
    )
    assert [event["type"] for event in events] == expected
    read = TypeAdapter(ResponseStreamEvent)
    for event in events:
        assert read.validate_python(event | {"sequence_number": 0}, strict=True).type == event["type"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == output.items
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call", "function_call"]
    assert done[1]["content"][0]["text"] == "Hello"
    assert done[2]["arguments"] == '{"a":1}'
    assert len({item["id"] for item in done}) == 4


def test_an_event_keeps_what_it_said_when_the_item_grows():
    output = Output(TAG)
    events = [*output.push("message", "Hello")]
    assert events[0]["item"]["content"] == []
    assert events[1]["part"]["text"] == ""
    list(output.push("message", " there"))
    assert events[0]["item"]["content"] == []


def test_an_answer_of_nothing_is_an_empty_message():
    output = Output(TAG)
    types = [event["type"] for event in output.finish("completed")]
    assert types[0] == "response.output_item.added"
    assert output.items[0]["content"][0]["text"] == ""
    assert output.items[0]["status"] == "completed"
