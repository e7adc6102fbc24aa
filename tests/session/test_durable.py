"""Talks that survive: kill -9 at any moment, two processes at once, a full disk, damaged and foreign states."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from talks import SAID, SAMPLINGS, gosling, same, tiny

from rookery import Session, errors, store
from rookery.session.tree import Place
from rookery.store import Node
from rookery.store.memory import Memory

HERE = Path(__file__).parent
TALKER = """
import sys
import talks
from rookery import Session, errors
place, model = sys.argv[1], talks.gosling()
try:
    talk = Session.resume(place, "talk", model, sampling=talks.SAMPLINGS["seeded"])
except errors.StoreError:
    talk = Session(model, sampling=talks.SAMPLINGS["seeded"], seed=7, store=place, name="talk")
print("here", flush=True)
while True:
    reply = talk.say(talks.SAID[len(talk.turns) % 4], max_tokens=25)
    reply.text
    print(len(talk.turns), flush=True)
"""


def killed_at_random(place: Path, seed: int) -> int:
    """Let a process talk on, kill it at a random moment, and return the last turn that it said was kept."""
    child = subprocess.Popen([sys.executable, "-c", TALKER, str(place)], stdout=subprocess.PIPE, text=True, cwd=HERE)
    assert child.stdout is not None
    lines = [child.stdout.readline()]
    time.sleep(random.Random(seed).uniform(0.0, 0.15))
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    return max((int(line) for line in lines if line.endswith("\n") and line.strip().isdecimal()), default=0)


def torn(tmp_path: Path, kills: int) -> None:
    place, kept = tmp_path / "talks.db", 0
    for seed in range(kills):
        acknowledged = killed_at_random(place, seed)
        with store.open(place) as opened:
            before, kept = kept, len(opened.nodes("talk")) if [*opened.talks()] else 0
            assert kept >= max(before, acknowledged)
    with sqlite3.connect(place) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    resumed = Session.resume(place, "talk", gosling(), sampling=SAMPLINGS["seeded"])
    whole = Session(gosling(), sampling=SAMPLINGS["seeded"], seed=7)
    for n in range(len(resumed.turns)):
        _ = whole.say(SAID[n % 4], max_tokens=25).text
    same(resumed, whole)
    assert len(resumed.turns) == kept > kills // 4


def test_killed_at_random_moments_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    torn(tmp_path, 8)


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    torn(tmp_path, 200)


def test_two_sessions_on_one_head_become_two_branches(tmp_path: Path) -> None:
    first = Session(gosling(), store=tmp_path / "talks.db", name="talk", seed=1)
    _ = first.say("Hello", max_tokens=20).text
    second = Session.resume(tmp_path / "talks.db", "talk", gosling())
    _ = first.say("Good night", max_tokens=20).text
    _ = second.say("Tell me a story.", max_tokens=20).text
    assert (first.head, second.head) == ("main", "main~2")
    for head, said in (("main", "Good night"), ("main~2", "Tell me a story.")):
        resumed = Session.resume(tmp_path / "talks.db", "talk", gosling(), head=head)
        assert [turn.user for turn in resumed.turns] == ["Hello", said]
        alone = Session(gosling(), seed=1)
        _ = alone.say("Hello", max_tokens=20).text
        _ = alone.say(said, max_tokens=20).text
        same(resumed, alone)
    assert len(first.tree()) == 3


def test_going_back_where_another_went_on_is_a_branch(tmp_path: Path) -> None:
    first = Session(tiny(), "world", store=tmp_path / "talks.db", name="talk")
    _ = first.say("a", max_tokens=3).text
    second = Session.resume(tmp_path / "talks.db", "talk", tiny())
    _ = first.say("b", max_tokens=3).text
    second.rewind()
    assert second.head == "main~2"
    assert [turn.user for turn in Session.resume(tmp_path / "talks.db", "talk", tiny()).turns] == ["a", "b"]


def test_processes_that_race_lose_nothing(tmp_path: Path) -> None:
    place = tmp_path / "talks.db"
    talk = Session(gosling(), sampling=SAMPLINGS["seeded"], seed=7, store=place, name="talk")
    _ = talk.say(SAID[0], max_tokens=25).text
    script = TALKER.replace("while True:", "for _ in range(6):")
    racing = [
        subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.DEVNULL, cwd=HERE)
        for _ in range(2)
    ]
    assert [child.wait() for child in racing] == [0, 0]
    with store.open(place) as opened:
        nodes, heads = opened.nodes("talk"), opened.heads("talk")
    leaves = set(nodes) - {node.parent for node in nodes.values()}
    assert leaves <= set(heads.values())  # a head for each end: no turn is out of reach
    lengths = [len(Session.resume(place, "talk", gosling(), head=head).turns) for head in heads]
    assert max(lengths) >= 7
    with sqlite3.connect(place) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


class Full(Memory):
    """A store on a disk that is full for a while."""

    full = False

    def add(self, name: str, node: Node, head: str, expected: str | None) -> bool:
        if self.full:
            raise errors.CannotWrite("talks.db", "cannot be written (database or disk is full)")
        return super().add(name, node, head, expected)


def test_a_full_disk_leaves_the_talk_whole_and_keeps_it_later() -> None:
    place = Full()
    talk = Session(tiny(), "world", store=place, name="talk")
    _ = talk.say(SAID[0], max_tokens=5).text
    place.full = True
    for text in SAID[1:3]:
        reply = talk.say(text, max_tokens=5)
        with pytest.raises(errors.CannotWrite, match="disk is full"):
            _ = reply.text
        assert reply.stop_reason == "length"
        assert reply.text == talk.turns[-1].reply
    assert len(talk.turns) == 3
    assert len(Session.resume(place, "talk", tiny()).turns) == 1
    place.full = False
    _ = talk.say(SAID[3], max_tokens=5).text
    resumed = Session.resume(place, "talk", tiny())
    same(resumed, talk)
    assert [turn.user for turn in resumed.turns] == [*SAID]
    assert talk.head == "main"


def test_damaged_states_are_made_again(tmp_path: Path) -> None:
    place = tmp_path / "talks.db"
    talk = Session(tiny(), "world", store=place, name="talk")
    for text in SAID:
        _ = talk.say(text, max_tokens=5).text
    states = [path for path in Path(f"{place}-states").rglob("*") if path.is_file()]
    assert states
    for path in states:
        path.write_bytes(path.read_bytes()[:-1] + b"U")
    resumed = Session.resume(place, "talk", tiny())
    same(resumed, talk)
    assert resumed._tree.read_tokens == len(talk.tokens)


def test_another_models_state_under_our_key_is_not_taken(tmp_path: Path) -> None:
    place = Memory()
    talk = Session(tiny(), "world", store=place, name="talk")
    _ = talk.say("x", max_tokens=5).text
    key = talk._tree.prefix(Place(talk.at)).key
    found = place.get(key)
    assert found is not None
    place.put(key, type(found)(found.flat + 1, found.logits, found.tokens, "0" * 64, found.version))
    resumed = Session.resume(place, "talk", tiny())
    same(resumed, talk)
    assert resumed._tree.read_tokens == len(talk.tokens)


def test_another_models_talk_is_refused(tmp_path: Path) -> None:
    _ = Session(tiny(), "world", store=tmp_path / "talks.db", name="talk").say("x", max_tokens=5).text
    with pytest.raises(errors.StateError, match="talk 'talk': was held with another model"):
        Session.resume(tmp_path / "talks.db", "talk", gosling())
    with pytest.raises(errors.StoreError, match="no branch 'aside'; it has main"):
        Session.resume(tmp_path / "talks.db", "talk", tiny(), head="aside")
    with pytest.raises(errors.InputError, match="already"):
        Session(tiny(), "world", store=tmp_path / "talks.db", name="talk")


def test_a_child_process_may_go_on_with_its_parents_store(tmp_path: Path) -> None:
    talk = Session(tiny("v7", "reference"), "world", store=tmp_path / "talks.db", name="talk")
    _ = talk.say("x", max_tokens=3).text
    child = os.fork()
    if child == 0:
        _ = talk.say("y", max_tokens=3).text
        os._exit(len(talk.turns))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    _ = talk.say("z", max_tokens=3).text
    assert talk.head == "main~2"
