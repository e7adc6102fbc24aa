"""What every store does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from store_things import Open, key_of, same, snapshot, talk, turn

from rookery import errors, store
from rookery.store import Store


@pytest.fixture
def kept(opened: Open) -> Store:
    """With a talk "first"."""
    made = opened()
    made.create(talk())
    return made


# snapshots


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vocabulary", [None, 7])
def test_a_state_comes_back_to_the_bit(opened: Open, dtype: type, vocabulary: int | None) -> None:
    made, state = opened(), snapshot(vocabulary=vocabulary, dtype=dtype)
    assert made.get("a") is None
    assert not made.has("a")
    made.put("a", state)
    assert made.has("a")
    assert same(made.get("a"), state)
    assert made.stats() | {"bytes": 0} == {
        "snapshots": 1, "bytes": 0, "evicted": 0, "damaged": 0, "hits": 1, "misses": 1, "failed": 0
    }  # fmt: skip


def test_what_is_kept_is_nobody_elses_array(opened: Open) -> None:
    made, state = opened(), snapshot()
    made.put("a", state)
    want = snapshot()
    state.flat[:] = 0
    found = made.get("a")
    assert same(found, want)
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found.flat[0] = 1


def test_halved_states_are_rounded_and_logits_are_not(opened: Open) -> None:
    made, state = opened(half=True), snapshot(n=500)
    made.put("a", state)
    found = made.get("a")
    assert found is not None
    assert found.flat.dtype == np.float32
    np.testing.assert_array_equal(found.flat, state.flat.astype(np.float16).astype(np.float32))
    assert not np.array_equal(found.flat, state.flat)
    np.testing.assert_array_equal(found.logits, state.logits)


def test_the_later_of_two_puts_stays(opened: Open) -> None:
    made = opened()
    made.put("a", snapshot(1))
    made.put("a", snapshot(2, n=600))
    assert same(made.get("a"), snapshot(2, n=600))
    assert made.stats()["snapshots"] == 1
    assert made.stats()["bytes"] == len(snapshot(2, n=600).encode())


def test_a_state_beyond_the_budget_is_not_kept_and_drops_nothing(opened: Open) -> None:
    made = opened(budget=1000)
    made.put("a", snapshot())
    with pytest.warns(UserWarning, match=r"beyond the store's budget of 1000; states are not kept"):
        made.put("b", snapshot(n=5000))
    made.put("c", snapshot(n=5000))  # said once
    assert (made.has("a"), made.has("b")) == (True, False)
    assert (made.stats()["failed"], made.stats()["evicted"]) == (2, 0)


@pytest.mark.parametrize("budget", [-1, True, 0.5, "2G"])
def test_a_senseless_budget(opened: Open, budget: object) -> None:
    with pytest.raises(errors.InputError, match="budget"):
        opened(budget=budget)


# talks


def test_a_talk_grows_and_branches(kept: Store) -> None:
    assert kept.talk("first") == talk()
    assert kept.heads("first") == {"main": None}
    one = turn(None, 1, 2, 3)
    two, other = turn(one.id, 4), turn(one.id, 5)
    assert kept.add("first", one, "main", None)
    assert kept.add("first", two, "main", one.id)
    assert kept.move("first", "side", None, one.id)
    assert kept.add("first", other, "side", one.id)
    assert kept.nodes("first") == {n.id: n for n in (one, two, other)}
    assert kept.heads("first") == {"main": two.id, "side": other.id}
    assert kept.move("first", "main", two.id, None)
    assert kept.heads("first")["main"] is None


def test_the_loser_of_a_race_keeps_its_turn(kept: Store) -> None:
    one, other = turn(None, 1), turn(None, 2)
    assert kept.add("first", one, "main", None)
    assert not kept.add("first", other, "main", None)
    assert kept.heads("first") == {"main": one.id}
    assert set(kept.nodes("first")) == {one.id, other.id}
    assert not kept.move("first", "main", other.id, None)
    assert not kept.move("first", "new", one.id, other.id)
    assert kept.heads("first") == {"main": one.id}


def test_the_same_again_is_no_error(kept: Store) -> None:
    one = turn(None, 1)
    assert kept.add("first", one, "main", None)
    assert kept.add("first", one, "main", None)
    assert list(kept.nodes("first")) == [one.id]


def test_turns_that_follow_nothing_are_refused(kept: Store) -> None:
    lost = turn("0" * 32, 1)
    with pytest.raises(errors.NoSuchTalk, match="turn before it is not in talk 'first'"):
        kept.add("first", lost, "main", None)
    with pytest.raises(errors.NoSuchTalk, match="turn before it is not in talk 'first'"):
        kept.add("first", replace(lost, parent=None), "main", None)
    with pytest.raises(errors.NoSuchTalk, match=f"turn {lost.id} is not in talk"):
        kept.move("first", "main", None, lost.id)
    assert kept.nodes("first") == {}
    assert kept.heads("first") == {"main": None}


def test_talks_of_one_store_are_apart(kept: Store) -> None:
    kept.create(talk("second: other", created=1.0))
    one = turn(None, 1)
    kept.add("second: other", one, "main", None)
    assert kept.nodes("first") == {}
    assert kept.heads("first") == {"main": None}
    kept.add("first", one, "main", None)
    kept.remove("second: other")
    assert kept.nodes("first") == {one.id: one}
    assert [t.name for t, _ in kept.talks()] == ["first"]


def test_talks_by_last_use(kept: Store) -> None:
    kept.create(talk("second"))
    assert [t for t, _ in kept.talks()] == [talk("second"), talk()]
    kept.add("first", turn(None, 1), "main", None)
    assert [t.name for t, _ in kept.talks()] == ["first", "second"]
    (_, newest), (_, oldest) = kept.talks()
    assert newest >= oldest > 1.6e9


def test_a_name_is_taken_once(kept: Store) -> None:
    kept.add("first", turn(None, 1), "main", None)
    with pytest.raises(errors.InputError, match="already"):
        kept.create(talk(fingerprint="other"))
    assert kept.talk("first") == talk()
    assert kept.heads("first")["main"] is not None


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "..", "line\nbreak", "\x1b[2J", "x" * 101, "\ud800"])
def test_names_that_are_none(kept: Store, name: str) -> None:
    with pytest.raises(errors.InputError, match="cannot name a talk"):
        kept.create(talk(name))
    for use in (kept.talk, kept.nodes, kept.heads, kept.remove):
        with pytest.raises(errors.InputError, match="cannot name a talk"):
            use(name)
    with pytest.raises(errors.InputError, match="cannot name a head"):
        kept.move("first", name, None, None)


def test_names_of_all_scripts(kept: Store) -> None:
    for name in ("Gespräch 1", "会話", "a'; DROP TABLE talk; --", "x" * 100, "a:b %s ? *"):
        kept.create(talk(name))
        assert kept.move(name, name, None, None)
        assert kept.talk(name).name == name
        assert set(kept.heads(name)) == {"main", name}


def test_talks_are_listed_by_how_their_names_begin_and_page_by_page(kept: Store) -> None:
    for n in range(6):
        kept.create(talk(f"{'ab'[n % 2]}.{n}"))
    kept.move("a.2", "side", None, None)
    names = ["a.2", "b.5", "a.4", "b.3", "b.1", "a.0", "first"]
    assert [t.name for t, _ in kept.talks()] == names
    assert [t.name for t, _ in kept.talks("a.")] == ["a.2", "a.4", "a.0"]
    assert [t.name for t, _ in kept.talks("a.", limit=2)] == ["a.2", "a.4"]
    assert [t.name for t, _ in kept.talks("a.", after="a.4", limit=2)] == ["a.0"]
    assert [t.name for t, _ in kept.talks(after="b.5", limit=3)] == names[2:5]
    assert kept.talks("a.", after="a.9") == kept.talks("c") == kept.talks(limit=0) == []


def test_unknown_talks(kept: Store) -> None:
    for use in (kept.talk, kept.nodes, kept.heads, kept.remove):
        with pytest.raises(errors.StoreError, match="no talk 'second'"):
            use("second")
    with pytest.raises(errors.StoreError, match="no talk 'second'"):
        kept.add("second", turn(None, 1), "main", None)
    with pytest.raises(errors.StoreError, match="no talk 'second'"):
        kept.move("second", "main", None, None)


def test_a_talk_of_a_later_rookery_is_not_made(kept: Store) -> None:
    with pytest.raises(errors.NewerFile, match="'later' is of schema 2"):
        kept.create(talk("later", schema=store.SCHEMA + 1))
    assert [t.name for t, _ in kept.talks()] == ["first"]


def test_a_talk_of_a_later_rookery_is_left_alone(lasting: Open, later: Callable[[str], None]) -> None:
    kept = lasting()
    kept.create(talk("later"))
    kept.create(talk())
    later("later")
    for use in (kept.talk, kept.nodes, kept.heads):
        with pytest.raises(errors.NewerFile, match="'later' is of schema 2"):
            use("later")
    with pytest.raises(errors.NewerFile):
        kept.add("later", turn(None, 1), "main", None)
    with pytest.raises(errors.NewerFile):
        kept.move("later", "main", None, None)
    with pytest.warns(UserWarning, match="schema 2"):
        assert [t.name for t, _ in kept.talks()] == ["first"]
    kept.remove("later")
    assert [t.name for t, _ in kept.talks()] == ["first"]


def test_removing_a_talk_drops_the_states_that_are_its_alone(kept: Store) -> None:
    kept.create(talk("second"))
    mine, shared = turn(None, 1), turn(None, 2)
    kept.add("first", mine, "main", None)
    kept.add("first", shared, "main", None)
    kept.add("second", shared, "main", None)
    for key in (mine.key, shared.key, key_of(9)):
        kept.put(key, snapshot())
    kept.remove("first")
    assert [kept.has(key) for key in (mine.key, shared.key, key_of(9))] == [False, True, True]
    assert kept.stats()["bytes"] == 2 * len(snapshot().encode())


def test_the_last_turn_of_a_branch_can_be_cut_off(kept: Store) -> None:
    one = turn(None, 1)
    two = turn(one.id, 2)
    side = turn(one.id, 3, base=None)
    for node, head in ((one, "main"), (two, "main"), (side, "side")):
        assert kept.add("first", node, head, kept.heads("first").get(head))
        kept.put(node.key, snapshot())
    kept.move("first", "mark", None, two.id)
    with pytest.raises(errors.InputError, match=f"other turns follow turn '{one.id}'"):
        kept.cut("first", one.id)
    with pytest.raises(errors.NoSuchTalk, match="no turn 'ffff"):
        kept.cut("first", "f" * 32)
    with pytest.raises(errors.NoSuchTalk, match="no talk 'second'"):
        kept.cut("second", one.id)
    kept.cut("first", two.id)
    assert kept.nodes("first") == {one.id: one, side.id: side}
    assert [kept.has_turn("first", node.id) for node in (one, two, side)] == [True, False, True]
    assert kept.heads("first") == {"main": one.id, "side": side.id, "mark": one.id}
    assert [kept.has(node.key) for node in (one, two, side)] == [True, False, True]
    with pytest.raises(errors.InputError, match="other turns follow"):
        kept.cut("first", one.id)
    kept.cut("first", side.id)
    kept.cut("first", one.id)
    assert kept.nodes("first") == {}
    assert set(kept.heads("first").values()) == {None}
    assert kept.add("first", one, "main", None)  # as if it had never been
    assert kept.stats()["snapshots"] == 0


def test_everything_is_there_in_a_new_object(lasting: Open) -> None:
    one, state = turn(None, *range(3000)), snapshot()
    first = lasting()
    first.create(talk())
    first.add("first", one, "main", None)
    first.put(one.key, state)
    first.close()
    again = lasting()
    assert again.talk("first") == talk()
    assert again.nodes("first") == {one.id: one}
    assert again.nodes("first")[one.id].created == one.created
    assert again.heads("first") == {"main": one.id}
    assert same(again.get(one.key), state)


def test_threads_share_a_store(kept: Store) -> None:
    wins: list[str | None] = []

    def work(number: int) -> None:
        for i in range(20):
            at = kept.heads("first")["main"]
            node = turn(at, number, i)
            if kept.add("first", node, "main", at):
                wins.append(at)
            kept.put(node.key, snapshot(i))
            assert kept.get(node.key) is not None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nodes = kept.nodes("first")
    assert len(nodes) == 80
    assert len(set(wins)) == len(wins)
    at, length = kept.heads("first")["main"], 0
    while at is not None:
        at, length = nodes[at].parent, length + 1
    assert length == len(wins)
    assert kept.stats()["failed"] == 0


def test_open_takes_a_store_as_it_is(opened: Open) -> None:
    made = opened()
    assert store.open(made) is made
    assert type(store.open(None)) is type(store.open(":memory:"))
