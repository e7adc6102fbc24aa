"""Tokens, templates and the model's description, in the shapes of llama.cpp and vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import Here

from rookery import chat

TEXT = "The fox said: “Wait!”"


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling) as made:
        yield made


def post(server: Here, path: str, status: int = 200, **body: Any) -> Any:
    with server.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def get(server: Here, path: str, status: int = 200) -> Any:
    with server.client() as client:
        answer = client.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_as_llama_cpp(on_gosling: Here, gosling: Any) -> None:
    tokens = gosling.tokenizer.encode(TEXT)
    assert post(on_gosling, "/tokenize", content=TEXT) == {"tokens": tokens}
    assert post(on_gosling, "/tokenize", content=TEXT, add_special=True) == {"tokens": tokens}
    assert post(on_gosling, "/tokenize", content="") == {"tokens": []}
    pieces = post(on_gosling, "/tokenize", content=TEXT, with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == tokens
    assert any(isinstance(piece["piece"], list) for piece in pieces)
    assert b"".join(as_bytes(piece["piece"]) for piece in pieces).decode() == TEXT
    assert post(on_gosling, "/detokenize", tokens=tokens)["content"] == TEXT


def as_bytes(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def test_as_vllm(on_gosling: Here, gosling: Any) -> None:
    tokens = gosling.tokenizer.encode(TEXT)
    answer = post(on_gosling, "/tokenize", prompt=TEXT, add_special_tokens=False, return_token_strs=True)
    assert answer["tokens"] == tokens
    assert answer["count"] == len(tokens)
    assert answer["max_model_len"] == on_gosling.service.settings.max_prompt_tokens
    assert len(answer["token_strs"]) == len(tokens)
    assert post(on_gosling, "/detokenize", tokens=tokens)["prompt"] == TEXT


def test_lm_eval_finds_the_end_of_text(on_gosling: Here, gosling: Any) -> None:
    info = get(on_gosling, "/tokenizer_info")
    assert info["vocab_size"] == gosling.tokenizer.vocab_size
    for name in ("eos_token", "bos_token", "pad_token"):
        assert post(on_gosling, "/tokenize", prompt=info[name], add_special_tokens=False)["tokens"] == [0]
    content = post(on_gosling, "/tokenize", content=info["eos_token"])["tokens"]
    assert gosling.tokenizer.decode(content) == info["eos_token"]


def test_without_an_end_of_text(serving: Callable[..., Here]) -> None:
    assert get(serving(), "/tokenizer_info")["eos_token"] is None


def test_a_talk_is_written_as_its_template_does(on_gosling: Here, gosling: Any) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    template = chat.load(None, gosling.weights.metadata)
    text = template.render(talk)
    assert post(on_gosling, "/apply-template", messages=talk) == {"prompt": text}
    assert post(on_gosling, "/tokenize", messages=talk)["tokens"] == gosling.tokenizer.encode(text)
    bare = template.render(talk, reply=False)
    assert post(on_gosling, "/apply-template", messages=talk, add_generation_prompt=False) == {"prompt": bare}


def test_a_jinja_template_is_told(serving: Callable[..., Here]) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}assistant:"
    server = serving(template=source)
    assert get(server, "/tokenizer_info")["chat_template"] == source
    assert get(server, "/props")["chat_template"] == source
    talk = [{"role": "user", "content": "Hi"}]
    assert post(server, "/apply-template", messages=talk) == {"prompt": "user: Hi\n\nassistant:"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": "a", "prompt": "b"}),
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"messages": []}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [4096]}),
        ("/detokenize", {"tokens": "abc"}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_refusals(on_gosling: Here, path: str, body: dict[str, Any]) -> None:
    assert "message" in post(on_gosling, path, status=400, **body)["error"]


def test_the_model(on_gosling: Here, gosling: Any) -> None:
    [card] = get(on_gosling, "/v1/models")["data"]
    assert card == get(on_gosling, "/v1/models/gosling") == get(on_gosling, "/models")["data"][0]
    assert (card["id"], card["object"]) == ("gosling", "model")
    meta = card["meta"]
    assert (meta["n_params"], meta["n_vocab"]) == (gosling.weights.parameters, gosling.config.n_vocab)
    assert meta["fingerprint"] == gosling.weights.fingerprint
    assert meta["size"] > gosling.weights.parameters
    assert get(on_gosling, "/v1/models/other", status=404)["error"]["code"] == "model_not_found"
    assert get(on_gosling, "/props")["total_slots"] == on_gosling.service.settings.max_batch


def test_an_alias_is_the_models_name(serving: Callable[..., Here]) -> None:
    server = serving(alias="house/bird")
    assert get(server, "/v1/models/house/bird")["id"] == "house/bird"
    assert post(server, "/tokenize", model="house/bird", content="a")["tokens"] == [97]
    assert post(server, "/tokenize", model="v7", content="a", status=404)
