"""Session: going on, going back, branching, and that none of it changes a bit of what is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from talks import BACKENDS, SAID, SAMPLINGS, VERSIONS, gosling, same, tiny

import rookery
from rookery import Session, errors

RESUME = """
import sys
import rookery
backend, model, store, sampling, template = sys.argv[1:6]
from talks import SAMPLINGS
model = rookery.load(model, backend=backend, tokenizer=None if model == "gosling" else "bytes")
talk = rookery.Session.resume(store, "talk", model, sampling=SAMPLINGS[sampling])
for text in sys.argv[6:]:
    talk.say(text, max_tokens=12).text
print(talk.state.vector().tobytes().hex()[:64], *talk.tokens)
"""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def talk_of(model: rookery.Model, said: tuple[str, ...] = SAID, sampling: str = "greedy", **more: object) -> Session:
    talk = Session(model, "world", SAMPLINGS[sampling], seed=5, **more)  # type: ignore[arg-type]
    for text in said:
        _ = talk.say(text, max_tokens=12).text
    return talk


def test_a_talk_with_the_packaged_model() -> None:
    talk = Session(gosling())
    reply = talk.say("Hello", max_tokens=60)
    pieces = list(reply)
    assert "".join(pieces) == reply.text
    assert len(pieces) > 1
    assert reply.text
    assert not reply.text.startswith(" ")
    assert "\n\n" not in reply.text
    assert reply.stop_reason == "stop"
    assert [(t.user, t.reply, t.stop_reason) for t in talk.turns] == [("Hello", reply.text, "stop")]


def test_the_state_is_that_of_all_tokens(version: str) -> None:
    talk = talk_of(tiny(version), sampling="seeded")
    _, state = tiny(version).forward(talk.tokens)
    assert np.array_equal(talk.state.vector(), state.vector())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_stopped_and_resumed_in_a_new_process_is_never_stopped(
    version: str, backend: str, sampling: str, tmp_path: Path
) -> None:
    whole = talk_of(tiny(version, backend), sampling=sampling)
    talk_of(tiny(version, backend), SAID[:2], sampling, store=tmp_path / "talks.db", name="talk")
    path = str(tiny(version, backend).weights.path)
    args = [backend, path, str(tmp_path / "talks.db"), sampling, "world", *SAID[2:]]
    out = subprocess.run(
        [sys.executable, "-c", RESUME, *args], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    ).stdout.split()
    assert out[0] == whole.state.vector().tobytes().hex()[:64]
    assert [*map(int, out[1:])] == whole.tokens


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_reply_cut_and_gone_on_with_is_one_that_was_not(version: str, sampling: str) -> None:
    whole = talk_of(tiny(version), SAID[:1], sampling)
    once = whole.say(SAID[1], max_tokens=30)
    cut = talk_of(tiny(version), SAID[:1], sampling)
    parts = [cut.say(SAID[1], max_tokens=7)]
    shown = parts[0].text
    for more in (1, 13, 9):
        parts.append(cut.proceed(more))
        shown = parts[-1].text
    assert shown == once.text
    assert [token for part in parts for token in part.tokens] == once.tokens
    same(cut, whole)
    assert len(cut.turns) == 2


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rewound_is_a_fresh_run_of_that_history(version: str, sampling: str) -> None:
    talk = talk_of(tiny(version), sampling=sampling)
    for n in range(len(SAID), -1, -1):
        other = talk.branch()
        other.rewind(n)
        same(other, talk_of(tiny(version), SAID[: len(SAID) - n], sampling))
        _ = other.say("Something else.", max_tokens=9).text
        fresh = talk_of(tiny(version), SAID[: len(SAID) - n], sampling)
        _ = fresh.say("Something else.", max_tokens=9).text
        same(other, fresh)
    same(talk, talk_of(tiny(version), sampling=sampling))


def test_branches_do_not_hear_each_other() -> None:
    talk = talk_of(gosling(), SAID[:2])
    other = talk.branch("other")
    a, b = talk.say("Tell me a story.", max_tokens=20).text, other.say("Good night.", max_tokens=20).text
    assert a != b
    assert len(talk.turns) == len(other.turns) == 3
    heads = [heads for _, _, heads, _ in talk.tree()]
    assert ["main"] in heads
    assert ["other"] in heads
    assert [turn.user for turn in other.goto(talk.turns[1].id[:6]).turns] == [*SAID[:2]]


def test_nothing_read_twice() -> None:
    talk = talk_of(gosling(), SAID[:3])
    reply = talk.rewind(1).say(SAID[2], max_tokens=12)
    _ = reply.text
    assert reply.read_tokens <= reply.prompt_tokens
    assert reply.read_tokens < len(talk.tokens) // 2


def test_evicted_states_are_read_anew_to_the_bit(version: str) -> None:
    from rookery.store.memory import Memory

    class Forgetful(Memory):
        def get(self, key: str) -> None:
            return None

    poor = talk_of(tiny(version), sampling="seeded", store=Forgetful())
    poor._tree._live.clear()
    same(poor, talk_of(tiny(version), sampling="seeded"))
    poor.rewind(2)
    poor._tree._live.clear()
    same(poor, talk_of(tiny(version), SAID[:2], sampling="seeded"))


def test_a_reply_nobody_reads_is_finished_by_the_next_call() -> None:
    talk = Session(gosling())
    reply = talk.say("Hello", max_tokens=30)
    assert reply.stop_reason is None
    assert len(talk.turns) == 1
    assert reply.stop_reason == "stop"


def test_a_reply_left_half_read_is_cancelled_by_the_next_call() -> None:
    talk = Session(gosling())
    reply = talk.say("Tell me a story.", max_tokens=200)
    first = next(iter(reply))
    assert [turn.stop_reason for turn in talk.turns] == ["cancelled"]
    assert talk.turns[0].reply.startswith(first)
    assert talk.turns[0].reply == reply.text
    assert np.array_equal(talk.state.vector(), gosling().forward(talk.tokens)[1].vector())
    went_on = talk.proceed(190).text
    assert went_on == Session(gosling()).say("Tell me a story.", max_tokens=200).text[: len(went_on)]


def test_a_reply_cancelled_before_its_first_word_leaves_no_turn() -> None:
    talk = Session(gosling())
    talk.say("Hello").cancel()
    assert talk.turns == []
    assert talk.say("Hello").text == Session(gosling()).say("Hello").text


def test_a_seed_for_one_reply() -> None:
    talk = Session(tiny(), "world", SAMPLINGS["seeded"], seed=1)
    a = talk.say("x", max_tokens=20, seed=9).text
    b = talk.rewind(1).say("x", max_tokens=20).text
    assert talk.rewind(1).say("x", max_tokens=20, seed=9).text == a != b


def test_the_penalties_of_a_reply_end_with_it() -> None:
    talk = Session(tiny(), "world", SAMPLINGS["seeded"], seed=1)
    _ = talk.say("x", max_tokens=20).text
    assert talk._sampler_state(talk.at)["penalties"]
    reply = talk.say("y", max_tokens=1)
    assert reply._request.sampler["penalties"] == []


@pytest.mark.parametrize("max_tokens", [-1, 1.5, True, None])
def test_limits_that_make_no_sense(max_tokens: object) -> None:
    with pytest.raises(errors.InputError, match="max_tokens"):
        Session(tiny(), "world").say("x", max_tokens=max_tokens)  # type: ignore[arg-type]


def test_mistakes_are_one_line() -> None:
    talk = talk_of(tiny(), SAID[:2])
    with pytest.raises(errors.InputError, match="cannot go back 3 turns: the talk has 2"):
        talk.rewind(3)
    with pytest.raises(errors.InputError, match="no turn of this talk begins with 'zz'"):
        talk.goto("zz")
    with pytest.raises(errors.InputError, match="already"):
        talk.branch("main")
    with pytest.raises(errors.InputError, match="takes a text"):
        talk.say(7)  # type: ignore[arg-type]
    same(talk, talk_of(tiny(), SAID[:2]))


def test_a_system_text_stands_before_the_talk_and_is_read_once() -> None:
    from rookery.store.memory import Memory

    store, system = Memory(), "You are a goose. " * 30
    first = Session(gosling(), store=store, system=system, name="a").say("Hello", max_tokens=5)
    second = Session(gosling(), store=store, system=system, name="b").say("Goodbye", max_tokens=5)
    assert first.text
    assert second.text
    assert first.read_tokens == first.prompt_tokens > 100
    assert second.read_tokens < 20
    alone = Session(gosling(), system=system).say("Goodbye", max_tokens=5)
    assert alone.text == second.text


def test_a_talk_finds_its_template_again(tmp_path: Path) -> None:
    said = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
    text = said + "{% if add_generation_prompt %}<a>{% endif %}"
    path = tmp_path / "own.jinja"
    path.write_text(text)
    for n, given in enumerate([str(path), text, "raven", None]):
        talk = Session(tiny(), given, store=tmp_path / "talks.db", name=f"{n}")
        _ = talk.say("x", max_tokens=3).text
    path.unlink()
    for n in range(4):
        resumed = Session.resume(tmp_path / "talks.db", f"{n}", tiny())
        assert resumed.say("y", max_tokens=3).text is not None
        assert bytes(resumed.tokens).startswith((b"<u>x<a>", b"<u>x<a>", b"Bob: x\n\nAlice:", b"x")[n])


def test_a_resumed_talk_draws_as_its_last_reply_was_drawn(tmp_path: Path) -> None:
    bias = rookery.Sampling(temperature=1.3, top_p=0.9, presence=0.4, penalty="rapid", logit_bias={7: -1.5, 9: -np.inf})
    whole = Session(tiny(), "world", bias, seed=3)
    cut = Session(tiny(), "world", bias, seed=3, store=tmp_path / "talks.db", name="talk")
    for talk in (whole, cut):
        _ = talk.say("x", max_tokens=9).text
    cut.save(tmp_path / "x.talk")
    resumed = Session.resume(tmp_path / "talks.db", "talk", tiny())
    loaded = Session.load(tmp_path / "x.talk", tiny())
    assert resumed.sampling == loaded.sampling == bias
    for talk in (whole, resumed, loaded):
        _ = talk.say("y", max_tokens=9).text
    same(resumed, whole)
    same(loaded, whole)
    assert [turn.parent for turn in whole.turns] == [None, whole.turns[0].id]


def test_a_talk_is_loaded_into_a_file_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rookery.store.database import Database

    talk = talk_of(tiny())
    talk.save(tmp_path / "x.talk")
    begun: list[object] = []
    real = Database.writing

    def counted(self: Database, durable: bool = True) -> object:
        begun.append(self.writer.connection is not None and self.writer.connection.in_transaction)
        return real(self, durable)

    monkeypatch.setattr(Database, "writing", counted)
    loaded = Session.load(tmp_path / "x.talk", tiny(), tmp_path / "talks.db")
    assert begun.count(True) >= len(SAID)
    assert len(begun) - begun.count(True) <= 4  # the talk, its turns, the state
    same(loaded, talk)
    same(Session.resume(tmp_path / "talks.db", loaded.name, tiny()), talk)


def test_a_reply_ends_at_a_stop_text_of_its_own_and_notes_what_is_added_while_it_is_made():
    talk = Session(tiny(), store=None)
    whole = talk.say("Hello", 40).text
    stop = whole[5:8]
    again = Session(tiny(), store=None)
    reply = again.say("Hello", 40, stop=[stop], note={"a": 1})
    reply.note["b"] = 2
    assert reply.text == whole[: whole.index(stop)]
    assert again.turns[-1].stop_reason == "stop"
    assert again.turns[-1].note == {"a": 1, "b": 2}
    assert reply.known_tokens == reply.prompt_tokens
    kept = len(again.tokens)
    later = again.say("More", 2)
    assert later.text
    assert later.known_tokens == kept + later.prompt_tokens
