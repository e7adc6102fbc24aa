"""Who runs when: numbers only, no model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.engine import Busy, Sequence
from rookery.engine.scheduler import OLDEST, Scheduler
from rookery.errors import InputError


@dataclass(eq=False)
class Branch:
    writing: bool
    left: int
    room: int


def branch(left: int, room: int | None = None) -> Branch:
    return Branch(left == 0, left, left if room is None else min(room, left))


def sequence(owner: str = "", places: int = 1) -> Sequence:
    return Sequence(lambda: None, lambda event: None, owner=owner, places=places)  # type: ignore[arg-type,return-value]


def test_all_rows_are_for_prompts_while_nobody_writes() -> None:
    scheduler = Scheduler(8, 8, 256, 64)
    long, short = branch(1000), branch(10)
    assert dict(scheduler.plan([long, short])) == {long: 246, short: 10}
    writer = branch(0)
    assert dict(scheduler.plan([writer, long, short])) == {writer: 1, long: 54, short: 10}


def test_short_prompts_go_first_and_the_oldest_never_starves() -> None:
    scheduler = Scheduler(100, 8, 256, 64)
    oldest, others = branch(5000), [branch(50) for _ in range(40)]
    plan = dict(scheduler.plan([branch(0), oldest, *others]))
    assert plan[oldest] == 64 // OLDEST
    assert plan[others[0]] == 48
    assert others[1] not in plan


def test_a_step_ends_at_a_mark() -> None:
    scheduler = Scheduler(8, 8, 256, 64)
    marked = branch(200, room=3)
    assert scheduler.plan([marked]) == [(marked, 3)]


@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(1, 700)), max_size=30),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_a_plan_is_within_its_bounds(branches: list[tuple[int, int]], rows: int, prefill: int) -> None:
    running = [branch(left, room) for left, room in branches]
    plan = Scheduler(64, 8, rows, prefill).plan(running)
    chosen = dict(plan)
    assert len(chosen) == len(plan)
    assert all(chosen.get(b) == 1 for b in running if b.writing)
    readers = [b for b in running if not b.writing]
    assert all(1 <= chosen[b] <= b.room for b in readers if b in chosen)
    used, most = sum(chosen.get(b, 0) for b in readers), prefill if len(readers) < len(running) else rows
    assert used <= most
    assert used == most or all(chosen.get(b) == b.room for b in readers)
    assert not readers or chosen[readers[0]] >= min(readers[0].room, max(1, most // OLDEST))


def test_places_are_taken_and_given_back() -> None:
    scheduler = Scheduler(4, 10, 256, 64)
    three, two, one = sequence(places=3), sequence(places=2), sequence()
    for each in (three, two, one):
        scheduler.submit(each)
    assert scheduler.admit() == [three]
    assert scheduler.admit() == []  # in order: one does not overtake two
    scheduler.release(three)
    assert scheduler.admit() == [two, one]
    assert (scheduler.places, scheduler.waiting) == (3, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=40), st.randoms())
def test_everyone_is_admitted_once_and_owners_in_order(load: list[tuple[str, int]], random: object) -> None:
    scheduler = Scheduler(3, 100, 256, 64)
    asked = [sequence(owner, places) for owner, places in load]
    for each in asked:
        scheduler.submit(each)
    done: list[Sequence] = []
    running: list[Sequence] = []
    while len(done) < len(asked):
        running += scheduler.admit()
        assert sum(each.places for each in running) == scheduler.places <= 3
        assert running
        done.append(running.pop(random.randrange(len(running))))  # type: ignore[attr-defined]
        scheduler.release(done[-1])
    assert {*done} == {*asked}
    assert scheduler.waiting == scheduler.places == 0


def test_withdrawn_and_full() -> None:
    scheduler = Scheduler(1, 2, 256, 64)
    first, second, third = sequence("a"), sequence("a"), sequence("b")
    scheduler.submit(first)
    scheduler.submit(second)
    with pytest.raises(Busy):
        scheduler.submit(third)
    assert scheduler.withdraw(first)
    assert not scheduler.withdraw(first)
    assert not scheduler.withdraw(third)
    scheduler.submit(third)
    assert scheduler.admit() == [second]
    assert scheduler.clear() == [third]
    with pytest.raises(InputError, match="at most 1"):
        scheduler.submit(sequence(places=2))


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"max_batch": 0}, {"rows": -1}, {"prefill_rows": 0}):
        with pytest.raises(InputError, match="1 or more"):
            Scheduler(**({"max_batch": 1, "max_waiting": 1, "rows": 1, "prefill_rows": 1} | wrong))
    with pytest.raises(InputError, match="places"):
        sequence(places=0)
