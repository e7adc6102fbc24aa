"""/v1/embeddings against what the model computes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import FIXTURES, Here

import rookery

TEXTS = ["The fox went into the wood.", "A king had three daughters.", "The fox went into the wood."]


@pytest.fixture(scope="module")
def on_gosling(gosling: Any) -> Iterator[Here]:
    with Here(gosling) as made:
        yield made


def asked(server: Here, given: Any, status: int = 200, **fields: Any) -> Any:
    with server.client() as client:
        answer = client.post("/v1/embeddings", json={"input": given, **fields})
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors(answer: Any) -> Any:
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return np.array([each["embedding"] for each in answer["data"]])


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("length", [1, 30, 600])
def test_mean_of_what_the_last_layer_gives(on_gosling: Here, gosling: Any, length: int) -> None:
    tokens = (gosling.tokenizer.encode(TEXTS[0]) * 100)[:length]
    point = f"layers.{gosling.config.n_layer - 1}.resid"
    with gosling.trace(point) as trace:
        gosling.forward(tokens)
    expected = unit(np.asarray(trace[point], np.float64).reshape(length, -1).mean(0))
    [vector] = vectors(asked(on_gosling, tokens))
    assert np.abs(vector - expected).max() < 1e-6


def test_many_texts_are_each_alone(on_gosling: Here) -> None:
    answer = asked(on_gosling, TEXTS)
    found = vectors(answer)
    assert (found[0] == found[2]).all()
    assert (found[0] == vectors(asked(on_gosling, TEXTS[0]))[0]).all()
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    assert found[0] @ found[1] < 0.999
    counts = [asked(on_gosling, text)["usage"]["prompt_tokens"] for text in TEXTS]
    assert answer["usage"] == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}


def test_forms_of_input(on_gosling: Here, gosling: Any) -> None:
    tokens = gosling.tokenizer.encode(TEXTS[0])
    expected = vectors(asked(on_gosling, TEXTS[0]))[0]
    for given in (tokens, [tokens], [TEXTS[0], tokens]):
        assert (vectors(asked(on_gosling, given)) == expected).all()
    first, rest = tokens[:2], gosling.tokenizer.decode(tokens[2:])
    parts = [{"type": "text", "text": TEXTS[0][:9]}, {"type": "text", "text": TEXTS[0][9:]}]
    for given in ([*first, rest], [[*first, rest], "x"], {"prompt_string": TEXTS[0]}, [{"content": parts}]):
        assert (vectors(asked(on_gosling, given))[0] == expected).all()
    assert (vectors(asked(on_gosling, ""))[0] == vectors(asked(on_gosling, [0]))[0]).all()


def test_base64(on_gosling: Here) -> None:
    [coded] = asked(on_gosling, TEXTS[0], encoding_format="base64")["data"]
    found = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")
    assert (found == vectors(asked(on_gosling, TEXTS[0]))[0].astype(np.float32)).all()


@pytest.mark.parametrize("version", ["v4", "v6", "v7"])
def test_what_the_state_holds(version: str) -> None:
    model = rookery.load(FIXTURES / f"{version}.safetensors", tokenizer="bytes", threads=1)
    _, state = model.forward(list(TEXTS[0].encode()))
    layers = []
    for n in range(model.config.n_layer):
        wkv = state.layer(n).wkv.astype(np.float64)
        if version == "v4":
            layers.append(wkv[0] / wkv[1])
        else:
            layers.append(np.concatenate([head.sum(0) / len(head) for head in wkv]))
    with Here(model) as server:
        [vector] = vectors(asked(server, TEXTS[0], pooling="state"))
        other = vectors(asked(server, TEXTS[1], pooling="state"))[0]
    assert vector.shape == (model.config.n_layer * model.config.n_embd,)
    assert np.abs(vector - unit(np.concatenate(layers))).max() < 1e-6
    assert np.abs(vector - other).max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {"given": []},
        {"given": [[]]},
        {"given": [5000]},
        {"given": {"a": 1}},
        {"given": {"content": "a"}},
        {"given": {"content": [{"type": "image_url"}]}},
        {"given": [1, [2]]},
        {"given": [True]},
        {"given": "a", "dimensions": 8},
        {"given": "a", "encoding_format": "hex"},
        {"given": "a", "pooling": "last"},
        {"given": ["a"] * 1025},
    ],
)
def test_refusals(on_gosling: Here, fields: dict[str, Any]) -> None:
    assert asked(on_gosling, status=400, **fields)["error"]["type"] == "invalid_request_error"


def test_more_texts_than_places(on_gosling: Here) -> None:
    found = vectors(asked(on_gosling, [f"Text {n} of many." for n in range(100)]))
    assert len({row.tobytes() for row in found}) == 100
