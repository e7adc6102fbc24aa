"""Talk files: what is saved comes back whole; what is damaged, newer or another model's is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from talks import SAID, SAMPLINGS, VERSIONS, gosling, same, tiny

from rookery import Session, errors, formats
from rookery.formats import Tensor
from rookery.store.memory import Memory


@pytest.fixture
def talk() -> Session:
    made = Session(tiny(), "world", SAMPLINGS["seeded"], seed=3, name="a talk")
    for text in SAID:
        _ = made.say(text, max_tokens=10).text
    made.branch("aside").rewind(1).say("Or else?", max_tokens=10).settle()
    return made


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_and_loaded_goes_on_exactly(version: str, tmp_path: Path) -> None:
    model = tiny(version)
    talk = Session(model, "world", SAMPLINGS["seeded"], seed=3, system="Be brief.")
    for text in SAID[:3]:
        _ = talk.say(text, max_tokens=10).text
    talk.save(tmp_path / "x.talk")
    loaded = Session.load(tmp_path / "x.talk", model, sampling=SAMPLINGS["seeded"])
    same(loaded, talk)
    assert loaded._tree.read_tokens == 0  # the saved state was taken over
    assert loaded.say(SAID[3], max_tokens=10).text == talk.say(SAID[3], max_tokens=10).text
    same(loaded, talk)


def test_all_branches_come_along(talk: Session, tmp_path: Path) -> None:
    talk.save(tmp_path / "x.talk")
    store = Memory()
    loaded = Session.load(tmp_path / "x.talk", tiny(), store)
    assert store.heads("a talk") == talk._tree.store.heads("a talk")
    aside = Session.resume(store, "a talk", tiny(), head="aside")
    assert [turn.user for turn in aside.turns] == [*SAID[:3], "Or else?"]
    drawn = [(depth, turn.id, heads) for depth, turn, heads, _ in loaded.tree()]
    assert drawn == [(depth, turn.id, heads) for depth, turn, heads, _ in talk.tree()]


def test_a_name_that_is_taken_gets_a_number(talk: Session, tmp_path: Path) -> None:
    talk.save(tmp_path / "x.talk")
    store = Memory()
    names = [Session.load(tmp_path / "x.talk", tiny(), store).name for _ in range(3)]
    assert names == ["a talk", "a talk-2", "a talk-3"]


def test_a_talk_before_its_first_turn(tmp_path: Path) -> None:
    Session(tiny(), "world", system="Be kind.").save(tmp_path / "x.talk")
    loaded = Session.load(tmp_path / "x.talk", tiny())
    assert loaded.turns == []
    assert loaded.system == "Be kind."
    same(loaded, Session(tiny(), "world", system="Be kind.", seed=loaded.settings["seed"]))


def test_a_state_of_ones_own_comes_along(tmp_path: Path) -> None:
    _, start = tiny().forward([1, 2, 3])
    talk = Session(tiny(), "world", state=start)
    _ = talk.say("x", max_tokens=5).text
    talk.save(tmp_path / "x.talk")
    loaded = Session.load(tmp_path / "x.talk", tiny())
    same(loaded.rewind(), talk.rewind())
    assert np.array_equal(loaded.state.vector(), start.vector())


def test_another_models_talk_is_refused(talk: Session, tmp_path: Path) -> None:
    talk.save(tmp_path / "x.talk")
    for model in (tiny("v6"), gosling()):
        with pytest.raises(errors.StateError, match=r"x.talk: was held with another model than .*; open it with that"):
            Session.load(tmp_path / "x.talk", model)


def test_no_byte_can_be_cut_off_or_turned_unnoticed(talk: Session, tmp_path: Path) -> None:
    path = tmp_path / "x.talk"
    talk.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in [0, 1, 7, 8, 100, *rng.integers(0, len(data), 20).tolist(), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(errors.FileError, match=r"x\.talk"):
            Session.load(path, tiny())
    survived = 0
    for at in rng.integers(0, len(data), 200).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.integers(8))]) + data[at + 1 :])
        try:
            loaded = Session.load(path, tiny())
        except (errors.FileError, errors.StateError):
            continue
        same(loaded, talk)  # the state was hit: it is read anew from the tokens
        survived += 1
    assert 0 < survived < 200


def rewritten(path: Path, **metadata: str) -> None:
    file = formats.read(path)
    formats.write(path, dict(file.tensors), file.metadata | metadata, format="safetensors")


def test_a_newer_file_says_so(talk: Session, tmp_path: Path) -> None:
    path = tmp_path / "x.talk"
    talk.save(path)
    rewritten(path, **{"rookery.schema": "2"})
    with pytest.raises(errors.NewerFile, match=r"was written by a later Rookery .*; update this one"):
        Session.load(path, tiny())


def test_what_is_no_talk(tmp_path: Path) -> None:
    tiny().state().save(tmp_path / "state.safetensors")
    with pytest.raises(errors.UnknownFormat, match="is not a talk saved by Rookery"):
        Session.load(tmp_path / "state.safetensors", tiny())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.pop("head"),
        lambda text: text["heads"].update({"main": "0" * 32}),
        lambda text: text["heads"].update({"../up": None}),
        lambda text: text["nodes"].pop(0),
        lambda text: text["nodes"].append([1]),
        lambda text: text.update(nodes=7),
        lambda text: text.update(talk="{}"),
    ],
)
def test_json_that_does_not_hold_together(talk: Session, tmp_path: Path, change: object) -> None:
    path = tmp_path / "x.talk"
    talk.save(path)
    file = formats.read(path)
    text = json.loads(file.tensors["talk"].data.tobytes())
    change(text)  # type: ignore[operator]
    tensors = dict(file.tensors) | {"talk": Tensor.of(np.frombuffer(json.dumps(text).encode(), np.uint8))}
    formats.write(path, tensors, file.metadata, format="safetensors")
    with pytest.raises(errors.DamagedFile, match="is a damaged talk"):
        Session.load(path, tiny())
