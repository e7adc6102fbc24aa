"""A reply that another computes: what it is told to read and write is what the session does by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from talks import SAID, SAMPLINGS, VERSIONS, gosling, same, tiny

import rookery
from rookery import Session, errors
from rookery.session.reply import Reply
from rookery.session.tree import Place, Point
from rookery.store.memory import Memory


def compute(reply: Reply, model: Any, most: int = 1000) -> str:
    """What an engine does, in threads of its own; ends it after so many tokens. The text as a person sees it."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = reader.submit(reply.prepare).result()
        (logits, state), at = reading.point, 0
        for end in sorted({*(mark for mark, _ in reading.marks), len(reading.tokens)} - {0}):
            logits, state = model.forward(reading.tokens[at:end], state)
            at = end
            if end in dict(reading.marks):
                reply.passed(end, Point(logits, state))
        draft = reader.submit(reply.draft).result()
        assert logits is not None
        shown = ""
        while draft.stop_reason is None:
            shown += reply.show(draft.draw(logits))
            draft.remember(logits, state)
            logits, state = model.forward(draft.tokens[-1], state)
            if len(draft.tokens) >= most:
                draft.end("cancelled")
        shown += reply.show(draft.end("length"))
        point = (logits, state) if draft.kept == len(draft.tokens) else draft.remembered()
        writer.submit(reply.close, draft.stop_reason, draft, point).result()
    return shown


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("version", VERSIONS)
def test_computed_elsewhere_is_computed_here(version: str, sampling: str) -> None:
    model, stores = tiny(version), (Memory(), Memory())
    here, there = (
        Session(model, "world", SAMPLINGS[sampling], kept, seed=5, name="t", system="Be brief. " * 9) for kept in stores
    )
    for text in SAID:
        mine, other = here.say(text, 12), there.say(text, 12)
        shown = compute(other, model)
        assert shown == mine.text == other.text
        assert mine.tokens == other.tokens
        assert (mine.stop_reason, mine.prompt_tokens, mine.known_tokens) == (
            other.stop_reason, other.prompt_tokens, other.known_tokens,
        )  # fmt: skip
    same(here, there)
    assert stores[0]._payloads == stores[1]._payloads


def test_a_stop_text_is_cut_off_wherever_it_is_computed() -> None:
    here, there = Session(gosling(), seed=1), Session(gosling(), seed=1)
    for text in ("Hello", "Tell me a story."):
        shown = compute(there.say(text, 60, stop=["you", "was"]), gosling())
        reply = here.say(text, 60, stop=["you", "was"])
        assert shown == reply.text
        assert reply.stop_reason == "stop"
    same(here, there)
    assert "you" not in here.turns[0].reply


def test_cut_short_elsewhere_it_goes_on_as_if_it_had_not_been() -> None:
    whole, cut = (Session(tiny(), "world", SAMPLINGS["seeded"], seed=3) for _ in range(2))
    once = whole.say("x", 30).text
    assert once.startswith(compute(cut.say("x", 30), tiny(), most=9))
    assert cut.turns[0].stop_reason == "cancelled"
    compute(cut.proceed(21), tiny())
    same(cut, whole)


def test_a_cut_reply_goes_on_to_its_own_stop_text() -> None:
    whole, cut = (Session(gosling(), seed=1) for _ in range(2))
    once = whole.say("Hello", 60, stop=["you"])
    _ = cut.say("Hello", 2, stop=["you"]).text
    assert cut.proceed(58).text == once.text
    assert once.stop_reason == cut.turns[0].stop_reason == "stop"
    same(cut, whole)


class Still:
    """A model that must not compute."""

    def __init__(self, model: rookery.Model) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *args: Any, **more: Any) -> Any:
        raise AssertionError("it computes")


def test_planning_and_closing_compute_nothing() -> None:
    store = Memory()
    talk = Session(tiny(), "world", store=store, name="t")
    for text in SAID:
        _ = talk.say(text, 5).text
    resumed = Session.resume(store, "t", Still(tiny()))  # type: ignore[arg-type]
    store._payloads.clear()
    reply = resumed.say("more", 5)
    reading = reply.prepare()
    assert reading.tokens == [*talk.tokens, *reading.tokens[len(talk.tokens) :]]
    draft = reply.draft()
    draft.draw(tiny().forward(reading.tokens)[0])
    reply.close("cancelled", draft, None)
    assert len(Session.resume(store, "t", tiny()).turns) == 5


def test_a_closed_reply_is_not_closed_again() -> None:
    talk = Session(tiny(), "world")
    reply = talk.say("x", 3)
    reading = reply.prepare()
    draft = reply.draft()
    draft.draw(tiny().forward(reading.tokens)[0])
    reply.close("cancelled", draft, None)
    with pytest.raises(errors.InputError, match="ended already"):
        reply.close("end", draft, None)
    assert reply.text == talk.turns[0].reply
    assert len(talk.turns) == 1


def test_one_reading_leads_through_all_turns_whose_states_are_gone() -> None:
    store = Memory()
    talk = Session(tiny(), "world", SAMPLINGS["seeded"], store, name="t", seed=2)
    for text in SAID:
        _ = talk.say(text, 9).text
    tree, here = talk._tree, Place(talk.at)
    line = tree.path(talk.at)
    states = {node.id: talk.state_at(node.id).vector().tobytes() for node in line}
    for known in range(len(line)):  # the state at this turn alone is left
        tree._live.clear()
        for key in [*store._payloads]:
            if key != line[known].key:
                store._drop(key)
        reading = tree.plan(here, ())
        rest = [token for node in line[known + 1 :] for token in node.tokens]
        assert reading.tokens == rest
        assert [place.id for _, place in reading.turns] == [node.id for node in line[known + 1 :]]
        assert all(prefix.count == len(talk.tokens) - len(rest) + n for n, prefix in reading.marks)
        assert tree.follow(reading).state.vector().tobytes() == states[str(talk.at)]
        for node in line[known + 1 :]:
            held = tree._live.get(Place(node.id))
            assert held is not None
            assert held.state.vector().tobytes() == states[node.id]
        assert store.has(line[-1].key)
        for node in line[: known + 2]:  # a state for the next round
            store.put(node.key, tree.snapshot(tree.point(Place(node.id)), 1))


# several messages in one turn


def message(role: str, content: str) -> Any:
    return {"role": role, "content": content}


HISTORY = [
    message("system", "You are a goose."),
    message("user", "Hello"),
    message("assistant", "Honk."),
    message("user", "And now?"),
]


def test_a_history_as_the_first_turn_is_read_as_the_template_writes_it() -> None:
    talk = Session(gosling(), "world")
    reply = talk.say(HISTORY, 20)
    assert reply.text
    text = talk.template.render(HISTORY)
    assert gosling().tokenizer.decode(talk.tokens).startswith(text)
    assert talk.tokens[: reply.prompt_tokens] == list(gosling().tokenizer.encode(text))
    (turn,) = talk.turns
    assert (turn.role, turn.user) == ("user", "You are a goose.\n\nHello\n\nHonk.\n\nAnd now?")
    assert [*turn.messages] == HISTORY
    _ = talk.say("Go on.", 20).text
    assert [pair["content"] for pair in talk._messages(talk.at)][:4] == [m["content"] for m in HISTORY]


def test_what_is_said_in_parts_is_what_is_said_at_once() -> None:
    """A talk of two turns, and one whose first turn is given: the same text, and so the same reply."""
    turns = Session(gosling())
    first = turns.say("Hello", 40).text
    given = Session(gosling())
    said = [message("user", "Hello"), message("assistant", first), message("user", "Tell me more.")]
    assert given.say(said, 30).text == turns.say("Tell me more.", 30).text
    text = gosling().tokenizer.decode(turns.tokens)
    assert gosling().tokenizer.decode(given.tokens) == text


def test_several_messages_go_on_from_what_was_read() -> None:
    talk, alone = Session(gosling(), "g1"), Session(gosling(), "g1")
    first = talk.say("Hello " * 30, 20).text
    said = [message("tool", '{"result": 1}'), message("tool", '{"result": 2}'), message("user", "So?")]
    reply = talk.say(said, 20)
    assert reply.text == alone.say([message("user", "Hello " * 30), message("assistant", first), *said], 20).text
    assert reply.read_tokens < 60 < reply.known_tokens
    assert gosling().tokenizer.decode(talk.tokens).count("Function output:") == 2
    assert [turn.role for turn in talk.turns] == ["user", "user"]


def test_a_turn_of_several_messages_is_saved_resumed_and_retried(tmp_path: Path) -> None:
    talk = Session(gosling(), "world", SAMPLINGS["seeded"], tmp_path / "x.db", name="t", seed=1)
    _ = talk.say(HISTORY, 9).text
    talk.save(tmp_path / "x.talk")
    for other in (Session.load(tmp_path / "x.talk", gosling()), Session.resume(tmp_path / "x.db", "t", gosling())):
        assert [*other.turns[0].messages] == HISTORY
        cut = other.proceed(5)
        assert cut.text
        assert [*other.turns[0].messages] == HISTORY
        said = other.turns[0].messages
        assert other.rewind().say(said, 9).text == talk.turns[0].reply


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ([], "nothing was said"),
        (7, "takes a text, or a list of messages, not int"),
        (["x"], "takes a text, or a list of messages, not list"),
        ({"role": "user", "content": "x"}, "takes a text, or a list of messages, not dict"),
        ([message("user", "x"), message("assistant", "y")], "the last word is the assistant's"),
        ([message("user", "x"), message("nobody", "y")], "message 2: wanted a content that is text, and a role"),
        ([{"role": "user", "content": None}], "message 1: wanted a content that is text"),
        ([{"content": "x"}], "message 1: wanted"),
    ],
)
def test_what_cannot_be_said_is_one_line(said: Any, what: str) -> None:
    with pytest.raises(errors.InputError, match=what):
        Session(tiny(), "world").say(said)


# owners, notes, tools, beginnings


def test_owners_share_no_state_and_know_their_talks_again(tmp_path: Path) -> None:
    store, system = Memory(), "You are a goose. " * 30
    read = {}
    for name, owner in (("a", "me"), ("b", "me"), ("c", "you"), ("d", "")):
        talk = Session(gosling(), store=store, system=system, name=name, owner=owner)
        reply = talk.say("Hello", 5)
        read[name] = reply.text and reply.read_tokens
        assert Session.resume(store, name, gosling()).owner == talk.owner == owner
        talk.save(tmp_path / "x.talk")
        assert Session.load(tmp_path / "x.talk", gosling()).owner == owner
    assert read["b"] < read["a"] == read["c"] == read["d"]


def test_a_talk_of_before_owners_has_none() -> None:
    talk = Session(tiny(), "world")
    said = json.loads(talk._tree.talk.settings)
    del said["owner"], said["title"]
    old = type(talk._tree.talk)(**{**vars(talk._tree.talk), "settings": json.dumps(said)})
    store = Memory()
    store.create(old)
    assert Session.resume(store, old.name, tiny()).owner == ""


def test_other_tools_are_another_text(tmp_path: Path) -> None:
    talk = Session(gosling(), "g1", tools=["f(x)"], think="off", store=tmp_path / "x.db", name="t")
    _ = talk.say("Hello", 9).text
    resumed = Session.resume(tmp_path / "x.db", "t", gosling())
    resumed.tools = ["g(y)"]
    _ = resumed.say("And now?", 9).text
    text = gosling().tokenizer.decode(resumed.tokens)
    assert "g(y)" in text
    assert "f(x)" not in text
    assert Session.resume(tmp_path / "x.db", "t", gosling()).tools == ["g(y)"]
    assert resumed.rewind().settings["tools"] == ["f(x)"]


def test_a_note_is_kept_with_its_turn(tmp_path: Path) -> None:
    talk = Session(tiny(), "world", store=tmp_path / "x.db", name="t")
    _ = talk.say("x", 2, note={"by": ["whom", 1]}).text
    _ = talk.proceed(2).text
    assert [turn.note for turn in talk.turns] == [{"by": ["whom", 1]}]
    assert Session.resume(tmp_path / "x.db", "t", tiny()).turns[0].note == {"by": ["whom", 1]}
    for wrong in ({"x": float("nan")}, {"x": object()}, [1]):
        with pytest.raises(errors.InputError, match="note: wanted a JSON object"):
            talk.say("x", 2, note=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("half", [False, True])
def test_a_state_that_a_talk_began_with_is_found_again(half: bool, tmp_path: Path) -> None:
    start = tiny().forward([1, 2, 3])[1]
    with rookery.store.open(tmp_path / "x.db", half=half) as kept:
        talk = Session(tiny(), "world", store=kept, name="t", state=start)
        first = talk.say("x", 9).text
        again: Callable[[], Session] = lambda: Session.resume(kept, "t", tiny()).rewind()  # noqa: E731
        assert again().say("x", 9).text == first
        Session.resume(kept, "t", tiny()).save(tmp_path / "x.talk")
        loaded = Session.load(tmp_path / "x.talk", tiny(), kept)
        assert Session.resume(kept, loaded.name, tiny()).rewind().say("x", 9).text == first
        kept.remove("t")
        kept.remove(loaded.name)
        assert kept.stats()["snapshots"] == 0


def test_a_talk_that_has_lost_its_beginning_says_so() -> None:
    store, start = Memory(), tiny().forward([1, 2, 3])[1]
    _ = Session(tiny(), "world", store=store, name="t", state=start).say("x", 3).text
    store._payloads.clear()
    with pytest.raises(errors.StateError, match="began with another state; give that one"):
        Session.resume(store, "t", tiny())
    assert Session.resume(store, "t", tiny(), state=start).turns
