"""The file: whose it is, who may see it, locks, forks, full disks, damage."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from store_things import check, environment, key_of, same, snapshot, talk, turn

from rookery import errors, store
from rookery.store.database import Database
from rookery.store.sqlite import SQLite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talks.db"


@pytest.fixture
def made(path: Path) -> Iterator[SQLite]:
    """With a talk of two turns and their states; does not wait long for locks."""
    with SQLite(path, timeout=0.1) as made:
        made.create(talk())
        one = turn(None, 1)
        two = turn(one.id, 2)
        for node in (one, two):
            assert made.add("first", node, "main", node.parent)
            made.put(node.key, snapshot())
        yield made


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement, values).rowcount


# what may be opened


def test_talks_are_their_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with store.open(tmp_path / "a" / "b" / "talks.db") as made:
            made.create(talk())
            made.put("key", snapshot())
            states = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a" / "b" / "talks.db-states").iterdir()]
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a" / "b").iterdir()}
    finally:
        os.umask(old)
    assert {modes.pop("talks.db-states"), *states} == {0o700, 0o600}
    assert modes == {"talks.db": 0o600, "talks.db-wal": 0o600, "talks.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with store.open(path) as made:
        made.create(talk())
        assert made.talk("first") == talk()


def test_a_newer_file_is_left_alone(made: SQLite, path: Path) -> None:
    made.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(errors.NewerFile, match="format 2, this Rookery knows 1"):
        store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("statement", ["CREATE TABLE t (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"])
def test_another_programs_database_is_left_alone(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)
    before = path.read_bytes()
    with pytest.raises(errors.UnknownFormat, match="another program's database"):
        store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"Dear diary", b"\0" * 5000, b"SQLite format 3\0"])
def test_what_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(errors.UnknownFormat, match="no SQLite database"):
        store.open(path)
    assert path.read_bytes() == content


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(errors.NotAFile, match="a folder"):
        store.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.NotAFile, match="pipe"):
        store.open(tmp_path / "fifo")
    (tmp_path / "file").touch()
    with pytest.raises(errors.CannotWrite, match="cannot be made"):
        store.open(tmp_path / "file" / "talks.db")


def test_a_closed_store_says_so(made: SQLite) -> None:
    made.close()
    with pytest.raises(errors.StoreError, match="closed"):
        made.talks()


def test_two_programs_make_the_same_file(path: Path) -> None:
    code = "import sys; from rookery import store; sys.stdin.readline(); store.open(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, str(path)]
    programs = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for program in programs:
        assert program.stdin
        program.stdin.write(b"go\n")
        program.stdin.flush()
    assert [program.communicate()[1] for program in programs] == [b""] * 3
    with store.open(path) as made:
        assert made.talks() == []


# locks and forks


def test_a_lock_is_one_line_and_no_loss(made: SQLite, path: Path) -> None:
    before = made.nodes("first")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(errors.StoreError, match="another program keeps the store locked"):
            made.add("first", turn(None, 9), "main", None)
        with pytest.raises(errors.StoreError, match="locked"):
            made.create(talk("second"))
        with pytest.warns(UserWarning, match=r"locked.*states are not kept"):
            made.put(key_of(9), snapshot())
        made.put(key_of(9), snapshot())  # said once
        assert same(made.get(key_of(1)), snapshot())
        assert made.nodes("first") == before
        other.execute("ROLLBACK")
    assert made.stats()["failed"] == 2
    made.put(key_of(9), snapshot())
    assert made.has(key_of(9))
    made.create(talk("second"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_both_sides_of_a_fork_write(made: SQLite, path: Path) -> None:
    head = made.heads("first")["main"]
    child = os.fork()
    if child == 0:
        done = (
            made._file.writer.connection is None and made._file.reader.connection is None
        )  # SQLite's rule: none is carried over
        done = done and made.add("first", turn(head, 7), "main", head) and made.has(key_of(1))
        made.close()
        os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not made.add("first", turn(head, 8), "main", head)
    assert len(made.nodes("first")) == 4
    made.close()
    check(path)


# full disks


def test_a_full_disk_loses_nothing_that_was_kept(made: SQLite, path: Path) -> None:
    before, head = made.nodes("first"), made.heads("first")["main"]
    with made._file.alone() as db:
        db.execute("PRAGMA max_page_count = 1")  # SQLite keeps it at what the file has now
        (pages,) = db.execute("PRAGMA max_page_count").fetchone()
    long = turn(head, *range(40_000))
    with pytest.raises(errors.CannotWrite, match=r"talks\.db: cannot be written .*full"):
        made.add("first", long, "main", head)
    with pytest.warns(UserWarning, match="full"):
        made.put("key" * 100_000, snapshot())  # beyond what the index has room for
    assert (made.nodes("first"), made.heads("first")["main"]) == (before, head)
    assert same(made.get(key_of(1)), snapshot())
    with made._file.alone() as db:
        db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert made.add("first", long, "main", head)
    made.close()
    check(path)


FILL = """
import resource, sys
from store_things import snapshot, talk, turn
from rookery import errors, store
made = store.open(sys.argv[1])
made.create(talk())
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
at = None
try:
    while True:
        node = turn(at, *range(2000))
        if int(sys.argv[2]):
            made.put(node.key, snapshot(n=20_000))
        assert made.add("first", node, "main", at)
        at = node.id
        print(at, flush=True)
except errors.CannotWrite as error:
    print("refused:", error)
    print(made.heads("first")["main"] == at)
"""


@pytest.mark.parametrize("states", [0, 1])
def test_a_file_that_may_not_grow(path: Path, states: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FILL, str(path), str(states)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    *acknowledged, refused, whole = done.stdout.splitlines()
    assert refused.startswith(f"refused: {path}: cannot be written")
    assert whole == "True"
    with store.open(path) as made:
        assert acknowledged
        assert set(acknowledged) == set(made.nodes("first"))
        assert made.heads("first")["main"] == acknowledged[-1]
    check(path)


def test_a_file_that_may_not_be_written(made: SQLite) -> None:
    with made._file.alone() as db:
        db.execute("PRAGMA query_only = ON")
    with pytest.raises(errors.CannotWrite, match="readonly"):
        made.add("first", turn(None, 9), "main", None)
    with pytest.warns(UserWarning, match="readonly"):
        made.put(key_of(9), snapshot())
    assert len(made.nodes("first")) == 2


# damage


def states(path: Path) -> list[Path]:
    return sorted(path.with_name("talks.db-states").iterdir())


def test_a_damaged_state_is_dropped_and_a_miss(made: SQLite, path: Path) -> None:
    flipped, cut = states(path)
    data = bytearray(flipped.read_bytes())
    data[-5] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:100])
    for key in (key_of(1), key_of(2)):
        assert made.has(key)
        assert made.get(key) is None
        assert not made.has(key)
    assert (made.stats()["damaged"], made.stats()["misses"], made.stats()["snapshots"]) == (2, 2, 0)
    assert states(path) == []
    made.put(key_of(1), snapshot())
    assert same(made.get(key_of(1)), snapshot())


def test_the_folder_of_states_may_go(made: SQLite, path: Path) -> None:
    before = made.nodes("first")
    shutil.rmtree(path.with_name("talks.db-states"))
    assert not made.has(key_of(1))
    assert made.get(key_of(1)) is None
    assert made.nodes("first") == before
    made.put(key_of(1), snapshot())
    assert same(made.get(key_of(1)), snapshot())
    assert (made.stats()["damaged"], made.stats()["failed"]) == (0, 0)


def test_a_state_that_cannot_be_read_is_a_miss(made: SQLite, path: Path) -> None:
    for file in states(path):
        file.unlink()
        file.mkdir()
    assert made.get(key_of(1)) is None
    assert made.stats()["damaged"] == 1


def test_what_a_killed_program_left_is_swept(made: SQLite, path: Path) -> None:
    for name in ("new", "0" * 64):
        (path.with_name("talks.db-states") / name).write_bytes(b"half a sta")
    made.close()
    with store.open(path) as again:
        again.put(key_of(3), snapshot())
        assert len(states(path)) == again.stats()["snapshots"] == 3
        assert same(again.get(key_of(1)), snapshot())


def test_dropped_states_leave_no_file(made: SQLite, path: Path) -> None:
    made.budget = made.stats()["bytes"]
    made.put(key_of(3), snapshot())
    assert len(states(path)) == 2
    made.remove("first")
    assert len(states(path)) == made.stats()["snapshots"] == 1


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE turn SET body = replace(body, '[1]', '[3]')", "turn {one} is damaged: its content is not"),
        ("UPDATE turn SET body = substr(body, 1, 50) WHERE parent IS NULL", "turn {one} is damaged: it is not JSON"),
        ("UPDATE turn SET body = x'00ff' WHERE parent IS NULL", "turn {one} is damaged"),
        ("UPDATE turn SET body = 7 WHERE parent IS NULL", "turn {one} is damaged"),
        ("DELETE FROM turn WHERE parent IS NULL", "turn {one}, which {two} follows, is not there"),
    ],
)
def test_a_damaged_turn_is_named(made: SQLite, path: Path, statement: str, why: str) -> None:
    two = made.heads("first")["main"]
    one = made.nodes("first")[str(two)].parent
    change(path, statement)
    with pytest.raises(errors.DamagedFile, match="talk 'first': " + why.format(one=one, two=two)) as caught:
        made.nodes("first")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_header_is_named_and_hides_no_other(made: SQLite, path: Path) -> None:
    made.create(talk("second"))
    change(path, "UPDATE talk SET header = replace(header, 'world', 'raven') WHERE name = 'first'")
    with pytest.raises(errors.DamagedFile, match="talk 'first' is damaged"):
        made.talk("first")
    with pytest.warns(UserWarning, match="talk 'first' is damaged"):
        assert [t.name for t, _ in made.talks()] == ["second"]
    change(path, "UPDATE head SET turn = 'x' WHERE name = 'main'")
    with pytest.raises(errors.DamagedFile, match="head 'main' is at no turn"):
        made.heads("first")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(60))
def test_bits_that_flip_anywhere(made: SQLite, path: Path, seed: int) -> None:
    """Nothing but our own errors, and nothing wrong that passes for right."""
    nodes, heads = made.nodes("first"), made.heads("first")
    made.close()
    draw, data = random.Random(seed), bytearray(path.read_bytes())
    if seed % 6 == 0:
        del data[draw.randrange(1, len(data)) :]
    used = [at for at in range(len(data)) if data[at]]  # most of so small a file is zeros that nobody reads
    for _ in range(1 << draw.randrange(8)):
        data[draw.choice(used)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    with suppress(errors.RookeryError), SQLite(path, timeout=0.1) as damaged:
        for key in (key_of(1), key_of(2)):
            found = damaged.get(key)
            assert found is None or same(found, snapshot())
        damaged.put(key_of(3), snapshot())
        with suppress(errors.RookeryError):
            assert damaged.nodes("first").items() <= nodes.items()
        with suppress(errors.RookeryError):
            assert set(damaged.heads("first").values()) <= set(heads.values())
        with suppress(errors.RookeryError):
            damaged.talks()
        with suppress(errors.RookeryError):
            damaged.add("first", turn(None, 5), "main", None)
        damaged.stats()
        damaged.remove("first")


def test_a_removed_talk_is_not_in_the_file(made: SQLite, path: Path) -> None:
    secret = turn(None, 5, messages=(("user", "xyzzy plugh " * 2000),))
    made.add("first", secret, "side", None)
    made.remove("first")
    made.put(key_of(6), snapshot())
    kept = b"".join(p.read_bytes() for p in path.parent.iterdir() if p.is_file() and p.suffix != ".db-shm")
    assert b"plugh" not in kept


def test_who_reads_does_not_wait_for_who_writes(made: SQLite) -> None:
    before = made.nodes("first")
    with ThreadPoolExecutor(1) as pool, made.together():
        assert made.add("first", turn(None, 9), "side", None)
        assert len(made.nodes("first")) == 3  # the one who writes sees it, the others not before it is kept
        assert pool.submit(made.nodes, "first").result(20) == before
    assert len(made.nodes("first")) == 3


def test_a_thread_that_waits_for_another_programs_lock_lets_the_others_read(path: Path) -> None:
    with SQLite(path, timeout=20) as kept, closing(sqlite3.connect(path, isolation_level=None)) as other:
        kept.create(talk())
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(kept.add, "first", turn(None, 1), "main", None)
            for _ in range(100):
                assert kept.nodes("first") == {}
            assert not waiting.done()
            other.execute("COMMIT")
            assert waiting.result()
        assert len(kept.nodes("first")) == 1


def test_a_thread_that_evicts_bars_none_that_deletes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread does as soon as the lock is free, which is before the function has returned."""
    size = len(snapshot().encode(False))
    with SQLite(path, budget=6 * size) as full:
        writing = Database.writing

        @contextmanager
        def then_empty_the_log(self: Database, durable: bool = True) -> Iterator[sqlite3.Connection]:
            with writing(self, durable) as db:
                yield db
            self.empty_log()

        monkeypatch.setattr(Database, "writing", then_empty_the_log)
        for n in range(10):
            full.put(key_of(n), snapshot())
        assert full.stats()["evicted"] == 4
        assert full.stats()["failed"] == 0
