"""The SQLite file under a store: opened with distrust, written by one thread at a time, every error in our words.

WAL and a connection of its own for those who read, so that readers never wait for a writer; every transaction that
writes takes the write lock at its start, so that none fails half-way for a lock. A connection does not survive a fork
(SQLite forbids it): it is closed before one, and both processes open their own when they next need it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rookery import errors

APPLICATION = int.from_bytes(b"Rook")  # what `file` and SQLite see in the header
FORMAT = 1
LOG_LIMIT = 64 << 20  # bytes that the log keeps on disk after a checkpoint
GLANCE = 0.02  # seconds in which it holds up the other threads while it looks for another program's lock to go
PATIENCE = 2.0  # seconds that a cache's write waits for a lock; a state can be computed again

SCHEMA = """
CREATE TABLE talk (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, schema INTEGER NOT NULL, header TEXT NOT NULL,
    used REAL NOT NULL);
CREATE TABLE turn (talk INTEGER NOT NULL REFERENCES talk ON DELETE CASCADE, id TEXT NOT NULL, parent TEXT, base TEXT,
    key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (talk, id),
    FOREIGN KEY (talk, parent) REFERENCES turn, FOREIGN KEY (talk, base) REFERENCES turn);
CREATE INDEX turn_parent ON turn (talk, parent);
CREATE INDEX turn_base ON turn (talk, base);
CREATE INDEX turn_key ON turn (key);
CREATE TABLE head (talk INTEGER NOT NULL REFERENCES talk ON DELETE CASCADE, name TEXT NOT NULL, turn TEXT,
    PRIMARY KEY (talk, name), FOREIGN KEY (talk, turn) REFERENCES turn);
CREATE TABLE snapshot (key TEXT PRIMARY KEY, used INTEGER NOT NULL, bytes INTEGER NOT NULL, keep INTEGER NOT NULL,
    last INTEGER NOT NULL);
CREATE INDEX snapshot_used ON snapshot (used);
CREATE INDEX snapshot_order ON snapshot (last, used, bytes, key);
"""

_open: weakref.WeakSet[Database] = weakref.WeakSet()
_forking: list[Database] = []


class _Line:
    """A connection, and the thread that uses it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: sqlite3.Connection | None = None

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


class Database:
    """One file; threads may share it. `timeout`: seconds to wait for another program's lock."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 30.0) -> None:
        self.path, self.timeout = os.path.abspath(os.fspath(path)), timeout
        self.writer, self.reader = _Line(), _Line()
        self._in_transaction: int | None = None  # the thread that is
        self._closed = False
        with self.reading():
            pass
        _open.add(self)

    @contextmanager
    def reading(self, patient: bool = True) -> Iterator[sqlite3.Connection]:
        """The connection, to be used inside the block alone; not `patient`: it does not wait long for a lock.

        Raises DamagedFile, UnknownFormat, StoreError, CannotWrite.
        """
        inside = self._in_transaction == threading.get_ident()  # it sees what it has written
        with self._using(self.writer if inside else self.reader, patient) as connection:
            yield connection

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The connection that writes, outside of a transaction. Raises as `reading` does."""
        with self._using(self.writer) as connection:
            yield connection

    @contextmanager
    def _using(self, line: _Line, patient: bool = True) -> Iterator[sqlite3.Connection]:
        with line.lock, _explained(self.path):
            if self._closed:
                raise errors.StoreError(f"{self.path}: the store is closed")
            if line.connection is None:
                line.connection = _connect(self.path, self.timeout)
            wait = self.timeout if patient else min(PATIENCE, self.timeout)
            line.connection.execute(f"PRAGMA busy_timeout = {round(1000 * wait)}")
            yield line.connection

    @contextmanager
    def writing(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when the block ends, or nothing if it raises.

        Not `durable`: it may be lost, whole, if the machine stops, and it does not wait long for a lock.
        """
        until = time.monotonic() + (self.timeout if durable else min(PATIENCE, self.timeout))
        while True:
            with self.alone() as connection:
                if connection.in_transaction:  # of a block around this one, which makes it durable or not
                    yield connection
                    return
                if _begun(connection, durable, until):
                    connection.execute(f"PRAGMA busy_timeout = {round(1000 * self.timeout)}")
                    self._in_transaction = threading.get_ident()
                    try:
                        yield connection
                        connection.execute("COMMIT")
                    except BaseException:
                        with suppress(sqlite3.Error):  # a full disk has rolled it back
                            connection.execute("ROLLBACK")
                        raise
                    finally:
                        self._in_transaction = None
                    return
            time.sleep(GLANCE / 2)  # other threads may read meanwhile

    def empty_log(self) -> None:
        """Bring what the log holds into the file, and let go of the log's bytes, unless someone still reads it."""
        with self.alone() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self.writer.lock, self.reader.lock:
            self._closed = True
            self.disconnect()

    def disconnect(self) -> None:
        """Both connections, which are made anew when they are needed. The caller has both locks."""
        self.reader.disconnect()
        self.writer.disconnect()


def _begun(connection: sqlite3.Connection, durable: bool, until: float) -> bool:
    """Whether the write lock was to be had at a glance; raises when it is past the time."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * GLANCE)}")
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not _is_busy(error) or time.monotonic() >= until:
            raise
        return False
    return True


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    _make_file(path)
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("BEGIN")  # one look: another program may be making the file
        ours = _is_ours(connection, path)
        connection.execute("COMMIT")
        if not ours:
            _log_ahead(connection, timeout)
            _make_tables(connection, path)
        connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_file(path: str) -> None:
    """Talks are private: the folder and the file that are made are their owner's alone."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        mode = os.stat(path).st_mode
    except OSError as error:
        raise errors.CannotWrite(path, f"cannot be made ({error.strerror}); choose another place") from None
    if not stat.S_ISREG(mode):  # SQLite would wait for a FIFO for ever
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise errors.NotAFile(path, f"is {kind}; wanted a store of talks")


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """False for an empty file. Raises UnknownFormat for another program's, NewerFile."""
    application, format = _number(connection, "application_id"), _number(connection, "user_version")
    if application == APPLICATION:
        if format > FORMAT:
            what = f"is a store of format {format}, this Rookery knows {FORMAT}: a newer one reads it"
            raise errors.NewerFile(path, what)
        return True
    if application or format or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise errors.UnknownFormat(path, "is another program's database; wanted a store of talks")
    return False


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _log_ahead(connection: sqlite3.Connection, timeout: float) -> None:
    """SQLite does not wait for a lock here by itself: two programs may make the same file."""
    until = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _make_tables(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not _is_ours(connection, path):  # the other may have been faster
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter from a message that quotes the damage
        raise _in_our_words(path, error) from error


def _in_our_words(path: str, error: Any) -> errors.RookeryError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return errors.StoreError(f"{path}: another program keeps the store locked; end it, or try again later")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return errors.CannotWrite(path, f"cannot be written ({error}); free some space or choose another place")
    if code == sqlite3.SQLITE_NOTADB:
        return errors.UnknownFormat(path, "is no SQLite database; wanted a store of talks")
    return errors.DamagedFile(path, f"the store is damaged ({error}); take a copy of it from before")


def _before_fork() -> None:
    for database in list(_open):
        database.writer.lock.acquire()
        database.reader.lock.acquire()
        database.disconnect()
        _forking.append(database)


def _after_fork() -> None:
    while _forking:
        database = _forking.pop()
        database.reader.lock.release()
        database.writer.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
