"""Turns, talks and snapshots to put into a store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from rookery import store
from rookery.store import Node, Prefix, Snapshot, Span, Store, Talk

ROOT = store.root("fingerprint", "tokenizer", "initial", "native float32")
Open = Callable[..., Store]


def key_of(*tokens: int) -> str:
    return Prefix.start(ROOT).extend(tokens).key


def turn(parent: str | None = None, *tokens: int, **other: Any) -> Node:
    """A turn after `parent`, whose snapshot's key is that of its own tokens."""
    fields: dict[str, Any] = {
        "parent": parent,
        "base": parent,
        "tokens": tokens,
        "spans": (Span("user", 0, len(tokens)),),
        "tail": b"\xe2\x82",
        "messages": (("user", "How much is 3 €?"), ("assistant", "three \ud83d")),
        "stop": "stop",
        "sampling": '{"temperature": 0}',
        "key": key_of(*tokens),
        "created": 1.5,
    }
    return Node(**(fields | other))


def talk(name: str = "first", **other: Any) -> Talk:
    fields: dict[str, Any] = {"schema": store.SCHEMA, "fingerprint": "f", "lineage": "l", "tokenizer": "t"}
    return Talk(**(fields | {"name": name, "settings": '{"template": "world"}', "created": 2.5} | other))


def snapshot(seed: int = 0, n: int = 60, vocabulary: int | None = 7, dtype: Any = np.float32, **other: Any) -> Snapshot:
    random = np.random.default_rng(seed)
    logits = None if vocabulary is None else random.standard_normal(vocabulary).astype(dtype)
    fields: dict[str, Any] = {"tokens": 3, "fingerprint": "f", "version": "7"} | other
    return Snapshot(random.standard_normal(n).astype(dtype), logits, **fields)


def same(a: Snapshot | None, b: Snapshot) -> bool:
    """To the bit, types included."""
    if a is None or (a.logits is None) != (b.logits is None):
        return False
    arrays = [(a.flat, b.flat)] + ([] if a.logits is None or b.logits is None else [(a.logits, b.logits)])
    equal = all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in arrays)
    return equal and (a.tokens, a.fingerprint, a.version) == (b.tokens, b.fingerprint, b.version)


def environment() -> dict[str, str]:
    """For a program that imports this file."""
    return os.environ | {"PYTHONPATH": os.path.dirname(__file__)}


def check(path: Path) -> None:
    """That the file at `path` is whole, by SQLite's own word."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
