"""Every kind of store by one name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from store_things import Open

from rookery import store
from rookery.store import Store


@pytest.fixture
def opened(place: str) -> Iterator[Open]:
    """`opened(half=, budget=)`: the store there; in memory a new one each time."""
    with ExitStack() as all_of_them:

        def make(**settings: Any) -> Store:
            return all_of_them.enter_context(store.open(place, **settings))

        yield make


@pytest.fixture
def later(place: str, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`later(name)` makes the store say that a later Rookery wrote the talk."""

    def in_redis(name: str) -> None:
        request.getfixturevalue("redis_client").hset(f"rookery:1:talk:{name}", "schema", store.SCHEMA + 1)

    def in_file(name: str) -> None:
        with closing(sqlite3.connect(place)) as db, db:
            db.execute("UPDATE talk SET schema = ? WHERE name = ?", (store.SCHEMA + 1, name))

    return in_redis if place.startswith("unix:") else in_file


@pytest.fixture
def lasting(place: str, opened: Open) -> Open:
    """As `opened`, of the stores that outlive their object."""
    if place == ":memory:":
        pytest.skip("ends with its object")
    return opened
