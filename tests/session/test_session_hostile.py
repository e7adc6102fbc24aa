"""Sessions under attack: errors in the middle of a reply, mistakes of every kind, and random programs of calls."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talks import BACKENDS, SAMPLINGS, gosling, tiny

from rookery import Session, errors, formats, tokenizer
from rookery import store as stores
from rookery.chat.roles import BUILTIN
from rookery.formats import Tensor
from rookery.store import Node, Span, Talk
from rookery.store.memory import Memory

CLOSED = {"additionalProperties": False}


class Trap:
    """Raises at the n-th call from when it is set, and at as many more as told, through whatever it was put into."""

    def __init__(self) -> None:
        self.set(0, times=0)

    def set(self, n: int, error: type[BaseException] | BaseException = KeyboardInterrupt, times: int = 1) -> None:
        self.n, self.times, self.error = n, times, error

    def step(self) -> None:
        self.n -= 1
        if -self.times < self.n <= 0:
            raise self.error

    def around(self, call: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def trapped(*args: Any, **more: Any) -> Any:
            if not after:
                self.step()
            result = call(*args, **more)
            if after:
                self.step()
            return result

        return trapped


class Trapped:
    """A model whose `forward` and whose samplers' `sample` pass a trap."""

    def __init__(self, model: Any, trap: Trap, where: str) -> None:
        self._model, self._trap, self._where = model, trap, where

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *args: Any, **more: Any) -> Any:
        return (self._trap.around(self._model.forward) if self._where == "forward" else self._model.forward)(
            *args, **more
        )

    def sampler(self, *args: Any, **more: Any) -> Any:
        made = self._model.sampler(*args, **more)
        if self._where == "sample":
            made.sample = self._trap.around(made.sample)
        return made


class Interrupted(Memory):
    """A store whose `add` passes a trap, before or after the work."""

    def __init__(self, trap: Trap, after: bool) -> None:
        super().__init__()
        self.add = trap.around(super().add, after)  # type: ignore[method-assign]


def whole(talk: Session, model: Any) -> None:
    """What holds of every talk at any moment."""
    before, at = [], talk.at
    for node in talk._tree.path(at):
        reply = next(span for span in reversed(node.spans) if span.role == "assistant")
        data = model.tokenizer.decode_bytes(node.tokens[reply.begin :]) + node.tail
        assert node.messages[-1][1] == data.decode("utf-8", "replace")
        before.append(node.id)
    if at is not None:
        expected = model.forward(talk.tokens)[1]
        talk._tree._live.clear()
        assert talk.state.vector().tobytes() == expected.vector().tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, errors.BackendError])
@pytest.mark.parametrize("where", ["forward", "sample"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 13, 14])
def test_an_error_in_the_middle_keeps_what_was_written(where: str, n: int, error: type[BaseException]) -> None:
    trap = Trap()
    model: Any = Trapped(tiny(), trap, where)
    talk = Session(model, "world", SAMPLINGS["seeded"], seed=5)
    _ = talk.say("a", max_tokens=12).text
    once = Session(tiny(), "world", SAMPLINGS["seeded"], seed=5)
    _ = once.say("a", max_tokens=12).text
    uncut = once.say("b", max_tokens=12)
    _ = uncut.text
    reply = talk.say("b", max_tokens=12)
    trap.set(n, error)
    try:
        shown = "".join(reply)
    except error:
        shown = None
    if shown is None:
        assert reply.stop_reason is not None
    trap.set(0, times=0)
    whole(talk, tiny())
    if len(talk.turns) == 1:
        assert n <= 2
        reply = talk.say("b", max_tokens=12)
        assert reply.text == uncut.text
    else:
        assert uncut.tokens[: len(reply.tokens)] == reply.tokens
        if talk.turns[-1].stop_reason == "cancelled":
            whole(talk, tiny())
            rest = talk.proceed(12 - len(reply.tokens))
            assert rest.text == uncut.text
            assert talk.tokens == once.tokens
    whole(talk, tiny())


def test_interrupted_twice_nothing_is_lost() -> None:
    trap = Trap()
    model: Any = Trapped(tiny(), trap, "forward")
    talk = Session(model, "world", seed=5)
    reply = talk.say("b", max_tokens=12)
    _ = [next(reply) for _ in range(4)]
    trap.set(1, times=2)
    with pytest.raises(KeyboardInterrupt):
        next(reply)
    assert len(talk.turns) == 1
    assert len(reply.tokens) >= 4
    whole(talk, tiny())


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_while_a_turn_is_kept(after: bool) -> None:
    trap = Trap()
    store = Interrupted(trap, after)
    talk = Session(tiny(), "world", store=store, name="t")
    _ = talk.say("a", max_tokens=3).text
    trap.set(1)
    with pytest.raises(KeyboardInterrupt):
        _ = talk.say("b", max_tokens=3).text
    assert [turn.user for turn in talk.turns] == ["a", "b"]
    _ = talk.say("c", max_tokens=3).text
    assert talk.head == "main"
    assert [turn.user for turn in Session.resume(store, "t", tiny()).turns] == ["a", "b", "c"]


def test_a_full_disk_and_then_back_and_aside() -> None:
    trap = Trap()
    store = Interrupted(trap, after=False)
    talk = Session(tiny(), "world", store=store, name="t")
    first = talk.say("a", max_tokens=3)
    _ = first.text
    trap.set(1, errors.CannotWrite("x", "is full"), times=2)
    with pytest.raises(errors.CannotWrite):
        _ = talk.say("b", max_tokens=3).text
    with pytest.raises(errors.CannotWrite):
        talk.rewind()
    assert [turn.user for turn in talk.turns] == ["a"]  # without the store, too
    _ = talk.say("c", max_tokens=3).text
    assert store.heads("t") == {"main": talk.at}
    assert sorted(node.messages[0][1] for node in store.nodes("t").values()) == ["a", "b", "c"]


def test_a_branch_brings_along_what_is_not_kept_yet() -> None:
    trap = Trap()
    store = Interrupted(trap, after=False)
    talk = Session(tiny(), "world", store=store, name="t")
    trap.set(1, errors.CannotWrite("x", "is full"))
    with pytest.raises(errors.CannotWrite):
        _ = talk.say("a", max_tokens=3).text
    talk.think = "x"
    other = talk.branch()
    assert other.think == "x"
    assert [turn.user for turn in Session.resume(store, "t", tiny(), head=other.head).turns] == ["a"]


def test_the_longest_name_of_a_branch_can_be_taken_twice() -> None:
    store, head = Memory(), "h" * 100
    first = Session(tiny(), "world", store=store, name="t", head=head)
    _ = first.say("a", max_tokens=2).text
    second = Session.resume(store, "t", tiny(), head=head)
    _ = first.say("b", max_tokens=2).text
    _ = second.say("c", max_tokens=2).text
    assert [turn.user for turn in Session.resume(store, "t", tiny(), head=second.head).turns] == ["a", "c"]


def test_looking_at_a_session_changes_nothing() -> None:
    talk = Session(gosling())
    reply = talk.say("Tell me a story.", max_tokens=20)
    first = next(reply)
    assert "0 turns" in repr(talk)
    assert reply.stop_reason is None
    assert first + "".join(reply) == Session(gosling()).say("Tell me a story.", max_tokens=20).text


def test_a_reply_is_asked_as_it_was_when_it_was_said() -> None:
    talk, plain = Session(gosling(), "g1"), Session(gosling(), "g1")
    reply = talk.say("Hello", max_tokens=5)
    talk.think = "on"
    assert reply.text == plain.say("Hello", max_tokens=5).text
    assert talk.tokens == plain.tokens


def test_a_reply_takes_one_reader_at_a_time() -> None:
    talk = Session(tiny(), "world")
    reply = talk.say("x" * 600, max_tokens=3, progress=lambda *_: talk.at and None)
    with pytest.raises(errors.InputError, match="one thread at a time"):
        _ = reply.text


def test_the_state_that_a_talk_begins_with_is_its_own() -> None:
    given = tiny().forward([1, 2])[1]
    talk, same_ = Session(tiny(), "world", state=given), Session(tiny(), "world", state=given.copy())
    given.flat[:] = 7
    assert talk.say("x", max_tokens=8).text == same_.say("x", max_tokens=8).text


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Session(tiny(), "world").say("a\ud800").text, "half a surrogate pair"),
        (lambda: Session(tiny(), "world", system="\udfff").say("a").text, "half a surrogate pair"),
        (lambda: Session(tiny(), "world", system=7), "system=7: wanted a text"),  # type: ignore[arg-type]
        (lambda: Session(tiny(), "world", name=7), "7 cannot name a talk"),  # type: ignore[arg-type]
        (lambda: Session(tiny(), "world", name=""), "'' cannot name a talk"),
        (lambda: Session(tiny(), "world", head="../x"), "cannot name a branch"),
        (lambda: Session(gosling(), "g1", tools=[print]), "tools: wanted a list of signatures"),
        (lambda: Session(gosling(), "g1", tools="f(x)"), "tools: wanted a list of signatures"),
        (lambda: Session(tiny(), "world").state_at("zz"), "no turn of this talk begins with 'zz'"),
        (lambda: Session(tiny(), "world").say("x", role="assistant"), "a reply is the model's own"),
        (lambda: Session(tiny(), "world").proceed(), "nothing to go on with: say something"),
    ],
)
def test_a_mistake_is_one_line(mistake: Callable[[], Any], message: str) -> None:
    with pytest.raises(errors.InputError, match=message) as found:
        mistake()
    assert "\n" not in str(found.value)


def test_tools_in_a_schema_that_was_cut_go_on() -> None:
    """Of the reply, the template has begun " ```json": the grammar never sees that."""
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }

    def talk() -> Session:
        return Session(gosling(), "g1", SAMPLINGS["seeded"], tools=["f(a)"], seed=3)

    whole_, cut = talk(), talk()
    once = whole_.say("hi", schema=schema, max_tokens=30)
    _ = cut.say("hi", schema=schema, max_tokens=2).text
    assert cut.turns[-1].stop_reason == "length"
    rest = cut.proceed(28)
    assert rest.text == once.text
    assert rest.stop_reason == once.stop_reason == "end"
    assert (cut.tokens, cut._sampler_state(cut.at)) == (whole_.tokens, whole_._sampler_state(whole_.at))


@pytest.mark.skipif(len(BACKENDS) < 2, reason="one back end alone")
def test_a_state_of_another_arithmetic_does_not_come_back_as_ones_own(tmp_path: Path) -> None:
    native, reference = (tiny("v7", backend) for backend in BACKENDS)
    talk = Session(native, "world")
    _ = talk.say("x" * 50, max_tokens=20).text
    talk.save(tmp_path / "a.talk")
    Session.load(tmp_path / "a.talk", reference).save(tmp_path / "b.talk")
    for model in (native, reference):
        loaded = Session.load(tmp_path / "b.talk", model)
        assert loaded.state.vector().tobytes() == model.forward(talk.tokens)[1].vector().tobytes()
    assert loaded._tree.read_tokens == 0  # and as one's own where it is


def test_a_stop_text_in_utf16_begins_where_a_character_does() -> None:
    utf16 = tokenizer.load("utf16le")
    for text, shown, stopped in (("\u6141\u6200b", "\u6141\u6200b", False), ("\u6141\u6200ab", "\u6141\u6200", True)):
        stream = utf16.stream(["a"])
        seen, found = "".join(map(stream.push, utf16.encode(text))), stream.stopped
        assert (seen + stream.flush(), found) == (shown, stopped)
    with pytest.raises(errors.InputError, match="half a surrogate"):
        utf16.stream(["\ud800"])


def forged(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Write the talk at `path` anew, with its header and its first turn changed and all digests right."""
    file = formats.read(path)
    text = json.loads(file.tensors["talk"].data.tobytes())
    head, turn = json.loads(text["talk"]), json.loads(text["nodes"][0][1])
    settings = json.loads(head["settings"])
    change(settings, turn)
    del head["digest"]
    head["name"] = settings.pop("name", head["name"])
    made = Talk(**(head | {"settings": json.dumps(settings)}))
    turn["spans"] = tuple(Span(*span) for span in turn["spans"])
    turn |= {"messages": tuple(map(tuple, turn["messages"])), "tokens": tuple(turn["tokens"]), "tail": b""}
    node = Node(**turn)
    text |= {"talk": made.to_json(), "nodes": [[node.id, node.to_json()]], "heads": {"main": node.id}}
    tensors = dict(file.tensors) | {"talk": Tensor.of(np.frombuffer(json.dumps(text).encode(), np.uint8))}
    formats.write(path, tensors, file.metadata, format="safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda settings, turn: settings.pop("seed"),
        lambda settings, turn: turn["messages"].pop(),
        lambda settings, turn: turn["messages"].reverse(),
        lambda settings, turn: turn.update(messages=[]),
        lambda settings, turn: turn.update(sampling="{}"),
        lambda settings, turn: settings.update(name="../up"),
    ],
)
def test_a_forged_talk_is_a_damaged_one(tmp_path: Path, change: Callable[[Any, Any], None]) -> None:
    talk = Session(tiny(), "world")
    _ = talk.say("x", max_tokens=2).text
    talk.save(tmp_path / "x.talk")
    forged(tmp_path / "x.talk", lambda settings, turn: None)
    assert Session.load(tmp_path / "x.talk", tiny()).tokens == talk.tokens
    forged(tmp_path / "x.talk", change)
    with pytest.raises(errors.DamagedFile, match="is a damaged talk"):
        Session.load(tmp_path / "x.talk", tiny())


def test_a_talk_names_no_file(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    (tmp_path / "secret").write_text("{{ 'secret' }}")
    talk = Session(tiny(), "world")
    _ = talk.say("x", max_tokens=2).text
    talk.save(tmp_path / "x.talk")
    forged(tmp_path / "x.talk", lambda settings, turn: settings.update(template=str(tmp_path / "secret")))
    loaded = Session.load(tmp_path / "x.talk", tiny())
    _ = loaded.say("x", max_tokens=2).text
    assert b"secret" not in bytes(loaded.tokens).replace(str(tmp_path / "secret").encode(), b"")


def test_a_template_of_ones_own_is_asked_for_again(tmp_path: Path) -> None:
    own = replace(BUILTIN["world"], stops=("x",))  # still called "world"
    talk = Session(tiny(), own, store=tmp_path / "talks.db", name="t")
    _ = talk.say("x", max_tokens=2).text
    with pytest.raises(errors.InputError, match="a template object of your own; give it: template="):
        Session.resume(tmp_path / "talks.db", "t", tiny())
    assert Session.resume(tmp_path / "talks.db", "t", tiny(), template=own).tokens == talk.tokens
    (tmp_path / "constant.jinja").write_text("always the same")
    pytest.importorskip("jinja2")
    talk = Session(tiny(), str(tmp_path / "constant.jinja"), store=tmp_path / "talks.db", name="u")
    _ = talk.say("x", max_tokens=2).text
    _ = Session.resume(tmp_path / "talks.db", "u", tiny()).say("y", max_tokens=2).text


def test_rounded_states_are_not_taken_for_exact_ones(tmp_path: Path) -> None:
    with stores.open(tmp_path / "talks.db", half=True) as half:
        _ = Session(tiny(), "world", store=half, name="t").say("hello " * 20, max_tokens=5).text
    resumed = Session.resume(tmp_path / "talks.db", "t", tiny())
    assert resumed.state.vector().tobytes() == tiny().forward(resumed.tokens)[1].vector().tobytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits processor time")
def test_a_run_of_carriage_returns_is_no_bomb() -> None:
    script = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20)); from rookery.chat import clean; "
    subprocess.run([sys.executable, "-c", script + "clean(chr(13) * 400_000)"], check=True)


def test_a_talk_that_its_store_has_lost_can_be_saved(tmp_path: Path) -> None:
    store = Memory()
    talk = Session(tiny(), "world", store=store, name="t")
    _ = talk.say("x", max_tokens=3).text
    store.remove("t")
    with pytest.raises(errors.StoreError, match="no talk 't'"):
        _ = talk.say("y", max_tokens=3).text
    with pytest.warns(UserWarning, match="no talk 't'; saved are the turns that are known here"):
        talk.save(tmp_path / "x.talk")
    assert [turn.user for turn in Session.load(tmp_path / "x.talk", tiny()).turns] == ["x", "y"]


def test_the_think_mode_of_the_last_turn_is_gone_on_with() -> None:
    store = Memory()
    talk = Session(tiny(), "g1", store=store, name="t")
    _ = talk.say("x", max_tokens=3).text
    talk.think = "short"
    _ = talk.say("y", max_tokens=3).text
    resumed = Session.resume(store, "t", tiny())
    assert resumed.say("z", max_tokens=3).text == talk.say("z", max_tokens=3).text
    assert b"z (think a bit)" in bytes(resumed.tokens)


class Secretive(Memory):
    """A store that does not list its talks, such as those that a later Rookery wrote."""

    def talks(self) -> list[tuple[Talk, float]]:
        return []


def test_a_talk_is_loaded_beside_one_of_its_name_that_cannot_be_read(tmp_path: Path) -> None:
    store = Secretive()
    Session(tiny(), "world", name="n" * 100).save(tmp_path / "x.talk")
    names = [Session.load(tmp_path / "x.talk", tiny(), store).name for _ in range(12)]
    assert names == ["n" * 100, *(f"{'n' * 90}-{n}" for n in range(2, 13))]
