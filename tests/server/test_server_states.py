"""/v1/states: talks as a tree of turns, forked, rewound, measured, taken out and brought in again."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import Here, wait_for
from talking import GREEDY, ask, text_of

import rookery
from rookery import Session, State
from rookery.server.service import READERS

UNKNOWN = "0" * 32


@pytest.fixture
def client(server: Here) -> Any:
    with server.client() as made:
        yield made


def get(client: httpx.Client, path: str, **params: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/states{path}", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/states{path}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    said: str = answer.json()["error"]["message"]
    return said


def talk(client: httpx.Client, *texts: str) -> tuple[str, list[dict[str, Any]]]:
    """The state's id and the turns of a new talk."""
    said: list[dict[str, Any]] = []
    for text in texts:
        said.append(ask(client, text, said[-1]["id"] if said else None, max_output_tokens=8, **GREEDY))
    return said[0]["rookery"]["state"], said


def exported(client: httpx.Client, id: str, folder: Path, model: Any, **params: Any) -> State:
    answer = client.get(f"/v1/states/{id}/export", params=params)
    assert answer.status_code == 200, answer.text
    path = folder / "exported.safetensors"
    path.write_bytes(answer.content)
    return State.load(path, model)


def test_a_state_shows_its_tree_of_turns(client: httpx.Client) -> None:
    state, said = talk(client, "One.", "Two.", "Three.")
    other = ask(client, "Two again.", said[0]["id"], max_output_tokens=4)
    known = get(client, f"/{state}")
    assert known["id"] == state
    turns = {turn["id"]: turn for turn in known["turns"]}
    assert [turns[each["id"]]["parent"] for each in (*said, other)] == [
        None, said[0]["id"], said[1]["id"], said[0]["id"],
    ]  # fmt: skip
    assert turns[said[0]["id"]]["text"] == "One."
    assert turns[said[0]["id"]]["stop_reason"] == "length"
    assert known["heads"]["main"] == said[2]["id"]
    assert other["id"] in known["heads"].values()


def test_states_are_listed_the_newest_first_page_by_page(server: Here) -> None:
    with server.client(headers={"authorization": "Bearer lister"}) as client:
        assert get(client, "")["data"] == []
        states = [talk(client, f"Talk {n}.")[0] for n in range(5)][::-1]
        page = get(client, "", limit=2)
        assert [each["id"] for each in page["data"]] == states[:2]
        assert page["has_more"]
        page = get(client, "", limit=3, after=page["last_id"])
        assert [each["id"] for each in page["data"]] == states[2:]
        assert not page["has_more"]
        assert page["data"][-1]["title"] == "Talk 0."
        refused(client.get("/v1/states", params={"limit": 0}), 400)
        refused(client.get("/v1/states", params={"after": f"state_{UNKNOWN}"}), 404)


def test_a_fork_goes_on_alone(client: httpx.Client, tiny_v7: Any, tmp_path: Path) -> None:
    state, said = talk(client, "One.", "Two.")
    fork = post(client, f"/{state}/fork", at=said[0]["id"], name="other")["id"]
    assert fork == f"{state}.other"
    there = ask(client, "Elsewhere.", fork, max_output_tokens=8, **GREEDY)
    here = ask(client, "Here.", state, max_output_tokens=8, **GREEDY)
    truth = Session(tiny_v7)
    truth.say("One.", 8).text  # noqa: B018
    branch = truth.branch()
    assert text_of(there) == branch.say("Elsewhere.", 8).text
    truth.say("Two.", 8).text  # noqa: B018
    assert text_of(here) == truth.say("Here.", 8).text
    for id, session in ((fork, branch), (state, truth)):
        assert exported(client, id, tmp_path, tiny_v7).vector().tobytes() == session.state.vector().tobytes()
    known = get(client, f"/{state}")["heads"]
    assert (known["main"], known["other"]) == (here["id"], there["id"])
    refused(client.post(f"/v1/states/{state}/fork", json={"name": "other"}), 400)
    for name in ("../x", ".x", "a/b", ""):
        refused(client.post(f"/v1/states/{state}/fork", json={"name": name}), 400)


def test_rewound_is_as_if_it_had_never_been_said(client: httpx.Client, tiny_v7: Any) -> None:
    state, said = talk(client, "One.", "Two.", "Three.")
    assert post(client, f"/{state}/rewind", turns=2)["at"] == said[0]["id"]
    again = ask(client, "Two.", state, max_output_tokens=8, **GREEDY)
    assert text_of(again) == text_of(said[1])
    assert again["id"] != said[1]["id"]
    refused(client.post(f"/v1/states/{state}/rewind", json={"turns": 3}), 400)
    assert post(client, f"/{state}/rewind", turns=2)["at"] is None
    first = ask(client, "One.", state, max_output_tokens=8, **GREEDY)
    assert text_of(first) == text_of(said[0])


def test_a_deleted_talk_is_gone_with_all_its_turns(client: httpx.Client) -> None:
    state, said = talk(client, "One.", "Two.")
    answer = client.delete(f"/v1/states/{state}")
    assert answer.json() == {"id": state, "object": "state", "deleted": True}
    refused(client.get(f"/v1/states/{state}"), 404)
    refused(client.delete(f"/v1/states/{state}"), 404)
    for each in said:
        refused(client.get(f"/v1/responses/{each['id']}"), 404)
        refused(client.post("/v1/responses", json={"input": "On.", "previous_response_id": each["id"]}), 404)


def test_a_state_can_be_taken_out_at_any_turn_and_brought_in(
    client: httpx.Client, tiny_v7: Any, tmp_path: Path
) -> None:
    state, said = talk(client, "One.", "Two.")
    truth = Session(tiny_v7)
    for text, each in zip(("One.", "Two."), said, strict=True):
        truth.say(text, 8).text  # noqa: B018
        found = exported(client, state, tmp_path, tiny_v7, at=each["id"])
        assert found.vector().tobytes() == truth.state.vector().tobytes()
    answer = client.get(f"/v1/states/{state}/export")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{state}.safetensors"'
    brought = client.post("/v1/states", content=answer.content)
    assert brought.status_code == 200, brought.text
    on = ask(client, "On.", brought.json()["id"], max_output_tokens=8, **GREEDY)
    begun = Session(tiny_v7, state=truth.state)
    assert text_of(on) == begun.say("On.", 8).text
    assert text_of(ask(client, "And on.", on["id"], max_output_tokens=8, **GREEDY)) == begun.say("And on.", 8).text


def hostile(tiny_v7: Any, folder: Path) -> dict[str, bytes]:
    path = folder / "made.safetensors"
    state = tiny_v7.forward([1, 2, 3])[1]
    state.save(path)
    good = path.read_bytes()
    state.flat[5] = np.nan
    state.save(path)
    other = rookery.load(Path(__file__).parents[1] / "fixtures" / "v6.safetensors", tokenizer="bytes")
    broken = path.read_bytes()
    state.flat[...] = 1e38
    state.save(path)
    huge = path.read_bytes()
    other.state().save(path)
    return {
        "nothing": b"",
        "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "cut": good[:-1],
        "longer": good + b"x",
        "a huge header": (2**62).to_bytes(8, "little") + good[8:],
        "not finite": broken,
        "beyond all measure": huge,
        "another model's": path.read_bytes(),
    }


@pytest.mark.parametrize(
    "what",
    ["nothing", "a pickle", "cut", "longer", "a huge header", "not finite", "beyond all measure", "another model's"],
)
def test_what_is_no_state_of_this_model_is_refused(
    client: httpx.Client, tiny_v7: Any, tmp_path: Path, what: str
) -> None:
    said = refused(client.post("/v1/states", content=hostile(tiny_v7, tmp_path)[what]), 400)
    assert str(tmp_path) not in said
    assert "\n" not in said


def test_the_summary_measures_every_layer_in_finite_numbers(client: httpx.Client, tiny_v7: Any) -> None:
    state, _ = talk(client, "One.")
    truth = Session(tiny_v7)
    truth.say("One.", 8).text  # noqa: B018
    summary = get(client, f"/{state}/summary")
    assert len(summary["layers"]) == tiny_v7.config.n_layer
    for n, layer in enumerate(summary["layers"]):
        wkv = truth.state.layer(n).wkv.astype(np.float64)
        assert layer["wkv"]["norm"] == pytest.approx(np.sqrt((wkv**2).sum()))
        assert layer["wkv"]["delta"] == pytest.approx(truth.state.diff(tiny_v7.state())[f"layers.{n}.wkv"])
        assert 1 <= layer["wkv"]["effective_rank"] <= wkv.shape[-1]
        numbers = [number for piece in layer.values() for number in piece.values()]
        assert all(number is None or math.isfinite(number) for number in numbers)


def test_nobody_sees_what_is_anothers(server: Here) -> None:
    with server.client(headers={"authorization": "Bearer mine"}) as mine:
        state, (said,) = talk(mine, "Mine.")
        data = mine.get(f"/v1/states/{state}/export").content
    with server.client(headers={"authorization": "Bearer other"}) as other:
        assert get(other, "")["data"] == []
        unknown = []
        for id, response in ((state, said["id"]), (f"state_{UNKNOWN}", f"resp_{UNKNOWN}{UNKNOWN}")):
            answers = [
                other.get(f"/v1/states/{id}"),
                other.get(f"/v1/states/{id}/summary"),
                other.get(f"/v1/states/{id}/export"),
                other.post(f"/v1/states/{id}/fork", json={}),
                other.post(f"/v1/states/{id}/rewind", json={}),
                other.delete(f"/v1/states/{id}"),
                other.get(f"/v1/responses/{response}"),
                other.get(f"/v1/responses/{response}/input_items"),
                other.post(f"/v1/responses/{response}/cancel"),
                other.delete(f"/v1/responses/{response}"),
                other.post("/v1/responses", json={"input": "x", "previous_response_id": response}),
                other.post("/v1/responses", json={"input": "x", "previous_response_id": id}),
            ]
            assert [answer.status_code for answer in answers] == [404] * len(answers)
            said_of = [answer.json()["error"] | {"param": None} for answer in answers]
            unknown.append(json.dumps(said_of).replace(id, "ID").replace(response, "ID"))
        assert unknown[0] == unknown[1]  # not even that it is there
        assert other.post("/v1/states", content=data).status_code == 200  # a file is whoever has it


@pytest.mark.parametrize(
    "id", ["x", "state_", f"state_{UNKNOWN}x", "state_../../etc/passwd", "resp_", "%00", "state_é"]
)
def test_an_id_that_is_none_is_not_found(client: httpx.Client, id: str) -> None:
    for path in (f"/v1/states/{id}", f"/v1/responses/{id}"):
        assert client.get(path).status_code == 404
    answer = client.post("/v1/responses", json={"input": "x", "previous_response_id": id})
    assert answer.status_code == 404, answer.text


def test_states_that_are_read_anew_leave_threads_for_others(tiny_v7: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Here(tiny_v7) as here, ThreadPoolExecutor(60) as pool, here.client() as client:
        id, go_on = ask(client, "hello")["rookery"]["state"], threading.Event()
        state, waiting = here.service.talks.state, []

        def slow(*given: Any) -> State:
            waiting.append(given)
            go_on.wait(60)
            return state(*given)

        monkeypatch.setattr(here.service.talks, "state", slow)
        kinds = ("summary", "export") * 30  # more than there are threads
        asked = [pool.submit(httpx.get, f"{here.url}/v1/states/{id}/{kind}", timeout=60) for kind in kinds]
        wait_for(lambda: len(waiting) == READERS and requests(here) == len(kinds))
        assert client.post("/tokenize", json={"content": "hello"}, timeout=20).status_code == 200
        assert len(waiting) == READERS
        go_on.set()
        assert {each.result().status_code for each in asked} == {200}


def requests(here: Here) -> float:
    return here.service.metrics.registry.get_sample_value("rookery_requests_in_flight") or 0
