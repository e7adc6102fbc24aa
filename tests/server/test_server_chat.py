"""/v1/chat/completions against the model alone: words, seeds, log-probabilities, what the cache may never change."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from puppet import puppet
from serving import Here, wait_for

from rookery import chat
from rookery.chat.roles import BUILTIN
from rookery.server import feed

FOX = "Tell me a story of a fox who went into the wood and met an old bear there."
ROUTE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling) as made:
        yield made


@pytest.fixture
def ask(on_gosling: Here) -> Iterator[Callable[..., Any]]:
    """ask(said, **fields): the answer as JSON, or its frames. Every test has a cache of its own."""
    yield lambda *said, **fields: asked(on_gosling, *said, **fields)
    on_gosling.service.variants[0].prefixes.kept._points.clear()
    on_gosling.service.variants[0].prefixes.kept._lengths.clear()


def asked(server: Here, *said: Any, status: int = 200, key: str = "", **fields: Any) -> Any:
    roles = ["user" if n % 2 == 0 else "assistant" for n in range(len(said))]
    talk = [
        one if isinstance(one, dict) else {"role": role, "content": one} for role, one in zip(roles, said, strict=True)
    ]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with server.client(headers=headers) as client:
        answer = client.post(ROUTE, json={"messages": talk, **fields})
    assert answer.status_code == status, answer.text
    return frames(answer.text) if fields.get("stream") and status == 200 else answer.json()


def frames(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def words(answer: Any, n: int = 0) -> str:
    return str(answer["choices"][n]["message"]["content"])


def alone(model: Any, said: str, max_tokens: int, **fields: Any) -> Any:
    """The same by hand."""
    template = chat.load(None, model.weights.metadata)
    prompt = template.render([{"role": "user", "content": said}])
    stream = model.stream(
        prompt, max_tokens, replace(template.sampling, **fields.pop("sampling", {})), stop=template.stops, **fields
    )
    text = template.shown("".join(stream))
    return text, stream


@pytest.mark.parametrize("seed", [1, 2])
def test_a_reply_is_the_models_own(ask: Callable[..., Any], gosling: Any, seed: int) -> None:
    text, stream = alone(gosling, FOX, 40, seed=seed)
    answer = ask(FOX, seed=seed, max_tokens=40, return_token_ids=True)
    assert words(answer) == text
    assert answer["choices"][0]["token_ids"] == stream.tokens
    assert answer["usage"]["prompt_tokens"] == stream.prompt_tokens
    assert answer["usage"]["completion_tokens"] == len(stream.tokens)
    assert answer["choices"][0]["finish_reason"] == ("length" if stream.stop_reason == "length" else "stop")


def test_what_is_asked_is_how_it_draws(ask: Callable[..., Any], gosling: Any) -> None:
    settings = {"temperature": 1.7, "top_p": 0.95, "top_k": 40, "min_p": 0.01, "typical_p": 0.9}
    own = {**settings, "presence": 0.0, "frequency": 0.7, "penalty": "openai", "logit_bias": {}}
    ban = gosling.tokenizer.encode(" fox")[0]
    own["logit_bias"] = {ban: -np.inf}
    text, _ = alone(gosling, FOX, 40, seed=5, sampling=own)
    fields = settings | {"frequency_penalty": 0.7, "seed": 5, "max_tokens": 40}
    assert words(ask(FOX, **fields, logit_bias={str(ban): -100})) == text
    assert words(ask(FOX, **fields, logit_bias={" fox": -100})) == text
    rapid = {"presence": 0.9, "frequency": 0.2, "penalty": "rapid", "decay": 0.9}
    text, _ = alone(gosling, FOX, 40, seed=5, sampling=rapid)
    fields = {"presence_penalty": 0.9, "frequency_penalty": 0.2, "penalty": "rapid", "penalty_decay": 0.9}
    assert words(ask(FOX, **fields, seed=5, max_tokens=40)) == text


def test_a_stream_is_the_answer_in_pieces(ask: Callable[..., Any]) -> None:
    whole = ask(FOX, seed=3, max_tokens=30, logprobs=True, top_logprobs=2)
    pieces = ask(
        FOX, seed=3, max_tokens=30, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({(piece["id"], piece["created"], piece["model"]) for piece in pieces}) == 1
    *chunks, last = pieces
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == words(whole)
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    scored = [score for choice in choices if choice["logprobs"] for score in choice["logprobs"]["content"]]
    assert scored == whole["choices"][0]["logprobs"]["content"]
    assert "".join(score["token"] for score in scored).removeprefix(" ") == words(whole)


def test_the_cache_changes_the_time_and_nothing_else(ask: Callable[..., Any]) -> None:
    fields = {"seed": 4, "max_tokens": 40, "logprobs": True, "top_logprobs": 3, "return_token_ids": True}
    cold = ask(FOX, **fields)
    warm = ask(FOX, **fields)
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] == warm["usage"]["prompt_tokens"]
    assert warm["choices"] == cold["choices"]


def test_a_talk_that_is_sent_again_is_not_read_again(ask: Callable[..., Any], on_gosling: Here) -> None:
    fields = {"seed": 4, "max_tokens": 40, "return_token_ids": True, "logprobs": True}
    said = [FOX]
    for more in ("And then?", "What did the bear say?"):
        said += [words(ask(*said, **fields)), more]
    warm = ask(*said, **fields)
    read = warm["usage"]["prompt_tokens"] - warm["usage"]["prompt_tokens_details"]["cached_tokens"]
    new = len(on_gosling.service.model.tokenizer.encode(f"\n\nUser: {said[-1]}\n\nAssistant:"))
    assert read <= new + 2
    on_gosling.service.variants[0].prefixes.kept._points.clear()
    on_gosling.service.variants[0].prefixes.kept._lengths.clear()
    assert ask(*said, **fields)["choices"] == warm["choices"]


def test_nobody_profits_from_anothers_prompt(ask: Callable[..., Any]) -> None:
    ask(FOX, key="mine", max_tokens=1)
    assert ask(FOX, key="yours", max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert ask(FOX, key="mine", max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_several_replies_are_those_of_several_seeds(ask: Callable[..., Any]) -> None:
    several = ask(FOX, seed=10, n=3, max_tokens=25)
    assert [words(several, n) for n in range(3)] == [words(ask(FOX, seed=10 + n, max_tokens=25)) for n in range(3)]
    assert len({words(several, n) for n in range(3)}) == 3
    assert several["usage"]["prompt_tokens"] == ask(FOX, max_tokens=1)["usage"]["prompt_tokens"]


def test_log_probabilities_are_the_models_own(ask: Callable[..., Any], gosling: Any) -> None:
    """Before penalties, temperature and cuts."""
    answer = ask(FOX, seed=6, max_tokens=12, temperature=2.0, presence_penalty=2.0, logprobs=True, top_logprobs=3,
                 return_token_ids=True)  # fmt: skip
    prompt, tokens = answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
    logits, _ = gosling.forward([*prompt, *tokens], every=True)
    x = logits.astype(np.float64)
    x -= np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) + x.max(1, keepdims=True)
    for n, score in enumerate(answer["choices"][0]["logprobs"]["content"]):
        row = x[len(prompt) + n - 1]
        assert score["logprob"] == pytest.approx(row[tokens[n]], abs=1e-6)
        assert [top["logprob"] for top in score["top_logprobs"]] == pytest.approx(sorted(row)[:-4:-1], abs=1e-6)
        assert bytes(score["bytes"]) == gosling.tokenizer.token_bytes(tokens[n])


def test_a_stop_text_is_not_told(ask: Callable[..., Any]) -> None:
    whole = words(ask(FOX, seed=1, max_tokens=40))
    stop = whole[10:16]
    answer = ask(FOX, seed=1, max_tokens=40, stop=[stop, "@@"], logprobs=True)
    assert words(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    told = "".join(score["token"] for score in answer["choices"][0]["logprobs"]["content"])
    assert stop not in told


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"regex": "(yes|no)"}, lambda text: text in ("yes", "no")),
        ({"grammar": 'root ::= "a" [0-9] "b"'}, lambda text: len(text) == 3 and text[0] + text[2] == "ab"),
        ({"grammar": 'start: "x" | "y"'}, lambda text: text in "xy"),
        ({"json_schema": {"enum": ["p", "q"]}}, lambda text: json.loads(text) in ("p", "q")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}}},
            lambda text: json.loads(text) in (True, False),
        ),
    ],
)
def test_a_reply_keeps_to_its_form(ask: Callable[..., Any], fields: dict[str, Any], allowed: Any) -> None:
    for stream in (False, True):
        answer = ask(FOX, seed=2, max_tokens=60, n=2, stream=stream, **fields)
        if stream:
            texts = ["", ""]
            for piece in answer:
                texts[piece["choices"][0]["index"]] += piece["choices"][0]["delta"].get("content", "")
        else:
            texts = [words(answer, n) for n in range(2)]
        assert all(map(allowed, texts)), texts


def test_roles_and_parts(ask: Callable[..., Any]) -> None:
    plain = ask({"role": "system", "content": "Be brief.\nAlways."}, {"role": "user", "content": FOX}, seed=1)
    parts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Always."}]
    assert (
        ask({"role": "developer", "content": parts}, {"role": "user", "content": FOX}, seed=1)["choices"]
        == plain["choices"]
    )


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "messages"),
        ({"model": "gpt-9"}, 404, None),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "1"}, 400, "temperature"),
        ({"top_p": 2}, 400, "top_p"),
        ({"n": 0}, 400, "n"),
        ({"n": 100}, 400, None),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**7}, 400, "max_tokens"),
        ({"stop": [""]}, 400, None),
        ({"stop": ["x"] * 17}, 400, None),
        ({"logit_bias": {"99999": 1}}, 400, None),
        ({"logit_bias": {"1": 101}}, 400, None),
        ({"top_logprobs": 21}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 20, "max_tokens": 50_000}, 400, "logprobs"),
        ({"repeat_penalty": 1.2}, 400, "repeat_penalty"),
        ({"functions": [{"name": "f"}]}, 400, "functions"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema.schema"),
        ({"regex": "a", "grammar": "b"}, 400, None),
        ({"regex": "("}, 400, None),
        ({"json_schema": {"frobnicate": 1}}, 400, None),
        ({"reasoning_effort": "high"}, 400, None),
        ({"chat_template_kwargs": {"messages": 1}}, 400, "chat_template_kwargs"),
    ],
)
def test_refusals(on_gosling: Here, fields: dict[str, Any], status: int, param: str | None) -> None:
    with on_gosling.client() as client:
        answer = client.post(ROUTE, json={"messages": [{"role": "user", "content": "Hi"}], **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert "\n" not in error["message"]
    if param:
        assert error["param"].startswith(param)


def test_neutral_and_unknown_fields_do_no_harm(ask: Callable[..., Any]) -> None:
    plain = ask(FOX, seed=1, max_tokens=5)
    more = {"repeat_penalty": 1.0, "service_tier": "auto", "store": False, "metadata": {"a": "b"}, "user": "me"}
    more |= {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}, "frob": [1]}
    assert ask(FOX, seed=1, max_tokens=5, **more)["choices"] == plain["choices"]


def test_a_prompt_that_is_too_long(serving: Callable[..., Here]) -> None:
    small = serving(max_prompt_tokens=50, template="world")
    assert asked(small, "x" * 60, status=400)["error"]["code"] == "context_length_exceeded"
    asked(small, "x" * 10, max_tokens=1)


def test_thoughts_stand_apart(serving: Callable[..., Here], tiny_v7: Any) -> None:
    model = puppet(tiny_v7, " <think>\nHm, so.\n</think>\nYes, I do.")
    server = serving(model, template="g1")
    for effort in ({}, {"reasoning_effort": "medium"}, {"chat_template_kwargs": {"enable_thinking": True}}):
        message = asked(server, "Do you?", **effort)["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm, so.", "Yes, I do.")
        pieces = [piece["choices"][0]["delta"] for piece in asked(server, "Do you?", stream=True, **effort)]
        assert "".join(piece.get("reasoning_content", "") for piece in pieces) == "Hm, so."
        assert "".join(piece.get("content", "") for piece in pieces) == "Yes, I do."


def test_a_jinja_template(serving: Callable[..., Here], tiny_v7: Any) -> None:
    """Its thoughts, and the tools that it has no form for."""
    source = (
        "{% for m in messages %}{{ {'user': 'User', 'assistant': 'Assistant', 'system': 'System'}[m.role] }}: "
        "{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:"
        "{% if enable_thinking %} <think>{% endif %}{% endif %}"
    )
    server = serving(puppet(tiny_v7, " <think>\nHm.\n</think>\n\nYes."), template=source)
    message = asked(server, "Hi", chat_template_kwargs={"enable_thinking": True})["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    limited = asked(server, "Hi", regex="a|b", return_token_ids=True)
    assert bytes(limited["prompt_token_ids"]).endswith(b"Assistant:")
    assert words(limited) in "ab"
    call = ' ```json\n{"name": "f", "arguments": {}}\n```'
    server = serving(puppet(tiny_v7, call), template=source)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert asked(server, "Hi", tools=tools)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"


@pytest.mark.parametrize(("effort", "mode"), [("none", "fake"), ("low", "short"), ("high", "long")])
def test_effort_is_the_templates_think_mode(serving: Callable[..., Here], effort: str, mode: str) -> None:
    server = serving(template="g1")
    answer = asked(server, "Hi", max_tokens=1, reasoning_effort=effort, return_token_ids=True)
    expected = BUILTIN["g1"].render([{"role": "user", "content": "Hi"}], think=mode)
    assert bytes(answer["prompt_token_ids"]).decode() == expected


def test_a_form_leaves_no_room_for_thoughts(serving: Callable[..., Here]) -> None:
    server = serving(template="g1")
    assert asked(server, "Hi", regex="a", reasoning_effort="high", status=400)["error"]["param"] == "reasoning_effort"
    answer = asked(server, "Hi", regex="a", return_token_ids=True)
    assert bytes(answer["prompt_token_ids"]).endswith(b"Assistant:")
    assert words(answer) == "a"


def test_a_fault_of_the_engine(serving: Callable[..., Here], tiny_v7: Any) -> None:
    """Before the first word it is a 500, later the last frame; the server goes on."""
    model = puppet(tiny_v7, " Yes, I do.")
    server = serving(model, template="world")
    step, left = model.runner.step, [3]

    def fails(rows: Any, states: Any, every: bool = False) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the secret reason")
        return step(rows, states, every)

    model.runner.step = fails  # type: ignore[method-assign]
    with server.client() as client:
        body = {"messages": [{"role": "user", "content": "Do you?"}], "stream": True}
        text = client.post(ROUTE, json=body).text
        left[0] = 0
        whole = client.post(ROUTE, json={**body, "stream": False, "messages": [{"role": "user", "content": "Else?"}]})
        left[0] = 10**6
        assert words(client.post(ROUTE, json={**body, "stream": False}).json()) == "Yes, I do."
    assert "[DONE]" not in text
    assert json.loads(text.strip().split("\n")[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert whole.status_code == 500
    assert "secret" not in text + whole.text


def test_a_client_that_goes_ends_its_reply(serving: Callable[..., Here]) -> None:
    server = serving(template="world")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900_000, "n": 2}
    with server.client() as client:
        with client.stream("POST", ROUTE, json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()  # which closes the answer when it is let go
            next(lines)
            assert server.service.engine.stats()["running"] == 2
        wait_for(lambda: server.service.engine.stats()["running"] == 0)
        with pytest.raises(httpx.ReadTimeout):
            client.post(ROUTE, json=body, timeout=httpx.Timeout(60, read=0.2))
        wait_for(lambda: server.service.engine.stats()["running"] == 0)
    assert server.service.engine.stats()["places"] == 0


def test_what_waits_for_a_slow_reader_is_bounded(serving: Callable[..., Here], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WAITING", 5000)
    server = serving(template="world")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900_000, "logprobs": True}
    body |= {"stream": True, "top_logprobs": 20}
    with server.client() as client, client.stream("POST", ROUTE, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        wait_for(lambda: server.service.engine.stats()["running"] == 0)
        assert server.service.engine.stats()["tokens_written"] < 100_000
        *_, last = filter(None, lines)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "slow_reader"


def test_no_room(serving: Callable[..., Here]) -> None:
    """A place and one that waits are taken: the third is refused before its stream begins."""
    server = serving(template="world", max_batch=1, max_waiting=1)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900_000, "stream": True}
    with server.client() as client:
        with client.stream("POST", ROUTE, json=body):
            waiting = threading.Thread(target=lambda: client.post(ROUTE, json={**body, "max_tokens": 1}))
            waiting.start()
            wait_for(lambda: server.service.engine.stats()["waiting"] == 1)
            for stream in (True, False):
                refused = client.post(ROUTE, json={**body, "stream": stream})
                assert refused.status_code == 429
                assert int(refused.headers["Retry-After"]) > 0
                assert refused.json()["error"]["type"] == "rate_limit_error"
        waiting.join(60)
        assert not waiting.is_alive()


def test_a_record_says_what_came_changed_and_left(serving: Callable[..., Here], tmp_path: Path, gosling: Any) -> None:
    server = serving(gosling, store=str(tmp_path), records=True)
    answers = [asked(server, FOX, seed=7, max_tokens=5, return_token_ids=True) for _ in range(2)]
    wait_for(
        lambda: (tmp_path / "records.jsonl").exists() and (tmp_path / "records.jsonl").read_text().count("\n") == 2
    )
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    prompt, tokens = answers[0]["prompt_token_ids"], answers[0]["choices"][0]["token_ids"]
    assert [record["entered"] for record in records] == [
        {"tokens": prompt, "cached": 0},
        {"tokens": [], "cached": len(prompt)},
    ]
    _, read = gosling.forward(prompt)
    _, after = gosling.forward(tokens, read)
    for record, before in zip(records, (gosling.state(), read), strict=True):
        assert record["left"] == {"tokens": tokens, "stop_reason": "length"}
        assert (record["route"], record["sampling"]["seed"]) == (ROUTE, 7)
        moved = (after.flat.astype(np.float64) - before.flat).reshape(gosling.config.n_layer, -1)
        assert record["changed"]["delta"] == pytest.approx(np.sqrt((moved**2).mean(1)).tolist())
