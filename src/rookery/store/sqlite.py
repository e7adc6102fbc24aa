"""A store in an SQLite file: talks that survive a crash, and beside it a folder of states, which may be deleted unless
a talk began with a state of its own.

Several processes may have it open; one writes at a time. File and folder are their owner's alone.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from rookery import errors
from rookery.store.database import Database
from rookery.store.evict import Cache, is_kept, victims
from rookery.store.folder import Folder
from rookery.store.node import (
    MAIN,
    Node,
    Talk,
    absent,
    beginning,
    check_name,
    check_new,
    check_schema,
    followed,
    no_turn,
    read_talk,
    read_turns,
    taken,
    unknown,
)

BUDGET = 2 << 30

_NEXT = "(SELECT coalesce(max(used), 0) + 1 FROM snapshot)"
_KEY = "SELECT key FROM turn WHERE talk = ? AND id = ?"
_TURNS_OF_KEY = """
    SELECT (SELECT count(*) FROM (
            SELECT id FROM turn AS next WHERE next.talk = turn.talk AND next.parent = turn.id
            UNION SELECT id FROM turn AS next WHERE next.talk = turn.talk AND next.base = turn.id)),
        EXISTS (SELECT 1 FROM head WHERE head.talk = turn.talk AND head.turn = turn.id)
    FROM turn WHERE turn.key = ?
"""


class SQLite(Cache):
    """`half`: states are rounded to float16; `budget`: bytes of snapshots, 2 GiB by default; `timeout`: seconds to wait
    for another program's lock.
    """

    def __init__(
        self, path: str | os.PathLike[str], half: bool = False, budget: int | None = None, timeout: float = 30.0
    ) -> None:
        super().__init__(half, BUDGET if budget is None else budget)
        self._file = Database(path, timeout)
        self._states = Folder(self._file.path)
        self._swept = False
        self._touched: dict[str, None] = {}  # read since the last write, which will note it: reading writes nothing

    def close(self) -> None:
        self._file.close()

    # snapshots

    def _has(self, key: str) -> bool:
        with self._file.reading(patient=False) as db:
            listed = db.execute("SELECT 1 FROM snapshot WHERE key = ?", (key,)).fetchone() is not None
        return listed and self._states.has(key)

    def _write(self, key: str, data: bytes, keep: bool) -> int:
        with self._file.writing(durable=keep) as db:
            if not self._swept:
                self._swept = True
                self._states.sweep(key for (key,) in db.execute("SELECT key FROM snapshot"))
            touched, self._touched = self._touched, {}
            for other in list(touched):  # a thread that reads may still note one
                db.execute(f"UPDATE snapshot SET used = {_NEXT} WHERE key = ?", (other,))
            kept = db.execute("SELECT coalesce(sum(bytes), 0) FROM snapshot WHERE last = 2 AND key != ?", (key,))
            if kept.fetchone()[0] + len(data) > self.budget:
                raise self._no_room(len(data))
            self._states.write(key, data, durable=keep)
            db.execute(
                f"INSERT INTO snapshot VALUES (?, {_NEXT}, ?, ?, 0) ON CONFLICT DO UPDATE SET used = excluded.used,"
                " bytes = excluded.bytes, keep = keep OR excluded.keep",
                (key, len(data), keep),
            )
            _rank(db, [key])
            (total,) = db.execute("SELECT sum(bytes) FROM snapshot").fetchone()
            others = "SELECT key, bytes FROM snapshot WHERE last < 2 AND key != ? ORDER BY last, used"
            with closing(db.execute(others, (key,))) as rows:  # half read, it would bar another thread's `empty_log`
                gone = list(victims(rows, total - self.budget))
            for other in gone:
                self._delete(db, other)
            return len(gone)

    def _read(self, key: str) -> bytes | None:
        with self._file.reading(patient=False) as db:
            if db.execute("SELECT 1 FROM snapshot WHERE key = ?", (key,)).fetchone() is None:
                return None
            self._touched.pop(key, None)
            self._touched[key] = None
        data = self._states.read(key)
        if data is None:
            self._drop(key)
        return data

    def _drop(self, key: str) -> None:
        with self._file.writing(durable=False) as db:
            self._delete(db, key)

    def _delete(self, db: sqlite3.Connection, key: str) -> None:
        """Inside a transaction; the file first, as a row without one is soon found out."""
        self._states.drop(key)
        db.execute("DELETE FROM snapshot WHERE key = ?", (key,))

    def _size(self) -> tuple[int, int]:
        with self._file.reading() as db:
            count, size = db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM snapshot").fetchone()
            return count, size

    # talks

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._file.writing():
            yield

    def create(self, talk: Talk) -> None:
        check_new(self._file.path, talk)
        with self._file.writing() as db:
            if db.execute("SELECT 1 FROM talk WHERE name = ?", (talk.name,)).fetchone():
                raise taken(talk.name)
            row = (talk.name, talk.schema, talk.to_json(), time.time())
            made = db.execute("INSERT INTO talk (name, schema, header, used) VALUES (?, ?, ?, ?)", row).lastrowid
            db.execute("INSERT INTO head VALUES (?, ?, NULL)", (made, MAIN))

    def talk(self, name: str) -> Talk:
        with self._file.reading() as db:
            row = db.execute("SELECT schema, header FROM talk WHERE name = ?", (check_name(name),)).fetchone()
        if row is None:
            raise unknown(name, self._file.path)
        return read_talk(self._file.path, name, *row)

    def talks(self, begin: str = "", after: str | None = None, limit: int | None = None) -> list[tuple[Talk, float]]:
        where, values = "name >= ? AND name < ?", [begin, begin + chr(sys.maxunicode)]
        if after is not None:
            where, values = f"{where} AND (used, id) < (SELECT used, id FROM talk WHERE name = ?)", [*values, after]
        ask = f"SELECT name, schema, header, used FROM talk WHERE {where} ORDER BY used DESC, id DESC LIMIT ?"
        with self._file.reading() as db:
            rows = db.execute(ask, (*values, -1 if limit is None else limit)).fetchall()
        found = []
        for name, schema, header, used in rows:
            try:
                found.append((read_talk(self._file.path, name, schema, header), float(used)))
            except errors.FileError as error:
                warnings.warn(str(error), stacklevel=2)
        return found

    def nodes(self, name: str) -> dict[str, Node]:
        with self._file.reading() as db:
            rows = db.execute("SELECT id, body FROM turn WHERE talk = ?", (self._find(db, name),)).fetchall()
        return read_turns(self._file.path, name, rows)

    def has_turn(self, name: str, turn: str) -> bool:
        with self._file.reading() as db:
            return _has_turn(db, self._find(db, name), turn)

    def heads(self, name: str) -> dict[str, str | None]:
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT head.name, head.turn, turn.id FROM head LEFT JOIN turn ON (turn.talk, turn.id) ="
                " (head.talk, head.turn) WHERE head.talk = ?",
                (self._find(db, name),),
            ).fetchall()
        for head, turn, there in rows:
            if turn != there:
                raise errors.DamagedFile(self._file.path, f"talk {name!r}: head {head!r} is at no turn of it")
        return {head: turn for head, turn, _ in rows}

    def add(self, name: str, node: Node, head: str, expected: str | None) -> bool:
        check_name(head, "head")
        with self._file.writing() as db:
            talk = self._find(db, name)
            for before in (node.parent, node.base):
                if before is not None and not _has_turn(db, talk, before):
                    raise absent(name, "the turn before it")
            row = (talk, node.id, node.parent, node.base, node.key, node.to_json())
            db.execute("INSERT OR IGNORE INTO turn VALUES (?, ?, ?, ?, ?, ?)", row)
            _rank_turns(db, talk, node.parent, node.base)
            return _move(db, talk, head, expected, node.id)

    def move(self, name: str, head: str, expected: str | None, to: str | None) -> bool:
        check_name(head, "head")
        with self._file.writing() as db:
            talk = self._find(db, name)
            if to is not None and not _has_turn(db, talk, to):
                raise absent(name, f"turn {to}")
            return _move(db, talk, head, expected, to)

    def cut(self, name: str, turn: str) -> None:
        with self._erasing() as db:
            talk = self._find(db, name)
            row = db.execute("SELECT parent, base, key FROM turn WHERE talk = ? AND id = ?", (talk, turn)).fetchone()
            if row is None:
                raise no_turn(name, turn)
            parent, base, key = row
            follows = "SELECT 1 FROM turn WHERE talk = ? AND (parent = ? OR base = ?)"
            if db.execute(follows, (talk, turn, turn)).fetchone():
                raise followed(turn)
            db.execute("UPDATE head SET turn = ? WHERE talk = ? AND turn = ?", (parent, talk, turn))
            db.execute("DELETE FROM turn WHERE talk = ? AND id = ?", (talk, turn))
            self._left(db, [key])
            _rank_turns(db, talk, parent, base)

    def remove(self, name: str) -> None:
        with self._erasing() as db:
            talk = self._find(db, name, any_schema=True)
            keys = [key for (key,) in db.execute("SELECT DISTINCT key FROM turn WHERE talk = ?", (talk,))]
            self._delete(db, beginning(name))
            db.execute("DELETE FROM talk WHERE id = ?", (talk,))
            self._left(db, keys)

    @contextmanager
    def _erasing(self) -> Iterator[sqlite3.Connection]:
        """A transaction after which what was deleted is not to be found in the file's free pages."""
        with self._file.alone() as db:
            db.execute("PRAGMA secure_delete = ON")
        try:
            with self._file.writing() as db:
                yield db
        finally:
            with self._file.alone() as db:
                db.execute("PRAGMA secure_delete = OFF")
        self._file.empty_log()

    def _left(self, db: sqlite3.Connection, keys: Iterable[str]) -> None:
        """Turns that ended at these are gone: the states of those at which no other ends go, too."""
        for key in keys:
            if db.execute("SELECT 1 FROM turn WHERE key = ?", (key,)).fetchone() is None:
                self._delete(db, key)
            else:
                _rank(db, [key])

    def _find(self, db: sqlite3.Connection, name: str, any_schema: bool = False) -> int:
        """The row of a talk. Raises StoreError if there is none, NewerFile for one that is not ours to touch."""
        row = db.execute("SELECT id, schema FROM talk WHERE name = ?", (check_name(name),)).fetchone()
        if row is None:
            raise unknown(name, self._file.path)
        if not any_schema:
            check_schema(self._file.path, name, row[1])
        return int(row[0])


def _rank(db: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Note which of these snapshots now go last (1) or never (2), so that eviction need not look at all."""
    for key in keys:
        last = any(is_kept(children, head) for children, head in db.execute(_TURNS_OF_KEY, (key,)))
        db.execute("UPDATE snapshot SET last = iif(keep, 2, ?) WHERE key = ?", (last, key))


def _has_turn(db: sqlite3.Connection, talk: int, turn: str) -> bool:
    return db.execute("SELECT 1 FROM turn WHERE talk = ? AND id = ?", (talk, turn)).fetchone() is not None


def _move(db: sqlite3.Connection, talk: int, head: str, expected: str | None, to: str | None) -> bool:
    """Inside a transaction: put the head on `to` if it is where it was expected, or there already."""
    db.execute("UPDATE talk SET used = ? WHERE id = ?", (time.time(), talk))
    row = db.execute("SELECT turn FROM head WHERE talk = ? AND name = ?", (talk, head)).fetchone()
    at = row[0] if row else None
    moves = at in (expected, to)
    if moves:
        db.execute("INSERT INTO head VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET turn = excluded.turn", (talk, head, to))
    _rank_turns(db, talk, at, to)
    return moves


def _rank_turns(db: sqlite3.Connection, talk: int, *turns: str | None) -> None:
    _rank(db, (key for turn in turns for (key,) in db.execute(_KEY, (talk, turn)).fetchall()))
