"""A store that several machines share: a Redis, by the extra `redis`.

Every change is one script, so that it happens at once or not at all, and may be sent again after a lost answer. How
durable a talk is there is the server's setting: `appendonly yes` with `appendfsync always` is what SQLite gives, and
`maxmemory-policy noeviction` keeps it from dropping talks; our budget drops states alone. Where the server is away,
states count as missing and talks raise StoreError.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from rookery import errors
from rookery.store.evict import Cache
from rookery.store.node import (
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
    read_turn,
    read_turns,
    taken,
    unknown,
)

BUDGET = 2 << 30
PREFIX = "rookery:1:"

# By name, for a talk: `talk` its header, `turns` id -> JSON, `keys` id -> snapshot key, `children` id -> how many turns
# come after, `heads` name -> id or "" before the first turn. For a snapshot's key: `state` its bytes, `at` the turns
# that end there. Of the whole store: `talks` by last use; the snapshots by last use, those that go `first` and those
# that go `last` (evict.py says which, and `goes_last` in these scripts' words), those to `keep` in neither; `sizes`,
# `bytes` and of these `kept`, `clock`.
_COMMON = """
local P = '@prefix@'
local call = redis.call

local function drop(key)
    local size = call('HGET', P .. 'sizes', key)
    if not size then return 0 end
    call('DECRBY', P .. 'bytes', size)
    call('HDEL', P .. 'sizes', key)
    call('ZREM', P .. 'first', key)
    call('ZREM', P .. 'last', key)
    if call('SREM', P .. 'keep', key) == 1 then call('DECRBY', P .. 'kept', size) end
    call('DEL', P .. 'state:' .. key)
    return 1
end

local function goes_last(key)
    for _, turn in ipairs(call('SMEMBERS', P .. 'at:' .. key)) do
        local id, name = turn:sub(1, 32), turn:sub(34)
        if call('HGET', P .. 'children:' .. name, id) ~= '1' then return true end
        for _, at in ipairs(call('HVALS', P .. 'heads:' .. name)) do
            if at == id then return true end
        end
    end
    return false
end

local function place(key, used)
    call('ZREM', P .. 'first', key)
    call('ZREM', P .. 'last', key)
    if call('SISMEMBER', P .. 'keep', key) == 1 then return end
    call('ZADD', P .. (goes_last(key) and 'last' or 'first'), used, key)
end

local function rank(key)
    local used = key and (call('ZSCORE', P .. 'first', key) or call('ZSCORE', P .. 'last', key))
    if used then place(key, used) end
end

local function touch(key)
    place(key, call('INCR', P .. 'clock'))
end

local function evict(budget, but)
    local gone = 0
    for _, order in ipairs({'first', 'last'}) do
        local at = 0
        while tonumber(call('GET', P .. 'bytes')) > budget do
            local key = call('ZRANGE', P .. order, at, at)[1]
            if not key then break end
            if key == but then at = 1 else gone = gone + drop(key) end
        end
    end
    return gone
end

local function move(name, head, expected, to, now)
    call('ZADD', P .. 'talks', now, name)
    local at = call('HGET', P .. 'heads:' .. name, head) or ''
    local moves = at == expected or at == to
    if moves then call('HSET', P .. 'heads:' .. name, head, to) end
    for _, turn in ipairs({at, to}) do rank(call('HGET', P .. 'keys:' .. name, turn)) end
    return moves and 1 or 0
end
""".replace("@prefix@", PREFIX)

_SCRIPTS = {
    "put": """
        local key, data, budget = ARGV[1], ARGV[2], tonumber(ARGV[4])
        local was = call('SISMEMBER', P .. 'keep', key) == 1
        local others = tonumber(call('GET', P .. 'kept') or '0')
        if was then others = others - tonumber(call('HGET', P .. 'sizes', key)) end
        if others + #data > budget then return -1 end
        drop(key)
        call('SET', P .. 'state:' .. key, data)
        call('HSET', P .. 'sizes', key, #data)
        if was or ARGV[3] == '1' then
            call('SADD', P .. 'keep', key)
            call('INCRBY', P .. 'kept', #data)
        end
        touch(key)
        call('INCRBY', P .. 'bytes', #data)
        return evict(budget, key)
    """,
    "get": """
        local data = call('GET', P .. 'state:' .. ARGV[1])
        if data then touch(ARGV[1]) else drop(ARGV[1]) end
        return data
    """,
    "drop": "return drop(ARGV[1])",
    "create": """
        local name, schema, header, now = unpack(ARGV)
        if call('EXISTS', P .. 'talk:' .. name) == 1 then return 0 end
        call('HSET', P .. 'talk:' .. name, 'schema', schema, 'header', header)
        return move(name, 'main', '', '', now)
    """,
    "add": """
        local name, id, parent, base, key, body, head, expected, now = unpack(ARGV)
        if call('EXISTS', P .. 'talk:' .. name) == 0 then return -2 end
        local turns, children = P .. 'turns:' .. name, P .. 'children:' .. name
        local before = {}
        if parent ~= '' then before[parent] = true end
        if base ~= '' then before[base] = true end
        for turn in pairs(before) do
            if call('HEXISTS', turns, turn) == 0 then return -1 end
        end
        if call('HSETNX', turns, id, body) == 1 then
            for turn in pairs(before) do call('HINCRBY', children, turn, 1) end
            call('HSET', P .. 'keys:' .. name, id, key)
            call('SADD', P .. 'at:' .. key, id .. ' ' .. name)
            for turn in pairs(before) do rank(call('HGET', P .. 'keys:' .. name, turn)) end
        end
        return move(name, head, expected, id, now)
    """,
    "move": """
        local name, head, expected, to, now = unpack(ARGV)
        if call('EXISTS', P .. 'talk:' .. name) == 0 then return -2 end
        if to ~= '' and call('HEXISTS', P .. 'turns:' .. name, to) == 0 then return -1 end
        return move(name, head, expected, to, now)
    """,
    "cut": """
        local name, id, parent, base, key = unpack(ARGV)
        if call('EXISTS', P .. 'talk:' .. name) == 0 then return -2 end
        if call('HEXISTS', P .. 'turns:' .. name, id) == 0 then return -1 end
        if tonumber(call('HGET', P .. 'children:' .. name, id) or '0') > 0 then return 0 end
        local heads = call('HGETALL', P .. 'heads:' .. name)
        for i = 1, #heads, 2 do
            if heads[i + 1] == id then call('HSET', P .. 'heads:' .. name, heads[i], parent) end
        end
        for _, kind in ipairs({'turns:', 'keys:', 'children:'}) do call('HDEL', P .. kind .. name, id) end
        call('SREM', P .. 'at:' .. key, id .. ' ' .. name)
        if call('EXISTS', P .. 'at:' .. key) == 0 then drop(key) end
        rank(key)
        local before = {}
        if parent ~= '' then before[parent] = true end
        if base ~= '' then before[base] = true end
        for turn in pairs(before) do
            call('HINCRBY', P .. 'children:' .. name, turn, -1)
            rank(call('HGET', P .. 'keys:' .. name, turn))
        end
        return 1
    """,
    "remove": """
        local name = ARGV[1]
        drop(ARGV[2])
        local keys = call('HGETALL', P .. 'keys:' .. name)
        for i = 1, #keys, 2 do
            call('SREM', P .. 'at:' .. keys[i + 1], keys[i] .. ' ' .. name)
            if call('EXISTS', P .. 'at:' .. keys[i + 1]) == 0 then drop(keys[i + 1]) end
            rank(keys[i + 1])
        end
        for _, kind in ipairs({'talk:', 'turns:', 'keys:', 'children:', 'heads:'}) do call('DEL', P .. kind .. name) end
        return call('ZREM', P .. 'talks', name)
    """,
}


class Redis(Cache):
    """`half`: states are rounded to float16; `budget`: bytes of snapshots, 2 GiB by default, of all who share it."""

    def __init__(self, url: str, half: bool = False, budget: int | None = None) -> None:
        super().__init__(half, BUDGET if budget is None else budget)
        self._where = _without_secrets(url)
        self._client, self._wrong = _client(url, self._where)
        self._scripts = {name: self._client.register_script(_COMMON + text) for name, text in _SCRIPTS.items()}
        with self._explained():
            self._client.ping()

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._wrong.ResponseError as error:
            raise errors.CannotWrite(self._where, f"the server refuses ({_line(error)})") from error
        except self._wrong.RedisError as error:
            what = f"cannot be reached ({_line(error)}); is the server running?"
            raise errors.StoreError(f"{self._where}: {what}") from error

    def _run(self, script: str, *arguments: object) -> Any:
        with self._explained():
            return self._scripts[script](args=["" if a is None else a for a in arguments])

    def _ask(self, command: str, *arguments: object) -> Any:
        with self._explained():
            return self._client.execute_command(command, *arguments)

    def _ask_all(self, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to many commands, in one round trip."""
        with self._explained():
            pipe = self._client.pipeline(transaction=False)
            for question in questions:
                pipe.execute_command(*question)
            return list(pipe.execute())

    # snapshots

    def _has(self, key: str) -> bool:
        return bool(self._ask("EXISTS", f"{PREFIX}state:{key}"))

    def _write(self, key: str, data: bytes, keep: bool) -> int:
        gone: int = self._run("put", key, data, int(keep), self.budget)
        if gone < 0:
            raise self._no_room(len(data))
        return gone

    def _read(self, key: str) -> bytes | None:
        data: bytes | None = self._run("get", key)
        return data

    def _drop(self, key: str) -> None:
        self._run("drop", key)

    def _size(self) -> tuple[int, int]:
        count, size = self._ask_all([("HLEN", f"{PREFIX}sizes"), ("GET", f"{PREFIX}bytes")])
        return count, int(size or 0)

    # talks

    def create(self, talk: Talk) -> None:
        check_new(self._where, talk)
        if not self._run("create", talk.name, talk.schema, talk.to_json(), time.time()):
            raise taken(talk.name)

    def talk(self, name: str) -> Talk:
        schema, header = self._ask("HMGET", f"{PREFIX}talk:{check_name(name)}", "schema", "header")
        if header is None:
            raise unknown(name, self._where)
        return read_talk(self._where, name, _number(schema), _text(header))

    def talks(self, begin: str = "", after: str | None = None, limit: int | None = None) -> list[tuple[Talk, float]]:
        known = self._ask_all([("ZREVRANGE", f"{PREFIX}talks", 0, -1, "WITHSCORES")])[0]
        rows = [(_text(name), float(used)) for name, used in known]
        if after is not None:
            names = [name for name, _ in rows]
            rows = rows[names.index(after) + 1 :] if after in names else []
        rows = [row for row in rows if row[0].startswith(begin)][:limit]
        headers = self._ask_all([("HMGET", f"{PREFIX}talk:{name}", "schema", "header") for name, _ in rows])
        found = []
        for (name, used), (schema, header) in zip(rows, headers, strict=True):
            try:
                if header is not None:  # else it was removed just now
                    found.append((read_talk(self._where, name, _number(schema), _text(header)), used))
            except errors.FileError as error:
                warnings.warn(str(error), stacklevel=2)
        return found

    def nodes(self, name: str) -> dict[str, Node]:
        self._check(name)
        rows = self._ask("HGETALL", f"{PREFIX}turns:{name}").items()
        return read_turns(self._where, name, [(_text(id), _text(body)) for id, body in rows])

    def has_turn(self, name: str, turn: str) -> bool:
        self._check(name)
        return bool(self._ask("HEXISTS", f"{PREFIX}turns:{name}", turn))

    def heads(self, name: str) -> dict[str, str | None]:
        self._check(name)
        return {_text(h): _text(id) or None for h, id in self._ask("HGETALL", f"{PREFIX}heads:{name}").items()}

    def add(self, name: str, node: Node, head: str, expected: str | None) -> bool:
        check_name(head, "head")
        self._check(name)
        row = (node.id, node.parent, node.base, node.key, node.to_json())
        return self._moved(name, "the turn before it", self._run("add", name, *row, head, expected, time.time()))

    def move(self, name: str, head: str, expected: str | None, to: str | None) -> bool:
        check_name(head, "head")
        self._check(name)
        return self._moved(name, f"turn {to}", self._run("move", name, head, expected, to, time.time()))

    def _moved(self, name: str, what: str, answer: int) -> bool:
        """What the script answered: 1 moved, 0 the head is elsewhere, -1 a turn is not there, -2 the talk is not."""
        if answer < -1:
            raise unknown(name, self._where)
        if answer < 0:
            raise absent(name, what)
        return bool(answer)

    def cut(self, name: str, turn: str) -> None:
        self._check(name)
        body = self._ask("HGET", f"{PREFIX}turns:{name}", turn)
        if body is None:
            raise no_turn(name, turn)
        node = read_turn(self._where, name, turn, _text(body))
        if not self._moved(name, f"turn {turn}", self._run("cut", name, turn, node.parent, node.base, node.key)):
            raise followed(turn)

    def remove(self, name: str) -> None:
        if not self._run("remove", check_name(name), beginning(name)):
            raise unknown(name, self._where)

    def _check(self, name: str) -> None:
        """Raises StoreError if there is no such talk, NewerFile for one that is not ours to touch."""
        schema = self._ask("HGET", f"{PREFIX}talk:{check_name(name)}", "schema")
        if schema is None:
            raise unknown(name, self._where)
        check_schema(self._where, name, _number(schema))


def _client(url: str, where: str) -> tuple[Any, Any]:
    """A client that waits seconds for a server, not minutes; and the library's errors."""
    try:
        import redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry
    except ImportError:
        raise errors.MissingExtra(f"the store {where}", "redis") from None
    try:
        retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)
        client: Any = redis.Redis.from_url(url, socket_timeout=30, socket_connect_timeout=5, retry=retry)
    except ValueError as error:
        raise errors.InputError(f"{where} is no address of a Redis ({_line(error)})") from None
    return client, redis.exceptions


def _without_secrets(url: str) -> str:
    """The address as it may be shown: no user, no password, no options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.split("://")[0] + "://"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _number(data: bytes) -> int:
    return int(data) if data.isdigit() else 0
