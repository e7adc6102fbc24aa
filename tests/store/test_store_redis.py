"""What a shared server adds: that it can be away, refuse, or hold what others wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from store_things import key_of, same, snapshot, talk, turn

from rookery import errors, store
from rookery.store.redis import _without_secrets


def test_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with pytest.raises(errors.StoreError, match=r"cannot be reached.*is the server running") as caught:
        store.open(f"unix://someone:secret@{tmp_path}/nothing?db=3")
    assert "secret" not in str(caught.value)


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(errors.MissingExtra, match=r"redis://host needs .*rookery\[redis\]"):
        store.open("redis://:secret@host")


@pytest.mark.parametrize("url", ["redis://host:port", "redis://host/0?socket_timeout=long"])
def test_an_address_that_is_none(url: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(errors.InputError, match="no address of a Redis"):
        store.open(url)


def test_addresses_are_shown_without_secrets() -> None:
    assert _without_secrets("redis://me:secret@host:6379/2?password=secret") == "redis://host:6379/2"
    assert _without_secrets("rediss://[bad:secret@") == "rediss://"


def test_a_server_that_goes_away_costs_states_not_the_program(redis_server: str, redis_client: Any) -> None:
    with store.open(redis_server) as made:
        made.create(talk())
        one = turn(None, 1)
        made.add("first", one, "main", None)
        made.put(one.key, snapshot())
        socket = Path(redis_server.removeprefix("unix://"))
        socket.rename(socket.with_name("away"))
        redis_client.client_kill_filter(_type="normal", skipme=True)
        with pytest.warns(UserWarning, match=r"cannot be reached.*computed again"):
            assert made.get(one.key) is None
        made.put(one.key, snapshot())
        for use in (made.talk, made.nodes, made.heads, made.remove):
            with pytest.raises(errors.StoreError, match="cannot be reached"):
                use("first")
        with pytest.raises(errors.StoreError, match="cannot be reached"):
            made.add("first", turn(one.id, 2), "main", one.id)
        socket.with_name("away").rename(socket)
        assert same(made.get(one.key), snapshot())
        assert made.nodes("first") == {one.id: one}
        assert made.stats()["failed"] == 2


def test_a_full_server_refuses_in_one_line(redis_server: str, redis_client: Any) -> None:
    with store.open(redis_server) as made:
        made.create(talk())
        redis_client.config_set("maxmemory", "1")
        try:
            with pytest.raises(errors.CannotWrite, match="the server refuses"):
                made.add("first", turn(None, 1), "main", None)
            with pytest.warns(UserWarning, match="the server refuses"):
                made.put(key_of(1), snapshot())
            assert made.nodes("first") == {}
        finally:
            redis_client.config_set("maxmemory", "0")
        assert made.add("first", turn(None, 1), "main", None)


def test_damage_is_found(redis_server: str, redis_client: Any) -> None:
    with store.open(redis_server) as made:
        made.create(talk())
        one = turn(None, 1)
        made.add("first", one, "main", None)
        made.put(one.key, snapshot())
        redis_client.setrange(f"rookery:1:state:{one.key}", 500, b"\xff")
        assert made.get(one.key) is None
        assert not made.has(one.key)
        assert (made.stats()["damaged"], made.stats()["bytes"]) == (1, 0)
        redis_client.hset("rookery:1:turns:first", one.id, turn(None, 2).to_json())
        with pytest.raises(errors.DamagedFile, match=f"talk 'first': turn {one.id} is damaged"):
            made.nodes("first")
        redis_client.hset("rookery:1:talk:first", "header", b"\xff")
        with pytest.raises(errors.DamagedFile, match="talk 'first' is damaged"):
            made.talk("first")


def test_a_state_that_the_server_dropped_is_a_miss(redis_server: str, redis_client: Any) -> None:
    with store.open(redis_server) as made:
        made.put(key_of(1), snapshot())
        redis_client.delete(f"rookery:1:state:{key_of(1)}")
        assert made.get(key_of(1)) is None
        assert made.stats() | {"misses": 0} == dict.fromkeys(made.stats(), 0)


def test_two_objects_share_a_budget(redis_server: str, redis_client: Any) -> None:
    size = len(snapshot().encode())
    with store.open(redis_server, budget=3 * size) as one, store.open(redis_server, budget=3 * size) as two:
        for n in range(3):
            one.put(key_of(n), snapshot())
            two.put(key_of(10 + n), snapshot())
        assert one.stats()["bytes"] == 3 * size
        assert [two.has(key_of(n)) for n in (1, 2, 11, 12)] == [False, True, True, True]
