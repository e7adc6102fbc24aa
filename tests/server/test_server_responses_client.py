"""/v1/responses read by the official client, which checks every field of every answer and event."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from serving import Here
from talking import GREEDY

from rookery import Sampling, Session


@pytest.fixture(scope="module")
def official(gosling: Any) -> Any:
    """The official client, which checks every field, of a server on gosling."""
    with Here(gosling) as made, made.openai() as client:
        yield client


def test_the_official_client_reads_answers_and_streams(official: Any, gosling: Any) -> None:
    first = official.responses.create(
        model="gosling", input="What is your name?", max_output_tokens=40, extra_body=GREEDY
    )
    truth = Session(gosling, sampling=Sampling(temperature=0))
    assert first.output_text == truth.say("What is your name?", 40).text
    assert official.responses.retrieve(first.id) == first
    with official.responses.stream(
        model="gosling",
        input="Tell me a story.",
        previous_response_id=first.id,
        max_output_tokens=300,
        extra_body=GREEDY,
    ) as heard:
        for _ in heard:
            pass
    final = heard.get_final_response()
    assert final.status == "completed"
    assert final.output_text == truth.say("Tell me a story.", 300).text
    assert [item.content[0].text for item in official.responses.input_items.list(final.id)] == ["Tell me a story."]
    official.responses.delete(final.id)
    with pytest.raises(openai.NotFoundError):
        official.responses.retrieve(final.id)
    with pytest.raises(openai.BadRequestError):
        official.responses.create(model="gosling", input="x", background=True)


class Person(BaseModel):
    name: str
    grown: bool


def test_the_official_client_parses_structured_output(official: Any) -> None:
    made = official.responses.parse(
        model="gosling", input="Who is there?", text_format=Person, max_output_tokens=400, extra_body={"seed": 3}
    )
    assert made.status == "completed"
    assert isinstance(made.output_parsed, Person)
    limited = official.responses.create(
        model="gosling", input="Yes or no?", max_output_tokens=9, extra_body={"regex": "(yes|no)"}
    )
    assert limited.output_text in ("yes", "no")


TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def test_a_function_is_called_and_answered(official: Any) -> None:
    first = official.responses.create(
        model="gosling", input="What is the weather in Rome?", tools=[TOOL], tool_choice="required", temperature=0
    )
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert official.responses.retrieve(first.id) == first
    answered = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    second = official.responses.create(
        model="gosling", input=answered, previous_response_id=first.id, tool_choice="none", max_output_tokens=20
    )
    assert all(item.type == "message" for item in second.output)
    resent = [{"role": "user", "content": "What is the weather in Rome?"}, call.to_dict(), *answered]
    third = official.responses.create(
        model="gosling", input=resent, tools=[TOOL], tool_choice="none", max_output_tokens=5
    )
    assert third.output
    free = official.responses.create(
        model="gosling", input="Hello!", tools=[TOOL], max_output_tokens=20, extra_body={"seed": 1}
    )
    assert free.tool_choice == "auto"
    assert free.output[0].type in ("message", "function_call")
    with official.responses.stream(
        model="gosling", input="And Paris?", previous_response_id=second.id, tool_choice="required"
    ) as heard:
        types = [event.type for event in heard]
    assert "response.function_call_arguments.delta" in types
    assert types[-1] == "response.completed"
    (call,) = heard.get_final_response().output
    assert call.type == "function_call"


def test_the_official_asynchronous_client_streams_side_by_side(gosling: Any) -> None:
    async def story(client: Any, text: str) -> str:
        async with client.responses.stream(
            model="gosling", input=text, max_output_tokens=30, extra_body=GREEDY
        ) as heard:
            types = [event.type async for event in heard]
        assert types[0] == "response.created"
        assert types[-1] in ("response.completed", "response.incomplete")
        last = await client.responses.create(model="gosling", input=text, max_output_tokens=30, extra_body=GREEDY)
        return str(last.output_text)

    async def stories(url: str) -> list[str]:
        settings = {"max_retries": 0, "_strict_response_validation": True}
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **settings) as client:  # type: ignore[arg-type]
            return await asyncio.gather(*(story(client, text) for text in texts))

    texts = ["One.", "Tell me of a king.", "Why is the sky blue?", "Good morning!"]
    with Here(gosling) as server:
        found = asyncio.run(stories(server.url))
    assert found == [Session(gosling).say(text, 30).text for text in texts]
