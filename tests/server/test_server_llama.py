"""Routes that llama.cpp's clients know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from serving import Here

from rookery import Sampling

PROMPT = "Once upon a time"
GREEDY = {"prompt": PROMPT, "n_predict": 12, "temperature": 0}


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling, alias="gosling, gpt-4.1") as made:
        yield made


def post(server: Here, path: str, status: int = 200, **body: Any) -> Any:
    with server.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def events(server: Here, **body: Any) -> list[dict[str, Any]]:
    with server.client() as client:
        text = client.post("/completion", json=body | {"stream": True}).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]


def test_a_completion_is_what_the_model_writes(on_gosling: Here, gosling: Any) -> None:
    found = post(on_gosling, "/completion", **GREEDY, return_tokens=True)
    stream = gosling.stream(PROMPT, 12, Sampling(temperature=0))
    assert found["content"] == "".join(stream)
    assert found["tokens"] == stream.tokens
    assert (found["stop"], found["stop_type"], found["truncated"]) == (True, "limit", False)
    assert (found["tokens_predicted"], found["tokens_evaluated"]) == (12, len(gosling.tokenizer.encode(PROMPT)))
    assert (found["prompt"], found["generation_settings"]["temperature"]) == (PROMPT, 0)


def test_events_are_the_same_token_by_token(on_gosling: Here) -> None:
    whole = post(on_gosling, "/completion", **GREEDY, return_tokens=True, n_probs=3)
    *pieces, last = events(on_gosling, **GREEDY, n_probs=3)
    assert "".join(piece["content"] for piece in [*pieces, last]) == whole["content"]
    assert [token for piece in pieces for token in piece["tokens"]] == whole["tokens"]
    assert [each for piece in pieces for each in piece["completion_probabilities"]] == whole["completion_probabilities"]
    assert [piece["stop"] for piece in pieces] == [False] * 12
    assert last["stop"] is True
    for token, probable in zip(whole["tokens"], whole["completion_probabilities"], strict=True):
        assert (probable["id"], len(probable["top_logprobs"])) == (token, 3)
        assert probable["top_logprobs"][0]["id"] == token  # greedy: the likeliest


def test_it_says_what_stopped_it(on_gosling: Here) -> None:
    whole = post(on_gosling, "/completion", **GREEDY)["content"]
    stop = whole.split()[2]
    found = post(on_gosling, "/completion", **GREEDY, stop=["never written", stop])
    assert (found["stop_type"], found["stopping_word"]) == ("word", stop)
    assert found["content"] == whole[: whole.index(stop)]


def test_prompts_are_said_in_many_ways(on_gosling: Here, gosling: Any) -> None:
    ids = gosling.tokenizer.encode(PROMPT)
    one = post(on_gosling, "/completion", **GREEDY)["content"]
    for prompt in (ids, [*ids[:2], gosling.tokenizer.decode(ids[2:])], {"prompt_string": PROMPT}):
        assert post(on_gosling, "/completion", **GREEDY | {"prompt": prompt})["content"] == one
    both = post(on_gosling, "/completion", **GREEDY | {"prompt": [ids, PROMPT]})
    assert [(each["index"], each["content"]) for each in both] == [(0, one), (1, one)]


@pytest.mark.parametrize("banned", [-100, False])
def test_a_bias_may_be_pairs(on_gosling: Here, banned: Any) -> None:
    first = post(on_gosling, "/completion", **GREEDY, return_tokens=True)["tokens"][0]
    assert (
        post(on_gosling, "/completion", **GREEDY, return_tokens=True, logit_bias=[[first, banned]])["tokens"][0]
        != first
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1 << 20]}, "no token"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": "AAAA"}}, "multimodal_data"),
        ({"prompt": {"content": [{"type": "image_url"}]}}, "read text alone"),
        ({"prompt": ["a", "b"], "stream": True}, "stream"),
        ({"prompt": "a", "n_predict": -2}, "n_predict"),
        ({"prompt": "a", "n_predict": 10**9}, "at most"),
        ({"prompt": "a", "post_sampling_probs": True}, "post_sampling_probs"),
        ({"prompt": "a", "logit_bias": [[1]]}, "logit_bias"),
    ],
)
def test_refusals(on_gosling: Here, body: dict[str, Any], says: str) -> None:
    assert says in post(on_gosling, "/completion", 400, **body)["error"]["message"]


def test_embedding_is_that_of_embeddings(on_gosling: Here) -> None:
    theirs = post(on_gosling, "/embedding", content=["Hello.", "Good day."])
    ours = post(on_gosling, "/v1/embeddings", input=["Hello.", "Good day."])["data"]
    assert [(each["index"], each["embedding"][0]) for each in theirs] == [
        (each["index"], each["embedding"]) for each in ours
    ]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_talks_tokens_are_counted(on_gosling: Here, prefix: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    counted = post(on_gosling, f"{prefix}/chat/completions/input_tokens", messages=messages)["input_tokens"]
    answered = post(on_gosling, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert counted == answered["usage"]["prompt_tokens"]


def test_every_name_of_the_model_is_its_own(on_gosling: Here) -> None:
    for name in ("gosling", "gpt-4.1"):
        assert post(on_gosling, "/v1/completions", model=name, prompt="a", max_tokens=1)["model"] == "gosling"
    assert post(on_gosling, "/v1/completions", 404, model="gpt", prompt="a")["error"]["code"] == "model_not_found"
    with on_gosling.client() as client:
        (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["aliases"]) == ("gosling", ["gosling", "gpt-4.1"])


def test_the_first_token_costs_no_writing(on_gosling: Here) -> None:
    alone = post(on_gosling, "/completion", **GREEDY | {"n_predict": 1})["timings"]
    assert (alone["predicted_n"], alone["predicted_per_second"], alone["predicted_per_token_ms"]) == (1, 0, 0)
    many = post(on_gosling, "/completion", **GREEDY)["timings"]
    assert many["predicted_per_second"] == pytest.approx(11 / many["predicted_ms"] * 1000)
