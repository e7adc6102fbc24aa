"""/v1/completions: what lm-eval asks is what the model computes; many prompts are each alone."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import Here

ROUTE = "/v1/completions"
TEXT = "Once upon a time there was a fox who lived in the wood, and the fox had a brother."


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling) as made:
        yield made


def asked(server: Here, prompt: Any = TEXT, status: int = 200, **fields: Any) -> Any:
    with server.client() as client:
        answer = client.post(ROUTE, json={"prompt": prompt, **fields})
    assert answer.status_code == status, answer.text
    if not fields.get("stream") or status != 200:
        return answer.json()
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def log_softmax(logits: Any) -> Any:
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("length", [2, 17, 300])
def test_echoed_tokens_have_the_models_log_probabilities(on_gosling: Here, gosling: Any, length: int) -> None:
    """As lm-eval asks: token ids, echo, one token more."""
    tokens = (gosling.tokenizer.encode(TEXT) * 20)[:length]
    answer = asked(on_gosling, tokens, echo=True, logprobs=2, max_tokens=1, temperature=0)
    [choice] = answer["choices"]
    columns = choice["logprobs"]
    expected = log_softmax(gosling.forward(tokens, every=True)[0])
    assert {len(column) for column in columns.values()} == {length + 1}
    assert (columns["token_logprobs"][0], columns["top_logprobs"][0]) == (None, None)
    rows = np.arange(length - 1)
    assert columns["token_logprobs"][1:-1] == pytest.approx(expected[rows, tokens[1:]], abs=1e-6)
    assert columns["token_logprobs"][-1] == pytest.approx(expected[-1].max(), abs=1e-6)
    names = [gosling.tokenizer.decode([token]) for token in tokens]
    for n, top in enumerate(columns["top_logprobs"][1:-1]):
        greedy = max(top, key=top.get) == names[n + 1]
        assert greedy == (expected[n].argmax() == tokens[n + 1])
    assert columns["tokens"][:-1] == names
    assert columns["text_offset"][:-1] == np.cumsum([0, *map(len, names[:-1])]).tolist()
    assert choice["text"] == gosling.tokenizer.decode(tokens) + columns["tokens"][-1]


def test_echo_without_a_token_more(on_gosling: Here) -> None:
    full = asked(on_gosling, echo=True, logprobs=0, max_tokens=1, temperature=0)["choices"][0]
    none = asked(on_gosling, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert none["text"] == TEXT
    assert none["finish_reason"] == "length"
    assert none["logprobs"] == {name: column[:-1] for name, column in full["logprobs"].items()}


def test_offsets_begin_behind_a_prompt_that_is_not_told(on_gosling: Here) -> None:
    for stream in (False, True):
        answer = asked(on_gosling, logprobs=0, max_tokens=5, temperature=0, stream=stream)
        choices = [piece["choices"][0] for piece in (answer if stream else [answer])]
        offsets = [at for choice in choices if choice["logprobs"] for at in choice["logprobs"]["text_offset"]]
        names = [name for choice in choices if choice["logprobs"] for name in choice["logprobs"]["tokens"]]
        assert offsets == (len(TEXT) + np.cumsum([0, *map(len, names[:-1])])).tolist()


def test_half_characters_are_bytes(on_gosling: Here, gosling: Any) -> None:
    columns = asked(on_gosling, "é", echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
    assert len(gosling.tokenizer.encode("é")) == 2
    assert columns["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_it_goes_on_as_the_model_does(on_gosling: Here, gosling: Any) -> None:
    stream = gosling.stream(TEXT, 30, seed=3, temperature=1.2)
    expected = "".join(stream)
    tokens = gosling.tokenizer.encode(TEXT)
    for prompt in (TEXT, tokens, [TEXT], [tokens]):
        answer = asked(on_gosling, prompt, max_tokens=30, seed=3, temperature=1.2, return_token_ids=True)
        assert answer["choices"][0]["text"] == expected
        assert answer["choices"][0]["token_ids"] == stream.tokens
        assert answer["choices"][0]["prompt_token_ids"] == tokens


@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts_are_each_alone(on_gosling: Here, stream: bool) -> None:
    prompts = [TEXT[: 5 + 3 * n] for n in range(20)]
    fields = {"max_tokens": 7, "seed": 9, "logprobs": 1, "echo": True}
    several = asked(on_gosling, prompts, n=2, stream=stream, **fields)
    texts, reasons = [""] * 40, [None] * 40
    offsets: list[list[int]] = [[] for _ in range(40)]
    for answer in several if stream else [several]:
        for choice in answer["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
            offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    for n in (0, 7, 19):
        for k in range(2):
            [alone] = asked(on_gosling, prompts[n], **{**fields, "seed": 9 + k})["choices"]
            assert texts[2 * n + k] == alone["text"]
            assert reasons[2 * n + k] == alone["finish_reason"]
            assert offsets[2 * n + k] == alone["logprobs"]["text_offset"]


def test_a_stop_text_and_what_was_likely_before_it(on_gosling: Here) -> None:
    whole = asked(on_gosling, max_tokens=40, seed=2)["choices"][0]["text"]
    stop = whole[20:25]
    for stream in (False, True):
        answer = asked(on_gosling, max_tokens=40, seed=2, stop=stop, logprobs=0, stream=stream)
        choices = [piece["choices"][0] for piece in (answer if stream else [answer])]
        assert "".join(choice["text"] for choice in choices) == whole[: whole.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"
        told = "".join(name for choice in choices if choice["logprobs"] for name in choice["logprobs"]["tokens"])
        assert stop not in told


def test_an_empty_prompt_is_the_beginning_of_a_text(on_gosling: Here, gosling: Any) -> None:
    expected = gosling.generate([0], 10, seed=1)
    assert asked(on_gosling, "", max_tokens=10, seed=1)["choices"][0]["text"] == expected


def test_what_is_asked_twice_is_read_once(on_gosling: Here) -> None:
    prompt = "A tale that nobody has told before, of a king and his three daughters."
    cold, warm = (asked(on_gosling, prompt, seed=1, logprobs=2, max_tokens=20) for _ in range(2))
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] == warm["usage"]["prompt_tokens"]
    assert warm["choices"] == cold["choices"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [4096]}, "token"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"n_predict": 5}, "n_predict"),
        ({"logprobs": 20, "max_tokens": 50_000}, "logprobs"),
        ({"prompt": [[5] * 60_000], "logprobs": 20, "echo": True, "stream": True}, "logprobs"),
    ],
)
def test_refusals(on_gosling: Here, fields: dict[str, Any], word: str) -> None:
    answer = asked(on_gosling, status=400, **fields)
    assert word in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
def test_prompts_that_wait_hold_no_grammar_of_their_own(tiny_v7: Any, monkeypatch: Any, path: str) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Free:
        complete = False

        def __init__(self) -> None:
            nonlocal most
            alive.add(self)
            most = max(most, len(alive))

        def allowed(self) -> Any:
            return np.ones(tiny_v7.config.n_vocab, np.bool_)

        def accept(self, token: int) -> None:
            pass

        def copy(self) -> Free:
            return Free()

    for module in ("completions", "llama"):
        monkeypatch.setattr(f"rookery.server.{module}.compiler", lambda *_: Free())
    with Here(tiny_v7, max_batch=2) as here, here.client() as client:
        asked = {"prompt": ["a"] * 60, "max_tokens": 3, "regex": "a"}
        assert client.post(path, json=asked).status_code == 200
    assert 2 < most < 20
