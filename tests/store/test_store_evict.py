"""What goes when the budget is spent: every store against a model that says it in the plainest way."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
from store_things import Open, key_of, same, snapshot, talk, turn

from rookery import errors
from rookery.store import Node, beginning

SIZES = (10, 60, 200)


class Model:
    """All turns, heads and states in lists, looked through anew each time."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.states: dict[str, tuple[int, bool]] = {}  # key -> (bytes, keep), the least recently used first
        self.nodes: list[Node] = []
        self.heads: dict[str, str | None] = {"main": None}

    def goes_last(self, key: str) -> bool:
        def of(node: Node) -> bool:
            after = [n for n in self.nodes if node.id in (n.parent, n.base)]
            return not after or len(after) > 1 or node.id in self.heads.values()

        return any(of(node) for node in self.nodes if node.key == key)

    def put(self, key: str, size: int, keep: bool) -> bool:
        """Whether there was room for it."""
        if sum(held for other, (held, kept) in self.states.items() if kept and other != key) + size > self.budget:
            return False
        _, kept = self.states.pop(key, (0, False))
        loose = [k for k, (_, kept_) in self.states.items() if not kept_]
        first = [k for k in loose if not self.goes_last(k)]
        last = [k for k in loose if self.goes_last(k)]
        for old in first + last:
            if sum(held for held, _ in self.states.values()) + size > self.budget:
                del self.states[old]
        self.states[key] = size, keep or kept
        return True

    def cut(self, gone: Node) -> None:
        self.nodes.remove(gone)
        self.heads = {head: gone.parent if at == gone.id else at for head, at in self.heads.items()}
        if all(node.key != gone.key for node in self.nodes):
            self.states.pop(gone.key, None)

    def get(self, key: str) -> bool:
        if key in self.states:
            self.states[key] = self.states.pop(key)
        return key in self.states


@pytest.mark.filterwarnings("ignore:.*are not kept")  # where what is kept leaves no room
@pytest.mark.parametrize("seed", range(4))
def test_stores_drop_what_the_model_drops(opened: Open, seed: int) -> None:
    draw, budget = random.Random(seed), 6000
    made, model = opened(budget=budget), Model(budget)
    made.create(talk())
    keys = [key_of(n) for n in range(12)]
    dropped, refused = 0, pytest.raises(errors.StoreError, match="leaves no room")
    for step in range(600):
        what, key = draw.choice(("put", "put", "get", "add", "add", "cut", "move")), draw.choice(keys)
        before = [None, *(n.id for n in model.nodes)]
        head = draw.choice(("main", "side"))
        if what == "put":
            state, keep = snapshot(n=draw.choice(SIZES)), draw.random() < 0.01
            with nullcontext() if model.put(key, len(state.encode()), keep) or not keep else refused:
                made.put(key, state, keep)
        elif what == "get":
            assert (made.get(key) is not None) == model.get(key)
        elif what == "add":
            parent = draw.choice(before[-4:])
            base = parent if draw.random() < 0.8 else draw.choice(before)
            node = turn(parent, step, base=base, key=key)
            at = model.heads.get(head)
            assert made.add("first", node, head, at)
            model.nodes.append(node)
            model.heads[head] = node.id
        elif what == "cut":
            ends = [n for n in model.nodes if not any(n.id in (m.parent, m.base) for m in model.nodes)]
            if ends:
                gone = draw.choice(ends)
                made.cut("first", gone.id)
                model.cut(gone)
        else:
            to = draw.choice(before)
            assert made.move("first", head, model.heads.get(head), to)
            model.heads[head] = to
        held = {k for k in keys if made.has(k)}
        assert held == set(model.states), f"step {step}: {what}"
        dropped += len(keys) - len(held)
        assert made.stats()["bytes"] == sum(size for size, _ in model.states.values()) <= budget
    assert dropped > 100
    assert made.stats()["evicted"] > 20
    assert made.nodes("first") == {node.id: node for node in model.nodes}


def test_forks_leaves_and_heads_outlive_the_way_between(opened: Open) -> None:
    """A line of nine turns with a fork at the fourth: of its states those of the fork, the leaves and a head stay."""
    size = len(snapshot().encode())
    made = opened(budget=9 * size)
    made.create(talk())
    line: list[Node] = []
    for n in range(8):
        line.append(turn(line[-1].id if line else None, n))
        assert made.add("first", line[-1], "main", line[-2].id if n else None)
        made.put(line[-1].key, snapshot())
    side = turn(line[3].id, 99)
    assert made.move("first", "side", None, line[3].id)
    assert made.add("first", side, "side", line[3].id)
    assert made.move("first", "mark", None, line[1].id)
    made.put(side.key, snapshot())
    for n in range(100, 105):  # as many others as there are turns on the way
        made.put(key_of(n), snapshot())
    stay = {line[1].key, line[3].key, line[7].key, side.key}
    assert {node.key for node in (*line, side) if made.has(node.key)} == stay
    for n in range(200, 220):
        made.put(key_of(n), snapshot())
    assert all(made.has(key) for key in stay)
    assert len(made.nodes("first")) == 9


@pytest.mark.filterwarnings("ignore:.*are not kept")
def test_what_is_kept_never_goes(opened: Open) -> None:
    size = len(snapshot().encode())
    made = opened(budget=3 * size, half=True)
    for n in range(20):
        made.put(key_of(n), snapshot(n), keep=n in (3, 7))
    assert [n for n in range(20) if made.has(key_of(n))][:2] == [3, 7]
    assert same(made.get(key_of(3)), snapshot(3))  # not halved
    made.put(key_of(30), snapshot(), keep=True)
    with pytest.raises(errors.StoreError, match="what is kept for good leaves no room"):
        made.put(key_of(31), snapshot(), keep=True)
    made.put(key_of(32), snapshot(n=70))  # a mere cache is left out
    assert [n for n in range(40) if made.has(key_of(n))] == [3, 7, 30]
    assert made.stats()["bytes"] == 3 * size
    made.put(key_of(3), snapshot(n=10))
    made.put(key_of(33), snapshot())
    assert [n for n in range(40) if made.has(key_of(n))] == [3, 7, 30]  # once kept, kept


def test_what_is_kept_goes_with_its_talk(opened: Open) -> None:
    size = len(snapshot().encode())
    made = opened(budget=2 * size)
    made.create(talk())
    made.put(beginning("first"), snapshot(), keep=True)
    made.put(key_of(1), snapshot(), keep=True)
    made.remove("first")
    assert [made.has(key) for key in (beginning("first"), key_of(1))] == [False, True]
    made.put(key_of(2), snapshot(), keep=True)  # there is room again
    assert made.stats()["bytes"] == 2 * size


def test_a_smaller_budget_is_kept_from_the_next_put_on(lasting: Open) -> None:
    first = lasting()
    for n in range(9):
        first.put(key_of(n), snapshot())
    first.close()
    size = len(snapshot().encode())
    again: Any = lasting(budget=3 * size)
    again.put(key_of(100), snapshot())
    assert again.stats()["bytes"] == 3 * size
    assert again.stats()["evicted"] == 7
