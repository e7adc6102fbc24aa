"""The official client, with strict validation of every answer, against a real server on gosling."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from serving import Process

openai = pytest.importorskip("openai")

SAID: list[Any] = [
    {"role": "user", "content": "Tell me of the fox in the wood, and of the old bear whom he met there."}
]
WEATHER = {
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 10}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS: Any = [{"type": "function", "function": WEATHER}]
SETTINGS: Any = {"model": "gosling", "seed": 1, "max_tokens": 60}


class Answer(BaseModel):
    mood: Literal["glad", "sad"]
    sure: bool


@pytest.fixture(scope="module")
def client(gosling_process: Process) -> Any:
    with gosling_process.openai() as made:
        yield made


def in_time(work: Any, gosling_process: Process) -> Any:
    """What `work(client)` gives, of the asynchronous client."""

    async def run() -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{gosling_process.url}/v1",
            api_key="none",
            max_retries=0,
            timeout=60,
            _strict_response_validation=True,
        ) as client:
            return await work(client)

    return asyncio.run(run())


def test_chat(client: Any, gosling_process: Process) -> None:
    answer = client.chat.completions.create(messages=SAID, **SETTINGS, logprobs=True, top_logprobs=2, n=2)
    assert len(answer.choices) == 2
    first = answer.choices[0]
    assert first.message.content
    assert first.finish_reason in ("stop", "length")
    assert len(first.logprobs.content[0].top_logprobs) == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = in_time(lambda c: c.chat.completions.create(messages=SAID, **SETTINGS), gosling_process)
    assert again.choices[0].message.content == first.message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_chat_streamed(client: Any, gosling_process: Process) -> None:
    whole = client.chat.completions.create(messages=SAID, **SETTINGS)
    stream = client.chat.completions.create(
        messages=SAID, **SETTINGS, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)

    async def streamed(c: Any) -> str:
        text = ""
        async for chunk in await c.chat.completions.create(messages=SAID, **SETTINGS, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text

    assert in_time(streamed, gosling_process) == whole.choices[0].message.content


def test_the_clients_own_accumulation(client: Any) -> None:
    with client.chat.completions.stream(messages=SAID, **SETTINGS) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content


def test_tools(client: Any, gosling_process: Process) -> None:
    answer = client.chat.completions.create(messages=SAID, tools=TOOLS, tool_choice="required", **SETTINGS)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    with client.chat.completions.stream(messages=SAID, tools=TOOLS, tool_choice="required", **SETTINGS) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments
    assert set(streamed.function.parsed_arguments) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    talk = [*SAID, choice.message.to_dict(), result]
    more = in_time(lambda c: c.chat.completions.create(messages=talk, tools=TOOLS, **SETTINGS), gosling_process)
    assert more.choices[0].message.content or more.choices[0].message.tool_calls


def test_structured_output(client: Any, gosling_process: Process) -> None:
    for seed in range(3):
        settings = SETTINGS | {"seed": seed}
        parsed = client.chat.completions.parse(messages=SAID, response_format=Answer, **settings)
        assert isinstance(parsed.choices[0].message.parsed, Answer)

    async def parsed_later(c: Any) -> Any:
        return (await c.chat.completions.parse(messages=SAID, response_format=Answer, **SETTINGS)).choices[0].message

    assert isinstance(in_time(parsed_later, gosling_process).parsed, Answer)


def test_completions(client: Any, gosling_process: Process) -> None:
    fields: Any = {"model": "gosling", "max_tokens": 8, "seed": 1}
    answer = client.completions.create(prompt=["Once", "There was"], logprobs=2, **fields)
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.token_logprobs) == 8
    later = in_time(lambda c: c.completions.create(prompt="Once", **fields), gosling_process)
    assert later.choices[0].text == answer.choices[0].text
    with gosling_process.openai(
        _strict_response_validation=False
    ) as lenient:  # its types know no null, OpenAI sends them
        echoed = lenient.completions.create(prompt="Once", logprobs=2, echo=True, **fields)
        stream = list(lenient.completions.create(prompt="Once", stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    reasons = [chunk.choices[0].finish_reason for chunk in stream]  # pieces may come together in one chunk
    assert reasons == [*[None] * (len(stream) - 1), "length"]
    assert echoed.choices[0].text == "Once" + answer.choices[0].text
    assert echoed.choices[0].logprobs.token_logprobs[0] is None


def test_embeddings(client: Any, gosling_process: Process) -> None:
    """By itself the client asks for base64 and decodes it, which its strict validation does not know of."""
    plain = client.embeddings.create(model="gosling", input="a fox", encoding_format="float")
    with gosling_process.openai(_strict_response_validation=False) as lenient:
        found = lenient.embeddings.create(model="gosling", input=["a fox", "a king"])
    assert found.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-7)
    assert found.usage.prompt_tokens > plain.usage.prompt_tokens

    async def later(c: Any) -> Any:
        return await c.embeddings.create(model="gosling", input="a fox", encoding_format="float")

    assert in_time(later, gosling_process).data == plain.data


def test_models(client: Any, gosling_process: Process) -> None:
    [model] = client.models.list()
    assert client.models.retrieve("gosling") == model

    async def listed(c: Any) -> Any:
        return [model async for model in c.models.list()]

    assert in_time(listed, gosling_process) == [model]


def test_errors(client: Any, gosling_process: Process) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(messages=[], **SETTINGS)
    assert bad.value.param == "messages"
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        create(messages=SAID, model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError, match="regular expression"):
        create(messages=SAID, **SETTINGS, extra_body={"regex": "("}, stream=True)

    async def refused(c: Any) -> None:
        with pytest.raises(openai.BadRequestError):
            await c.completions.create(model="gosling", prompt="x", suffix="y")

    in_time(refused, gosling_process)


def test_a_stream_that_is_left(client: Any) -> None:
    """The server goes on for others."""
    for _ in range(20):
        with client.chat.completions.create(messages=SAID, model="gosling", stream=True) as stream:
            next(iter(stream))
    assert client.chat.completions.create(messages=SAID, **SETTINGS).choices
