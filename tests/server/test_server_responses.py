"""/v1/responses: the events in OpenAI's order and shapes, and what an answer says of itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from serving import Here, wait_for
from talking import GREEDY, WAYS, Chain, ask, events_of, stream, text_of

from rookery import Session
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


@pytest.fixture
def client(server: Here) -> Any:
    with server.client() as made:
        yield made


def refused(answer: httpx.Response, status: int, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert code is None or error["code"] == code
    said: str = error["message"]
    return said


@pytest.mark.parametrize("way", WAYS)
def test_a_talk_over_http_is_the_talk_in_one_process(
    client: httpx.Client, tiny_v7: Any, tmp_path: Any, way: str
) -> None:
    chain = Chain(tiny_v7, way)
    for text in ("Hello there.", "And then?", "What did the fox say,\nexactly?", "Why?"):
        chain.go_on(client, text)
        chain.check(client, tmp_path)


def test_an_older_response_is_a_branch(client: httpx.Client, tiny_v7: Any) -> None:
    chain = Chain(tiny_v7, "seeded")
    for text in ("One.", "Two.", "Three."):
        chain.go_on(client, text)
    chain.truth.rewind(2)
    chain.last = chain.said[0]
    chain.go_on(client, "Otherwise.")


def test_many_at_once_from_one_turn_are_branches_each_as_it_is_alone(client: httpx.Client, tiny_v7: Any) -> None:
    first = ask(client, "First.", max_output_tokens=9, **GREEDY)
    together = threading.Barrier(8)

    def say(n: int) -> dict[str, Any]:
        together.wait()
        return ask(client, f"{n}" * (1 + 40 * n), first["id"], max_output_tokens=5 * n + 1, **GREEDY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(say, range(8)))
    for n, answer in enumerate(answers):
        truth = Session(tiny_v7)
        truth.say("First.", 9).text  # noqa: B018
        assert text_of(answer) == truth.say(f"{n}" * (1 + 40 * n), 5 * n + 1).text


def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client) -> None:
    whole = ask(client, "Hello.", max_output_tokens=30, temperature=1.5, seed=5, presence_penalty=0)
    with stream(client, "Hello.", None, 30, temperature=1.5, seed=5) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        heard = list(events_of(answer))
    assert [event["sequence_number"] for event in heard] == list(range(len(heard)))
    assert [event["type"] for event in heard[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert [event["type"] for event in heard[-4:]] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    last = heard[-1]["response"]
    deltas = "".join(event["delta"] for event in heard if event["type"] == "response.output_text.delta")
    assert deltas == text_of(last) == text_of(whole)
    assert {event["response"]["id"] for event in heard if "response" in event} == {last["id"]}
    assert client.get(f"/v1/responses/{last['id']}").json() == last
    assert last["usage"] | {"input_tokens_details": None} == whole["usage"] | {"input_tokens_details": None}
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}


def test_what_was_read_before_is_not_read_again(client: httpx.Client) -> None:
    first = ask(client, "A long beginning. " * 50, max_output_tokens=5)
    second = ask(client, "Short.", first["id"], max_output_tokens=5)
    usage = second["usage"]
    assert usage["input_tokens"] > first["usage"]["input_tokens"]
    assert usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"] <= len("Short.") + 1


def test_state_deltas_are_told_on_demand(client: httpx.Client, tiny_v7: Any) -> None:
    with stream(client, "Hello.", None, 12, stream_options={"include_state_delta": True}) as answer:
        told = [event for event in events_of(answer) if event["type"] == "rookery.state_delta"]
    assert [event["tokens"] for event in told] == [4, 8, 12]
    assert all(len(event["layers"]) == tiny_v7.config.n_layer for event in told)
    assert all(value > 0 for event in told for value in event["layers"])
    talk = Session(tiny_v7)
    reply = talk.say("Hello.", 12)
    reading = reply.prepare()
    assert reading.tokens
    before = tiny_v7.forward(reading.tokens)
    three = before[1]
    for token in _greedy(tiny_v7, before, 3):
        three = tiny_v7.forward(token, three)[1]
    moved = [
        float(((three.flat - before[1].flat).reshape(tiny_v7.config.n_layer, -1)[n] ** 2).mean() ** 0.5)
        for n in range(tiny_v7.config.n_layer)
    ]
    assert told[0]["layers"] == pytest.approx(moved, rel=1e-4)


def _greedy(model: Any, point: Any, count: int) -> list[int]:
    tokens: list[int] = []
    logits, state = point
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits, state = model.forward(tokens[-1], state)
    return tokens


def test_instructions_belong_to_the_talk(client: httpx.Client, tiny_v7: Any) -> None:
    first = ask(client, "Hello.", instructions="Be brief.", max_output_tokens=9, **GREEDY)
    truth = Session(tiny_v7, system="Be brief.")
    assert text_of(first) == truth.say("Hello.", 9).text
    assert first["instructions"] == "Be brief."
    same = ask(client, "On.", first["id"], instructions="Be brief.", max_output_tokens=9, **GREEDY)
    left = ask(client, "On.", first["id"], max_output_tokens=9, **GREEDY)
    assert text_of(same) == text_of(left) == truth.say("On.", 9).text
    other = {"input": "On.", "previous_response_id": first["id"], "instructions": "Be long."}
    said = refused(client.post("/v1/responses", json=other), 400, "instructions_changed")
    assert "system message in input" in said
    other["input"] = [{"role": "developer", "content": "Be long."}, {"role": "user", "content": "On."}]  # type: ignore[assignment]
    del other["instructions"]
    assert client.post("/v1/responses", json=other | {"max_output_tokens": 3}).status_code == 200


def test_nothing_is_kept_of_what_is_not_to_be_stored(serving: Callable[..., Here]) -> None:
    server = serving()
    with server.client() as client:
        first = ask(client, "Hello.", max_output_tokens=3)
        before = server.service.store.stats()["snapshots"]
        for previous in (None, first["id"]):
            answer = ask(client, "Secret. " * 40, previous, store=False, max_output_tokens=3)
            assert answer["store"] is False
            refused(client.get(f"/v1/responses/{answer['id']}"), 404)
            gone = {"input": "On.", "previous_response_id": answer["id"]}
            refused(client.post("/v1/responses", json=gone), 404)
        assert server.service.store.stats()["snapshots"] == before
        assert len(client.get("/v1/states").json()["data"]) == 1
        (turn,) = client.get(f"/v1/states/{first['rookery']['state']}").json()["turns"]
        assert turn["id"] == first["id"]


def test_a_stored_response_shows_what_was_asked_and_answered(client: httpx.Client) -> None:
    said = [
        {"role": "system", "content": "Now be short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": n} for n in ("One", "Two")]},
    ]
    body = {"input": said, "metadata": {"a": "b"}, "max_output_tokens": 4, "temperature": 0.5, "user": "u"}
    made = client.post("/v1/responses", json=body).json()
    assert client.get(f"/v1/responses/{made['id']}").json() == made
    refused(client.get(f"/v1/responses/{made['id']}", params={"stream": True}), 400, "unsupported")
    assert (made["metadata"], made["temperature"], made["max_output_tokens"]) == ({"a": "b"}, 0.5, 4)
    items = client.get(f"/v1/responses/{made['id']}/input_items").json()
    assert [item["content"][0]["text"] for item in items["data"]] == ["One\nTwo", "Now be short."]
    assert items["first_id"] == items["data"][0]["id"]
    page = client.get(f"/v1/responses/{made['id']}/input_items", params={"limit": 1, "order": "asc"}).json()
    assert page["has_more"]
    assert page["data"][0] == items["data"][1]
    rest = client.get(
        f"/v1/responses/{made['id']}/input_items", params={"order": "asc", "after": page["last_id"]}
    ).json()
    assert rest["data"] == items["data"][:1]
    refused(client.get(f"/v1/responses/{made['id']}/input_items", params={"after": "x"}), 400)


def test_the_last_response_of_a_branch_can_be_deleted(client: httpx.Client) -> None:
    first = ask(client, "One.", max_output_tokens=3, **GREEDY)
    second = ask(client, "Two.", first["id"], max_output_tokens=3, **GREEDY)
    refused(client.delete(f"/v1/responses/{first['id']}"), 400)
    answer = client.delete(f"/v1/responses/{second['id']}")
    assert answer.json() == {"id": second["id"], "object": "response", "deleted": True}
    refused(client.get(f"/v1/responses/{second['id']}"), 404)
    refused(client.delete(f"/v1/responses/{second['id']}"), 404)
    refused(client.post("/v1/responses", json={"input": "x", "previous_response_id": second["id"]}), 404)
    state = first["rookery"]["state"]
    assert [turn["id"] for turn in client.get(f"/v1/states/{state}").json()["turns"]] == [first["id"]]
    again = ask(client, "Two.", state, max_output_tokens=3, **GREEDY)
    assert text_of(again) == text_of(second)
    client.delete(f"/v1/responses/{again['id']}")
    client.delete(f"/v1/responses/{first['id']}")
    refused(client.get(f"/v1/states/{state}"), 404)


def test_a_stream_can_be_cancelled_by_its_id(client: httpx.Client, server: Here) -> None:
    with stream(client, "Hello.", None, 500_000) as answer:
        heard = events_of(answer)
        id = next(heard)["response"]["id"]
        with server.client() as other:
            assert other.get(f"/v1/responses/{id}").json()["status"] == "in_progress"
            told = other.post(f"/v1/responses/{id}/cancel").json()
            assert told["status"] == "cancelled"
            assert other.get(f"/v1/responses/{id}").json() == told
            refused(other.post(f"/v1/responses/{id}/cancel"), 400, "response_over")
        last = list(heard)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"] == told


def test_a_response_that_is_cancelled_before_its_first_word_leaves_no_turn(client: httpx.Client, server: Here) -> None:
    with stream(client, "x" * 900_000, None, 10) as answer:
        heard = events_of(answer)
        id = next(heard)["response"]["id"]
        with server.client() as other:
            told = other.post(f"/v1/responses/{id}/cancel").json()
        last = list(heard)[-1]
    assert (last["type"], last["response"]) == ("response.incomplete", told)
    assert (told["status"], told["usage"]["output_tokens"]) == ("cancelled", 0)
    refused(client.get(f"/v1/responses/{id}"), 404)


def test_anothers_stream_is_not_seen_and_not_cancelled(server: Here) -> None:
    mine, other = ({"authorization": f"Bearer {key}"} for key in ("mine", "other"))
    with server.client(headers=mine) as client, stream(client, "Hello.", None, 500_000) as answer:
        heard = events_of(answer)
        id = next(heard)["response"]["id"]
        with server.client(headers=other) as stranger:
            refused(stranger.get(f"/v1/responses/{id}"), 404)
            refused(stranger.post(f"/v1/responses/{id}/cancel"), 404)
        assert server.service.works[id].status == "in_progress"
    wait_for(lambda: id not in server.service.works)


IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
NONSENSE = {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}
BAD: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "background": ({"background": True}, 400, "unsupported"),
    "logprobs": ({"include": ["message.output_text.logprobs"]}, 400, "unsupported"),
    "an image": ({"input": [IMAGE]}, 400, "unsupported"),
    "a stored prompt": ({"prompt": {"id": "x"}}, 400, "unsupported"),
    "a conversation": ({"conversation": "conv_1"}, 400, "unsupported"),
    "no last word": ({"input": [{"role": "assistant", "content": "x"}]}, 400, None),
    "nothing said": ({"input": []}, 400, None),
    "an empty text": ({"input": ""}, 400, None),
    "an unknown item": ({"input": [{"type": "computer_call"}]}, 400, None),
    "another model": ({"model": "gpt-4o"}, 404, "model_not_found"),
    "no tokens": ({"max_output_tokens": 0}, 400, None),
    "a huge number": ({"max_output_tokens": 2**70}, 400, None),
    "a negative temperature": ({"temperature": -1}, 400, None),
    "a text for a number": ({"temperature": "1"}, 400, None),
    "a schema that cannot be": ({"text": {"format": NONSENSE}}, 400, None),
    "a schema left out": ({"text": {"format": {"type": "json_schema", "name": "x"}}}, 400, None),
    "a bad regex": ({"regex": "("}, 400, None),
    "two forms": ({"regex": "a", "grammar": "start: /a/"}, 400, None),
    "a think mode that there is not": ({"think": "on"}, 400, None),
    "tools without a form": ({"tools": [{"type": "function", "name": "f"}]}, 400, "unsupported"),
    "a tool that there is not": ({"tool_choice": {"type": "function", "name": "f"}}, 400, None),
    "a hosted tool": ({"tools": [{"type": "web_search"}]}, 400, None),
    "a long metadata": ({"metadata": {"k": "v" * 600}}, 400, None),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_refused(client: httpx.Client, what: str) -> None:
    body, status, code = BAD[what]
    said = refused(client.post("/v1/responses", json={"input": "x"} | body), status, code)
    assert "\n" not in said


def test_thoughts_are_an_item_of_their_own(serving: Callable[..., Here]) -> None:
    server = serving(template="g1")
    with server.client() as client:
        made = ask(client, "Hello.", think="on", max_output_tokens=12)
        (item,) = made["output"]
        assert (item["type"], item["status"]) == ("reasoning", "incomplete")
        assert item["content"][0]["text"]
        details = made["usage"]["output_tokens_details"]
        assert 0 < details["reasoning_tokens"] <= made["usage"]["output_tokens"] == 12
        assert client.get(f"/v1/responses/{made['id']}").json() == made
        (spoken,) = ask(client, "And?", made["id"], reasoning={"effort": "none"}, max_output_tokens=12)["output"]
        assert spoken["type"] == "message"


def test_a_record_says_what_entered_what_changed_and_what_left(
    serving: Callable[..., Here], tiny_v7: Any, tmp_path: Path
) -> None:
    server = serving(store=str(tmp_path), records=True)
    with server.client() as client:
        first = ask(client, "Hello.", max_output_tokens=5, **GREEDY)
        second = ask(client, "On.", first["id"], max_output_tokens=5, **GREEDY)
    path = tmp_path / "records.jsonl"
    lines = wait_for(
        lambda: path.exists() and len(path.read_text().splitlines()) == 2 and path.read_text().splitlines()
    )
    truth = Session(tiny_v7)
    truth.say("Hello.", 5).text  # noqa: B018
    before = truth.state
    truth.say("On.", 5).text  # noqa: B018
    record = json.loads(lines[1])
    assert record["entered"]["tokens"] + record["left"]["tokens"] == truth.tokens[len("Hello.") + 5 :]
    assert record["entered"]["cached"] == len("Hello.") + 5
    assert (record["changed"]["before"], record["changed"]["after"]) == (first["id"], second["id"])
    moved = (truth.state.flat - before.flat).reshape(tiny_v7.config.n_layer, -1)
    assert record["changed"]["delta"] == pytest.approx((moved.astype(float) ** 2).mean(1) ** 0.5)
    assert record["left"]["stop_reason"] == "length"


def test_a_request_that_waits_in_vain_is_told_to_come_again(serving: Callable[..., Here]) -> None:
    server = serving(max_batch=1, max_waiting=1)
    with server.client() as client, stream(client, "Hello.", None, 300_000) as running:
        heard = events_of(running)
        next(heard)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, client, "Waiting.", max_output_tokens=2)
            wait_for(lambda: server.service.engine.stats()["waiting"] == 1)
            answer = client.post("/v1/responses", json={"input": "Too many."})
            refused(answer, 429)
            assert int(answer.headers["retry-after"]) > 0
            running.close()
            assert waiting.result()["status"] == "incomplete"
    assert not server.service.works
