"""Adapters and states as model ids: each answers as alone, in the same engine, and talks stay with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FIXTURES, Here

import rookery
from adapters_made import adapter
from rookery import Model, State
from rookery.errors import AdapterError, InputError, StateError
from rookery.store import beginning
from rookery.weights.adapters import file

PROMPT = "Then she went to the"
BEFORE = "Tom has a red ball. He likes to play with the ball in the park. "


class Family:
    """A base, two adapters of it and a state, as files and as models by their ids."""

    def __init__(self, base: Model, folder: Path) -> None:
        self.base = base
        paths = {name: str(folder / f"{name}.safetensors") for name in ("one", "two", "begun", "both")}
        for seed, name in enumerate(("one", "two")):
            file.write(paths[name], adapter(base.weights, seed=seed))
        self.models = {"gosling": base, "one": base.adapted(paths["one"]), "two": base.adapted(paths["two"])}
        before = base.tokenizer.encode(BEFORE)
        _, begun = base.forward(before)
        _, both = self.models["one"].forward(before)
        begun.save(paths["begun"])
        both.save(paths["both"])
        self.models |= {"begun": base, "both": self.models["one"]}
        self.initial: dict[str, State | None] = {"begun": begun, "both": both}
        self.settings = {
            "adapters": {name: [paths[name]] for name in ("one", "two")},
            "states": {name: paths[name] for name in ("begun", "both")},
        }

    def text(self, id: str, prompt: str = PROMPT, tokens: int = 12, **settings: Any) -> str:
        return self.models[id].generate(prompt, tokens, state=self.initial.get(id), temperature=0, **settings)


@pytest.fixture(scope="module")
def family(gosling: Any, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(gosling, tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def server(family: Family) -> Iterator[Here]:
    with Here(family.base, **family.settings) as made:
        yield made


def asked(server: Here, route: str, **body: Any) -> Any:
    with server.client() as client:
        return client.post(route, json=body)


def test_the_list_names_them_all(server: Here, family: Family) -> None:
    client = server.openai()
    cards = {card.id: card.model_dump() for card in client.models.list()}
    assert list(cards) == list(family.models)
    for id, model in family.models.items():
        assert cards[id]["meta"]["fingerprint"] == model.weights.fingerprint
        assert cards[id]["parent"] == (None if id == "gosling" else "gosling")
        assert client.models.retrieve(id).id == id


def test_each_answers_as_alone_side_by_side(server: Here, family: Family) -> None:
    expected = {id: family.text(id) for id in family.models}
    assert len(set(expected.values())) == len(expected)

    def ask(id: str) -> Any:
        return server.openai().completions.create(model=id, prompt=PROMPT, max_tokens=12, temperature=0)

    ids = 3 * list(family.models)  # the second time much of the prompt is known
    with ThreadPoolExecutor(len(ids)) as pool:
        answers = list(pool.map(ask, ids))
    for id, answer in zip(ids, answers, strict=True):
        assert (answer.model, answer.choices[0].text) == (id, expected[id])
    assert len({answer.system_fingerprint for answer in answers}) == len(family.models)


def test_every_route_knows_the_ids(server: Here, family: Family) -> None:
    messages = [{"role": "user", "content": "hello"}]
    prompt = server.service.template.render(messages)
    for id in family.models:
        chat = asked(server, "/v1/chat/completions", model=id, messages=messages, max_tokens=6, temperature=0).json()
        wanted = family.text(id, prompt, 6, stop=server.service.template.stops)
        assert (chat["model"], chat["choices"][0]["message"]["content"].strip()) == (id, wanted.strip())
        llama = asked(server, "/completion", model=id, prompt=PROMPT, n_predict=12, temperature=0).json()
        assert (llama["model"], llama["content"]) == (id, family.text(id))
        assert asked(server, "/tokenize", model=id, content="hello").status_code == 200
    vectors = {}
    for pooling in ("mean", "state"):
        for id in family.models:
            made = asked(server, "/v1/embeddings", model=id, input="hello", pooling=pooling).json()
            vectors[pooling, id] = tuple(made["data"][0]["embedding"])
            assert made["model"] == id
    for id in family.models:
        made = asked(server, "/embedding", model=id, content="hello").json()
        assert tuple(made[0]["embedding"][0]) == vectors["mean", id]
    assert len(set(vectors.values())) == len(vectors)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/completion", {"prompt": "x"}),
        ("/embedding", {"content": "x"}),
        ("/tokenize", {"content": "x"}),
    ],
)
def test_an_unknown_id_is_404(server: Here, route: str, body: dict[str, Any]) -> None:
    answer = asked(server, route, model="three", **body)
    assert answer.status_code == 404
    assert "'gosling' and 'one' and 'two'" in answer.json()["error"]["message"]


def said(server: Here, what: str, **body: Any) -> Any:
    answer = asked(server, "/v1/responses", input=what, max_output_tokens=6, temperature=0, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_talk_stays_with_its_model(server: Here, family: Family) -> None:
    for id, model in family.models.items():
        first = said(server, "one", model=id)
        second = said(server, "two", previous_response_id=first["id"])
        assert said(server, "two", previous_response_id=first["id"], model=id)["model"] == id
        with server.client() as client:
            assert client.get(f"/v1/responses/{second['id']}").json()["model"] == second["model"] == id
        talk = rookery.Session(model, server.service.template, state=family.initial.get(id))
        for what, answer in (("one", first), ("two", second)):
            assert talk.say(what, 6).text == "".join(i["content"][0]["text"] for i in answer["output"])
        for other in family.models.keys() - {id}:
            body = {"previous_response_id": second["id"], "model": other}
            answer = asked(server, "/v1/responses", input="x", **body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_changed")
            assert f"held with {id!r}" in answer.json()["error"]["message"]


def test_states_go_out_and_come_in_to_their_models(server: Here, family: Family) -> None:
    for id in ("gosling", "one", "both"):
        state = said(server, "one", model=id)["rookery"]["state"]
        with server.client() as client:
            data = client.get(f"/v1/states/{state}/export").content
            back = client.post("/v1/states", content=data).json()["id"]
            assert client.get(f"/v1/states/{back}/export").content == data
        answer = said(server, "go on", previous_response_id=back)
        assert answer["model"] == {"gosling": "gosling", "one": "one", "both": "one"}[id]


def test_stored_talks_after_a_restart(family: Family, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with Here(family.base, store=store, **family.settings) as first:
        ids = {id: said(first, "one", model=id)["id"] for id in family.models}
        expected = {id: said(first, "two", previous_response_id=ids[id])["output"] for id in ids}
    with Here(family.base, store=store, **family.settings) as again:
        for id in ids:
            answer = said(again, "two", previous_response_id=ids[id])
            assert answer["model"] == id
            assert [i["content"] for i in answer["output"]] == [i["content"] for i in expected[id]]
    with Here(family.base, store=store) as alone:
        assert said(alone, "two", previous_response_id=ids["gosling"])["model"] == "gosling"
        for id, words in (("begun", "the state that this talk began with is lost"), ("one", "another model")):
            answer = asked(alone, "/v1/responses", input="two", previous_response_id=ids[id])
            assert answer.status_code == 400
            assert words in answer.json()["error"]["message"]


def test_a_state_of_the_server_is_not_kept_for_each_talk(family: Family, serving: Callable[..., Here]) -> None:
    server = serving(family.base, **family.settings)
    talk = said(server, "one", model="begun")["rookery"]["state"]
    kept = server.service.store
    with server.client() as client:
        data = client.get(f"/v1/states/{talk}/export").content
        client.post("/v1/states", content=data)
    begun = [beginning(listed.name) for listed, _ in kept.talks()]
    assert len(begun) == 2
    assert [kept.get(key) is not None for key in begun] == [True, False]  # the last used first: what came in is kept


def test_a_state_that_all_begin_with(family: Family, serving: Callable[..., Here]) -> None:
    path = family.settings["states"]["begun"]
    server = serving(family.base, state=path)
    answer = asked(server, "/v1/completions", prompt=PROMPT, max_tokens=12, temperature=0).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("gosling", family.text("begun"))
    assert said(server, "one", model="gosling")["model"] == "gosling"


def test_a_wrong_start_says_what_is_wrong(family: Family, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    file.write(other, adapter(rookery.load(FIXTURES / "v6.safetensors").weights))
    damaged = family.base.state()
    damaged.flat[:] = np.float32(3e38)
    damaged.save(tmp_path / "damaged.state")
    begun, one = family.settings["states"]["begun"], family.settings["adapters"]["one"]
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"adapters": {"x": [str(other)]}}, AdapterError, "made for another model"),
        ({"adapters": {"gosling": one}}, InputError, "two models cannot both be called 'gosling'"),
        ({"adapters": {"x": one}, "states": {"x": begun}}, InputError, "both be called 'x'"),
        ({"states": {"x": family.settings["states"]["both"]}}, StateError, "another model"),
        ({"states": {"x": str(tmp_path / "damaged.state")}}, StateError, "it is damaged"),
    ]
    for settings, kind, words in wrong:
        from rookery.server.run import listen
        from rookery.server.settings import Settings

        server = listen(Settings(port=0, **settings), lambda: family.base, lambda _: None)
        with pytest.raises(kind, match=words):
            server.run()
