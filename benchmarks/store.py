"""Where a state should lie: a blob in SQLite, or a file beside an index in SQLite.

    python benchmarks/store.py [--folder PLACE] [--rounds 15] [--snapshots 10000] [--json]

Median milliseconds to put and to get states of the sizes of 0.1B (v4), 0.1B, 1.5B and 7B models, one in and one out
among eight: with every write on the disk before the next ("fsync"), and as the store does it for a cache ("lazy").
"store" is the whole of `put` and `get`, encoding, digest and eviction included. Then a `put` that has to evict among
many snapshots, when any may go and when all are leaves of talks, and the `add` of one turn. PLACE should be on the disk
that is meant.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rookery.store import Node, Snapshot, Talk
from rookery.store.database import Database
from rookery.store.sqlite import SQLite

SIZES = (0.2, 2.4, 13.0, 35.0)  # MB
HELD = 8
Timed = Callable[[int], None]


class Blobs:
    """Rows with the payload in them."""

    def __init__(self, folder: Path, durable: bool) -> None:
        self.db, self.durable = Database(folder / "blobs.db"), durable
        with self.db.writing() as db:
            db.execute("CREATE TABLE blob (key TEXT PRIMARY KEY, payload BLOB)")

    def put(self, key: str, data: bytes, old: str) -> None:
        with self.db.writing(self.durable) as db:
            db.execute("DELETE FROM blob WHERE key = ?", (old,))
            db.execute("INSERT INTO blob VALUES (?, ?)", (key, data))

    def get(self, key: str) -> bytes:
        with self.db.reading() as db:
            found: bytes = db.execute("SELECT payload FROM blob WHERE key = ?", (key,)).fetchone()[0]
            return found


class Files(Blobs):
    """A file a row, written before it and dropped with it."""

    def __init__(self, folder: Path, durable: bool) -> None:
        super().__init__(folder, durable)
        self.folder = folder

    def put(self, key: str, data: bytes, old: str) -> None:
        with open(self.folder / "new", "wb") as file:
            file.write(data)
            if self.durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(self.folder / "new", self.folder / key)
        super().put(key, b"", old)
        (self.folder / old).unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        super().get(key)
        return (self.folder / key).read_bytes()


class Whole:
    """The store as it is."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.store = SQLite(folder / "whole.db", budget=budget)

    def put(self, key: str, data: bytes, old: str) -> None:
        self.store.put(key, Snapshot(np.frombuffer(data, np.float32), None, 1, "f", "7"))

    def get(self, key: str) -> bytes:
        found = self.store.get(key)
        assert found is not None
        return found.flat.data.cast("B")[:]  # type: ignore[return-value]


def median_ms(rounds: int, work: Timed) -> float:
    times = []
    for i in range(rounds):
        begin = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def cycle(kind: Any, data: list[bytes], rounds: int) -> tuple[float, float]:
    """Medians of a put that replaces the oldest of HELD, and of a get."""

    def put(i: int) -> None:
        kind.put(str(i), data[i % len(data)], str(i - HELD))

    for i in range(HELD):
        put(i)
    return median_ms(rounds, lambda i: put(HELD + i)), median_ms(rounds, lambda i: kind.get(str(rounds + i % HELD)))


def payloads(folder: Path, rounds: int) -> list[dict[str, Any]]:
    found = []
    for size in SIZES:
        data = [np.random.default_rng(i).bytes(int(size * 1e6) // 4 * 4) for i in range(HELD + 1)]
        with tempfile.TemporaryDirectory(dir=folder) as place:
            kinds: dict[str, Any] = {}
            for name, durable in (("fsync", True), ("lazy", False)):
                for make in (Blobs, Files):
                    (at := Path(place, f"{name}-{make.__name__}")).mkdir()
                    kinds[f"{make.__name__.lower()} {name}"] = make(at, durable)
            kinds["store"] = Whole(Path(place), int(HELD * (size * 1e6 + 4096)))
            for name, kind in kinds.items():
                put, get = cycle(kind, data, rounds)
                found.append({"mb": size, "kind": name, "put": put, "get": get})
    return found


def turns(store: SQLite, count: int) -> None:
    """A talk of turns that all follow the first: each a leaf."""
    store.create(Talk("talk", 1, "f", "l", "t", "{}", 0.0))
    made: list[Node] = []
    for i in range(count):
        parent = made[0].id if made else None
        key = hashlib.sha256(str(i).encode()).hexdigest()
        made.append(Node(parent, parent, (i,), (), b"", (), "end", "{}", key, 0.0))
    with store._file.writing() as db:
        for node in made:
            row = (1, node.id, node.parent, node.base, node.key, node.to_json())
            db.execute("INSERT INTO turn VALUES (?, ?, ?, ?, ?, ?)", row)


def many(folder: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    state = Snapshot(np.zeros(256, np.float32), None, 1, "f", "7")
    size = len(state.encode())
    for kind in ("any may go", "all are leaves"):
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            SQLite(Path(place, "x.db"), budget=count * size) as store,
        ):
            keys = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
            if kind == "all are leaves":
                turns(store, count)
            with store._file.writing() as db:
                rows = ((key, i, size, 0, kind == "all are leaves") for i, key in enumerate(keys))
                db.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)", rows)
            ms = median_ms(rounds, lambda i: store.put(f"new {i}", state))
            assert store.stats()["evicted"] == rounds
            found.append({"kind": kind, "snapshots": count, "put": ms})
    return found


def adding(folder: Path, rounds: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place, SQLite(Path(place, "x.db")) as store:
        store.create(Talk("talk", 1, "f", "l", "t", "{}", 0.0))
        at: list[str | None] = [None]

        def add(i: int) -> None:
            node = Node(at[-1], at[-1], tuple(range(300)), (), b"", (("user", "x" * 500),), "end", "{}", "0" * 64, 0.0)
            assert store.add("talk", node, "main", at[-1])
            at.append(node.id)

        return median_ms(10 * rounds, add)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; default: that of temporary files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--snapshots", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        found = {
            "payloads": payloads(folder, arguments.rounds),
            "evictions": many(folder, arguments.snapshots, arguments.rounds),
            "add": adding(folder, arguments.rounds),
        }
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'MB':>5} {'where':14} {'put ms':>8} {'get ms':>8}")
    for r in found["payloads"]:
        print(f"{r['mb']:5} {r['kind']:14} {r['put']:8.1f} {r['get']:8.1f}")
    for r in found["evictions"]:
        print(f"put that evicts one of {r['snapshots']}, {r['kind']}: {r['put']:.1f} ms")
    print(f"add of a turn: {found['add']:.1f} ms")


if __name__ == "__main__":
    main()
