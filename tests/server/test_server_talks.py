"""Stored talks without HTTP: what a talk says is what a session says; nobody sees another's; nothing kept is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import FIXTURES

import rookery
from rookery import Sampling, Session, errors
from rookery import store as stores
from rookery.engine import Engine
from rookery.server import talk_ids
from rookery.server import talks as server_talks
from rookery.server.errors import as_api
from rookery.server.reading import through
from rookery.server.talks import Talks
from rookery.session.tree import Place
from rookery.store import Node, Store
from rookery.store.memory import Memory

HOT = Sampling(temperature=1.2, top_p=0.9, presence=0.3)
SAID = ("Hello there.", "And then?", "What did the fox say?", "Why?")


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    with stores.open(place) as made:
        yield made


@pytest.fixture
def talks(tiny_v7: Any, store: Store) -> Talks:
    return Talks(tiny_v7, store)


def say(session: Session, text: str, most: int = 12, **more: Any) -> str:
    """Say it and be answered: the response's id."""
    reply = session.say(text, most, **more)
    assert reply.text is not None
    return talk_ids.response(session.name, str(reply.id))


def begin(talks: Talks, owner: str = "me", **more: Any) -> str:
    return say(talks.begin(owner, template=rookery.chat.load("world"), **more), SAID[0])


def words(session: Session) -> list[tuple[str, str]]:
    return [(turn.user, turn.reply) for turn in session.turns]


def forget(store: Any, session: Session) -> None:
    """Every state of a talk is gone."""
    tree = session._tree
    tree._live.clear()
    for node in tree.nodes.values():
        for n in range(len(node.tokens) + 1):
            store._drop(tree.prefix(Place(node.id, n)).key)


# the slow truth


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), HOT])
def test_a_talk_by_its_ids_is_one_session(talks: Talks, tiny_v7: Any, sampling: Sampling, anew: bool) -> None:
    whole = Session(tiny_v7, "world", sampling, seed=5, system="Be brief.")
    session = talks.begin("me", template=whole.template, sampling=sampling, seed=5, system="Be brief.")
    id = ""
    for n, text in enumerate(SAID):
        if n:
            session = (Talks(tiny_v7, talks.store) if anew else talks).open("me", id)  # anew: after a restart
        id = say(session, text)
        assert whole.say(text, 12).text == session.turns[-1].reply
        assert session.tokens == whole.tokens
        assert session._sampler_state(session.at) == whole._sampler_state(whole.at)
        assert talks.state("me", id).vector().tobytes() == whole.state.vector().tobytes()
    assert session.head == "main"


def test_states_are_read_anew_by_the_engine(talks: Talks, tiny_v7: Any) -> None:
    id = begin(talks)
    for text in SAID[1:]:
        id = say(talks.open("me", id), text)
    whole = tiny_v7.forward(talks.open("me", id).tokens)[1].vector().tobytes()
    engine = Engine(tiny_v7)
    engine.start()
    try:
        again = Talks(tiny_v7, talks.store, read=through(engine))
        forget(talks.store, talks.open("me", id))
        assert again.state("me", id).vector().tobytes() == whole
        read = engine.stats()["tokens_read"]
        assert read == len(talks.open("me", id).tokens)
        assert again.state("me", id).vector().tobytes() == whole
        assert engine.stats()["tokens_read"] == read  # at hand now
        forget(talks.store, again.open("me", id))
        assert again.state("me", id).vector().tobytes() == whole  # nothing shared was changed
        assert engine.stats()["tokens_read"] == 2 * read
    finally:
        engine.close()


def test_what_is_at_hand_is_not_read_again(tiny_v7: Any) -> None:
    class Counted(Memory):
        reads = states = 0

        def nodes(self, name: str) -> dict[str, Node]:
            self.reads += 1
            return super().nodes(name)

        def get(self, key: str) -> Any:
            found = super().get(key)
            self.states += found is not None
            return found

    store = Counted()
    talks = Talks(tiny_v7, store, hot=2)
    ids = [begin(talks), begin(talks)]
    states = store.states
    for n in range(6):
        ids[n % 2] = say(talks.open("me", ids[n % 2]), f"{n} " * 50)
    assert (store.reads, store.states) == (0, states)
    begin(talks)  # pushes out the one not used last
    talks.open("me", ids[1])
    assert store.reads == 0
    talks.open("me", ids[0])
    assert store.reads == 1


# branches


def test_an_older_turn_is_gone_on_with_in_a_branch(talks: Talks) -> None:
    first = begin(talks)
    second = say(talks.open("me", first), "left")
    third = say(talks.open("me", first), "right")
    fourth = say(talks.open("me", third), "more")
    heads = talks.info("me", first).heads
    assert heads == {"main": second, "main~2": fourth}
    assert [user for user, _ in words(talks.open("me", fourth))] == [SAID[0], "right", "more"]
    assert [user for user, _ in words(talks.open("me", second))] == [SAID[0], "left"]
    state = talk_ids.state(talks.open("me", first).name)
    assert words(talks.open("me", state)) == words(talks.open("me", second))
    assert words(talks.open("me", f"{state}.main~2")) == words(talks.open("me", fourth))


def test_the_tree_of_a_talk(talks: Talks) -> None:
    first = begin(talks, title="Geese", system="Be brief.")
    second = say(talks.open("me", first), "x" * 300)
    third = say(talks.open("me", first), "y")
    info = talks.info("me", second, preview=50)
    assert info.at == second
    assert info.id == info.talk.id == talk_ids.state(talks.open("me", first).name)
    assert (info.talk.title, info.talk.system) == ("Geese", "Be brief.")
    assert [(turn.id, turn.parent) for turn in info.turns] == [(first, None), (second, first), (third, first)]
    assert info.turns[1].said == "x" * 49 + "…"
    assert info.turns[0].said == SAID[0]
    assert {turn.stop_reason for turn in info.turns} == {"length"}
    assert info.heads == {"main": second, "main~2": third}
    assert talks.info("me", third).id.endswith(".main~2")


def test_a_response_has_the_id_that_was_said_before_it_was_written(talks: Talks, tiny_v7: Any) -> None:
    session = talks.begin("me")
    say(session, "x", note={"response": "a" * 32})
    id = talk_ids.response(session.name, "a" * 32)
    for each in (talks, Talks(tiny_v7, talks.store)):
        assert each.open("me", id).at == session.at
        assert each.turn("me", id).user == "x"
        assert each.info("me", id).at == id
    follow = say(talks.open("me", id), "y")
    assert talks.info("me", id).turns[1].parent == id
    assert talks.open("me", follow).turns[0].id == session.at


def test_fork_and_rewind(talks: Talks) -> None:
    first = begin(talks)
    second = say(talks.open("me", first), "two")
    state = talks.info("me", first).id
    side = talks.fork("me", first, "side")
    assert side == f"{state}.side"
    auto = talks.fork("me", side)
    assert auto == f"{state}.side~2"
    third = say(talks.open("me", side), "three")
    assert talks.info("me", auto).heads == {"main": second, "side": third, "side~2": first}
    for taken in ("side", "main"):
        with pytest.raises(errors.InputError, match="already"):
            talks.fork("me", first, taken)
    for wrong in ("", "a/b", "..", "a b", "é", "x" * 65):
        with pytest.raises(errors.InputError, match="cannot name a branch"):
            talks.fork("me", first, wrong)
    assert talks.rewind("me", state) == state
    assert talks.info("me", state).at == first
    assert talks.rewind("me", state) == state
    assert talks.info("me", state).at is None
    assert talks.open("me", state).turns == []
    again = say(talks.open("me", state), "anew")
    assert talks.info("me", state).turns[-1].parent is None
    assert talks.info("me", again).heads["main"] == again
    with pytest.raises(errors.InputError, match="cannot go back 2 turns: the talk has 1"):
        talks.rewind("me", state, 2)
    with pytest.raises(errors.InputError, match="a response stays where it is"):
        talks.rewind("me", first)


# whose they are


def test_what_is_not_ones_own_is_not_there(talks: Talks, tiny_v7: Any) -> None:
    mine, yours = begin(talks, "me"), begin(talks, "you")
    state = talks.info("me", mine).id
    wrong = [
        "", "x", "main", "../talks.db", "resp_", "resp_" + "0" * 64, "state_" + "0" * 32, "state_" + "0" * 32 + ".main",
        yours, yours.upper(), mine + "0", mine[:-1], f"{mine}\n", f"{state}.nobody", f"{state}./etc", f"{state}.",
        mine[:37] + "0" * 32, mine[:37] + yours[37:], yours[:37] + mine[37:], talks.info("you", yours).id,
        talks.open("you", yours).name, "resp_" + "１" * 64,
    ]  # fmt: skip
    uses: list[Callable[[str], Any]] = [
        lambda id: talks.open("me", id),
        lambda id: talks.turn("me", id),
        lambda id: talks.state("me", id),
        lambda id: talks.info("me", id),
        lambda id: talks.fork("me", id),
        lambda id: talks.rewind("me", id),
        lambda id: talks.export("me", id),
        lambda id: talks.delete_turn("me", id),
        lambda id: talks.list("me", after=id),
        lambda id: talks.delete("me", id),
        lambda id: Talks(tiny_v7, talks.store).open("me", id),
    ]
    for id in wrong:
        said = set()
        for use in uses:
            if id.startswith(f"{state}.") and use is uses[8]:
                continue
            if id in (mine[:37] + "0" * 32, mine[:37] + yours[37:]) and use is uses[8]:
                continue  # of a talk of mine
            with pytest.raises(errors.NoSuchTalk) as found:
                use(id)
            said.add(str(found.value))
        assert said == {str(talk_ids.unknown())}
    for each in ("me", "you"):
        assert len(talks.list(each)) == 1
    assert talks.list("nobody") == []
    assert len(talks.info("you", yours).turns) == 1


def test_owners_share_no_states(talks: Talks) -> None:
    read = {}
    for owner in ("me", "you"):
        for n in range(2):
            session = talks.begin(owner, template=rookery.chat.load("world"), system="Be brief. " * 30)
            reply = session.say("x", 2)
            assert reply.text is not None
            read[owner, n] = reply.read_tokens
    assert read["me", 0] == read["you", 0] > 300 > read["me", 1] == read["you", 1]


def test_lists_go_page_by_page(talks: Talks) -> None:
    ids = []
    for n in range(5):
        ids.append(talks.info("me", begin(talks, title=str(n))).id)
        begin(talks, "you")
    say(talks.open("me", ids[1]), "again")
    order = [1, 4, 3, 2, 0]
    assert [row.title for row in talks.list("me")] == [str(n) for n in order]
    assert [row.id for row in talks.list("me", limit=2)] == [ids[1], ids[4]]
    assert [row.id for row in talks.list("me", limit=2, after=ids[4])] == [ids[3], ids[2]]
    assert [row.id for row in talks.list("me", after=ids[0])] == []
    assert all(row.created <= row.used for row in talks.list("me"))


# what goes


def test_a_deleted_talk_is_gone_everywhere(talks: Talks, tiny_v7: Any) -> None:
    other = Talks(tiny_v7, talks.store)
    kept, gone = begin(talks), begin(talks)
    assert other.open("me", gone).turns
    state = talks.info("me", gone).id
    session = other.open("me", gone)
    for wrong in (gone, talks.fork("me", gone)):
        with pytest.raises(errors.InputError, match="delete the whole talk by the id of its main state"):
            talks.delete("me", wrong)
    with pytest.raises(errors.NoSuchTalk):
        talks.delete("you", state)
    talks.delete("me", state)
    for each in (talks, other):
        for id in (gone, state):
            with pytest.raises(errors.NoSuchTalk):
                each.open("me", id)
    with pytest.raises(errors.NoSuchTalk) as found:
        say(session, "too late")
    assert str(as_api(found.value)) == str(talk_ids.unknown())  # no path, no name in the store
    with pytest.raises(errors.NoSuchTalk):
        talks.delete("me", state)
    assert [row.id for row in talks.list("me")] == [talks.info("me", kept).id]


def test_the_last_turn_of_a_branch_can_be_deleted(talks: Talks, tiny_v7: Any) -> None:
    other = Talks(tiny_v7, talks.store)
    first = begin(talks)
    second = say(talks.open("me", first), "two")
    assert other.open("me", second).turns
    with pytest.raises(errors.InputError, match="other turns follow"):
        talks.delete_turn("me", first)
    talks.delete_turn("me", second)
    for each in (talks, other):
        with pytest.raises(errors.NoSuchTalk):
            each.open("me", second)
        assert each.info("me", first).heads == {"main": first}
    again = say(talks.open("me", first), "two")
    assert talks.info("me", again).heads == {"main": again}
    talks.delete_turn("me", again)
    talks.delete_turn("me", first)
    assert talks.info("me", talks.list("me")[0].id).turns == []


def test_a_turn_that_could_not_be_kept_is_not_there_later(tiny_v7: Any) -> None:
    class Full(Memory):
        full = False

        def add(self, name: str, node: Node, head: str, expected: str | None) -> bool:
            if self.full:
                raise errors.CannotWrite("talks.db", "cannot be written (database or disk is full)")
            return super().add(name, node, head, expected)

    store = Full()
    talks = Talks(tiny_v7, store)
    first = begin(talks)
    store.full = True
    session = talks.open("me", first)
    with pytest.raises(errors.CannotWrite):
        say(session, "lost", note={"response": "b" * 32})
    lost = [talk_ids.response(session.name, end) for end in ("b" * 32, str(session.at))]
    store.full = False
    for id in lost:
        with pytest.raises(errors.NoSuchTalk):
            talks.open("me", id)
    assert [turn.said for turn in talks.info("me", first).turns] == [SAID[0]]
    second = say(talks.open("me", first), "found")
    assert talks.info("me", second).heads == {"main": second}
    assert words(Talks(tiny_v7, store).open("me", second)) == words(talks.open("me", second))


# several at once


def test_another_replica_goes_on(talks: Talks, tiny_v7: Any) -> None:
    other = Talks(tiny_v7, talks.store)
    id = begin(talks)
    whole = Session(tiny_v7, "world")
    _ = whole.say(SAID[0], 12).text
    for n, text in enumerate(SAID[1:] * 2):
        id = say((other, talks)[n % 2].open("me", id), text)
        _ = whole.say(text, 12).text
    assert words(talks.open("me", id)) == words(whole)
    assert talks.info("me", id).heads == {"main": id}


def test_a_turn_deleted_while_its_head_is_looked_up_is_not_there(
    talks: Talks, tiny_v7: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = say(talks.open("me", begin(talks)), "And then?")
    session = talks.open("me", id)
    before = store.heads(session.name)
    talks.delete_turn("me", id)
    monkeypatch.setattr(store, "heads", lambda _: before)
    for each in (talks, Talks(tiny_v7, store)):
        with pytest.raises(errors.NoSuchTalk):
            each.open("me", talk_ids.of(session))


def test_a_thread_that_learns_names_hides_none_from_another(tiny_v7: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with stores.open(None) as store:
        id = say(Talks(tiny_v7, store).begin("me"), SAID[0], note={talk_ids.RESPONSE: "a" * 32})
        talks, found = Talks(tiny_v7, store), []
        mine, name = id[:-32] + "a" * 32, server_talks.called

        def beside(node: Node) -> str:
            monkeypatch.setattr(server_talks, "called", name)
            other = threading.Thread(target=lambda: found.append(talks.turn("me", mine)))
            other.start()
            other.join()
            return name(node)

        monkeypatch.setattr(server_talks, "called", beside)
        assert [talks.turn("me", mine)] == found


def test_threads_on_one_turn_become_branches(talks: Talks) -> None:
    first = begin(talks)
    found: dict[int, str] = {}

    def work(n: int) -> None:
        for _ in range(3):
            found[n] = say(talks.open("me", found.get(n, first)), f"thread {n}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        assert [user for user, _ in words(talks.open("me", found[n]))] == [SAID[0], *[f"thread {n}"] * 3]
    info = talks.info("me", first)
    assert len(info.turns) == 19
    assert {*info.heads.values()} == {*found.values()}


RACE = """
import sys
import rookery
from rookery import store
from rookery.server import talk_ids
from rookery.server import talks as server_talks
from rookery.server.talks import Talks
path, place, first, who = sys.argv[1:]
with store.open(place) as kept:
    talks, id = Talks(rookery.load(path, tokenizer="bytes"), kept), first
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(5):
        session = talks.open("me", first)
        reply = session.say(f"{who} {n}", 5)
        reply.text
        id = talk_ids.response(session.name, reply.id)
        print(id, flush=True)
        session = talks.open("me", id)
        reply = session.say("more", 5)
        reply.text
        print(talk_ids.response(session.name, reply.id), flush=True)
"""


def test_two_processes_from_one_turn_both_stay(place: str, tiny_v7: Any) -> None:
    if place == ":memory:":
        pytest.skip("memory is one program's")
    with stores.open(place) as store:
        talks = Talks(tiny_v7, store)
        first = begin(talks)
        command = [sys.executable, "-c", RACE, str(FIXTURES / "v7.safetensors"), place, first]
        programs = [
            subprocess.Popen([*command, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for who in ("one", "two")
        ]
        for program in programs:
            assert program.stdout
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin
            program.stdin.write("go\n")
            program.stdin.flush()
        outs = [program.communicate()[0].split() for program in programs]
        assert [program.returncode for program in programs] == [0, 0]
        info = talks.info("me", first)
        assert {turn.id for turn in info.turns} == {first, *outs[0], *outs[1]}
        for who, ids in zip(("one", "two"), outs, strict=True):
            for n in range(5):
                whole = Session(tiny_v7, "world")
                _ = whole.say(SAID[0], 12).text, whole.say(f"{who} {n}", 5).text, whole.say("more", 5).text
                assert words(talks.open("me", ids[2 * n + 1])) == words(whole)
        ends = {ids[n] for ids in outs for n in (1, 3, 5, 7, 9)}
        assert ends == {*info.heads.values()}  # a head for each end


def test_another_models_talk_is_refused(talks: Talks, gosling: Any) -> None:
    id = begin(talks)
    other = Talks(gosling, talks.store)
    with pytest.raises(errors.StateError, match="held with another model") as found:
        other.open("me", id)
    assert str(FIXTURES) not in str(found.value)
    assert [row.id for row in other.list("me")] == [talks.info("me", id).id]
