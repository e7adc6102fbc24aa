"""States that come and go as files: they come back the same to the bit, and what a stranger sends is checked hard."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FIXTURES

import rookery
from rookery import State, errors, formats
from rookery import store as stores
from rookery.formats import Tensor
from rookery.server import state_files, talk_ids
from rookery.server.talks import Talks
from rookery.store.memory import Memory

VERSIONS = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7")


def tiny(version: str) -> rookery.Model:
    return rookery.load(FIXTURES / f"{version}.safetensors", tokenizer="bytes", threads=1)


def answered(talks: Talks, id: str, text: str = "Hello") -> tuple[str, str]:
    session = talks.open("me", id)
    reply = session.say(text, 20)
    return reply.text, talk_ids.response(session.name, str(reply.id))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_state_goes_on_as_the_talk_does(version: str, tmp_path: Path) -> None:
    model = tiny(version)
    with stores.open(tmp_path / "talks.db", half=True) as store:
        talks = Talks(model, store)
        session = talks.begin("me", template=rookery.chat.load("world"))
        _ = session.say("Hello", 20).text
        state = session.state
        data = talks.export("me", talk_ids.of(session))
        (tmp_path / "x.safetensors").write_bytes(data)
        assert State.load(tmp_path / "x.safetensors", model).vector().tobytes() == state.vector().tobytes()
        id = talks.import_("me", data, title="imported")
        assert talks.list("me", limit=1)[0].title == "imported"
        assert talks.export("me", id) == data
        first, response = answered(talks, id)
    with stores.open(tmp_path / "talks.db") as store:  # after a restart
        talks = Talks(model, store)
        assert answered(talks, talks.rewind("me", id))[0] == first
        second = answered(talks, response, "more")[0]
        whole = rookery.Session(model, talks.open("me", id).template, state=state)
        assert [whole.say(text, 20).text for text in ("Hello", "more")] == [first, second]


def test_the_beginning_of_a_talk_is_never_evicted(tiny_v7: Any) -> None:
    state = tiny_v7.forward([1, 2, 3])[1]
    data = state_files.encode(state)
    store = Memory(budget=8 * len(data))
    talks = Talks(tiny_v7, store, budget=0)
    id = talks.import_("me", data)
    for n in range(20):
        _ = talks.begin("me").say(f"{n}" * 80, 3).text
    assert store.stats()["evicted"] > 10
    assert Talks(tiny_v7, store).state("me", id).vector().tobytes() == state.vector().tobytes()
    more: list[str] = []

    def fill() -> None:
        while len(more) < 100:
            more.append(talks.import_("me", data))

    with pytest.raises(errors.StoreError, match="leaves no room"):
        fill()
    assert len(more) > 5
    assert len(talks.list("me", limit=1000)) == 1 + 20 + len(more)  # without the one for which there was no room
    talks.delete("me", more[0])
    assert talks.open("me", talks.import_("me", data)).turns == []  # there is room again
    assert talks.open("me", id).turns == []


# what a stranger may send


@pytest.fixture
def sent(tiny_v7: Any, tmp_path: Path) -> Callable[..., bytes]:
    """sent(change): a state's file, with its tensors and metadata changed."""

    def make(change: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> bytes:
        path = tmp_path / "state.safetensors"
        tiny_v7.forward([1, 2, 3])[1].save(path)
        file = formats.read(path)
        tensors, metadata = dict(file.tensors), dict(file.metadata)
        change(tensors, metadata)
        formats.write(tmp_path / "changed.safetensors", tensors, metadata)
        return (tmp_path / "changed.safetensors").read_bytes()

    return make


NAME = "layers.0.att_shift"


def altered(value: float) -> Callable[..., None]:
    def change(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
        array = tensors[NAME].array().copy()
        array[0] = value
        tensors[NAME] = Tensor.of(array)

    return change


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (altered(np.nan), errors.StateError, "not finite"),
        (altered(np.inf), errors.StateError, "not finite"),
        (lambda t, m: m.pop("rookery.kind"), errors.StateError, "holds no state"),
        (lambda t, m: m.update({"rookery.kind": "snapshot"}), errors.StateError, "holds no state"),
        (lambda t, m: m.pop("rookery.fingerprint"), errors.StateError, "another model"),
        (lambda t, m: m.update({"rookery.fingerprint": "0" * 64}), errors.StateError, "another model"),
        (lambda t, m: t.pop(NAME), errors.StateError, "another model"),
        (lambda t, m: t.update({"more": t[NAME]}), errors.StateError, "another model"),
        (lambda t, m: t.update({NAME: Tensor.of(np.zeros(3, np.float32))}), errors.StateError, "another model"),
        (lambda t, m: t.update({NAME: Tensor.of(np.zeros(12, np.int64))}), errors.StateError, "another model"),
        (lambda t, m: t.update({NAME: Tensor.of(np.zeros((12, 1), np.float32))}), errors.StateError, "another model"),
    ],
)
def test_a_forged_state_is_refused(
    sent: Callable[..., bytes], tiny_v7: Any, change: Any, error: type[Exception], what: str
) -> None:
    assert state_files.decode(sent(lambda t, m: None), tiny_v7)[1].vector().tobytes()
    store = Memory()
    with pytest.raises(error, match=what) as found:
        Talks(tiny_v7, store).import_("me", sent(change))
    assert "\n" not in str(found.value)
    assert store.talks() == []
    assert store.stats()["snapshots"] == 0


@pytest.mark.parametrize("said", [{"n_layer": 10**9}, {"n_head": 0}, {"version": "9"}, [], 7, {"n_embd": -1}])
def test_what_a_file_says_of_its_model_is_not_believed(sent: Callable[..., bytes], tiny_v7: Any, said: Any) -> None:
    def change(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["rookery.config"])
        metadata["rookery.config"] = json.dumps(config | said if isinstance(said, dict) else said)

    honest = state_files.decode(sent(lambda t, m: None), tiny_v7)[1]
    assert state_files.decode(sent(change), tiny_v7)[1].vector().tobytes() == honest.vector().tobytes()


def test_bytes_that_are_no_file_are_refused(sent: Callable[..., bytes], tiny_v7: Any, gosling: Any) -> None:
    good = sent(lambda t, m: None)
    draw = np.random.default_rng(1)
    wrong = [
        b"",
        b"{",
        b"x" * 100,
        good[:-1],
        good[:100],
        good + b"\0",
        (2**63).to_bytes(8, "little") + good[8:],
        b"\xff" * 8 + b"{" + good[9:],
        pickle.dumps({"a": 1}) + b"{" * 20,
        b"PK\3\4" + b"\0" * 4 + b"{" * 100,
        b"GGUF" + b"\0" * 4 + b"{" * 100,
        (2).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"{" * 10,
        good + b" " * state_files.largest(tiny_v7),
        state_files.encode(gosling.state()),
        *(draw.integers(0, 256, 300, np.uint8).tobytes() for _ in range(20)),
    ]
    for data in wrong:
        with pytest.raises((errors.FileError, errors.StateError)) as found:
            state_files.decode(data, tiny_v7)
        assert "\n" not in str(found.value)
        assert "/" not in str(found.value)
    for at in range(0, len(good), max(1, len(good) // 300)):  # a flipped byte anywhere is an error or another number
        data = bytearray(good)
        data[at] ^= 0x41
        try:
            _, found_ = state_files.decode(bytes(data), tiny_v7)
        except (errors.FileError, errors.StateError):
            continue
        assert np.isfinite(found_.flat).all()


def test_the_largest_file_is_larger_than_any_state(tiny_v7: Any, gosling: Any) -> None:
    for model in (tiny_v7, gosling):
        assert len(state_files.encode(model.state())) < state_files.largest(model)
