"""Keys: what a file may say, who is told apart, what each scope may do, and how little of a key is kept."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends
from serving import Here

from rookery import errors
from rookery.server import keys
from rookery.server.keys import Keys

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[..., str]:
    """key_file(*lines, mode=0o600): its path."""

    def write(*lines: str, mode: int = 0o600) -> str:
        path = tmp_path / "keys"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(mode)
        return str(path)

    return write


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# the file


def test_a_hashed_key(key_file: Callable[..., str]) -> None:
    said: list[str] = []
    path = key_file("# who: what", "", keys.line(KEY, "chat", "ann"), keys.line(OTHER, "read", "bob"))
    known = keys.load(path, said.append)
    assert said == []
    caller = known.caller(bearer(KEY))
    assert caller is not None
    assert (caller.name, caller.scopes) == ("ann", {"read", "chat"})
    assert known.caller(bearer(KEY + "x")) is None
    assert known.caller(bearer(keys.digest(KEY).hex())) is None  # the hash is no key
    assert known.caller({}) is None


def test_a_plain_key_is_taken_with_a_warning_that_does_not_repeat_it(key_file: Callable[..., str]) -> None:
    said: list[str] = []
    known = keys.load(key_file(f"{KEY} admin root"), said.append)
    caller = known.caller({"x-api-key": KEY})
    assert caller is not None
    assert caller.scopes == {"read", "chat", "admin"}
    assert len(said) == 1
    assert "--hash-key" in said[0]
    assert KEY not in said[0]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "has no key"),
        (["# nothing"], "has no key"),
        ([KEY], "has 1 words"),
        ([f"{KEY} chat"], "has 2 words"),
        ([f"{KEY} chat ann more"], "has 4 words"),
        ([f"{KEY} write ann"], "the scopes 'write'"),
        ([f"{KEY} read,,chat ann"], "the scopes"),
        ([f"{KEY} chat a/b"], "odd characters"),
        (["sha256:abc chat ann"], "64 hex digits"),
        ([f"{KEY} chat ann", f"{KEY} read bob"], "twice"),
        ([f"{KEY} chat ann", keys.line(KEY)], "twice"),
    ],
)
def test_a_wrong_line_is_one_line(key_file: Callable[..., str], lines: list[str], complaint: str) -> None:
    with pytest.raises(errors.InputError, match=complaint) as caught:
        keys.load(key_file(*lines), lambda _: None)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(key_file: Callable[..., str], mode: int) -> None:
    with pytest.raises(errors.NoPermission, match="chmod 600"):
        keys.load(key_file(keys.line(KEY), mode=mode), lambda _: None)


def test_a_path_that_is_no_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile):
        keys.load(str(tmp_path / "none"), lambda _: None)
    with pytest.raises(errors.NotAFile):
        keys.load(str(tmp_path), lambda _: None)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.InputError, match="is no text"):
        keys.load(str(tmp_path / "binary"), lambda _: None)


# who


def test_every_known_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    compare = hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: seen.append(a) or compare(a, b))
    known = Keys((keys.digest(f"key {n}"), keys.ALL, str(n)) for n in range(5))
    for key in ("key 0", "key 4", "none"):
        seen.clear()
        known.caller(bearer(key))
        assert len(seen) == 5


def test_no_key_is_held_in_the_open() -> None:
    known = Keys([(keys.digest(KEY), keys.ALL, "ann")])
    caller = known.caller(bearer(KEY))
    for held in (vars(known), vars(caller)):
        assert KEY not in repr(held)
    assert caller is not None
    assert caller.owner not in keys.digest(KEY).hex()


def test_an_open_server_tells_owners_apart() -> None:
    known = Keys()
    owners = [known.caller(headers).owner for headers in ({}, bearer(KEY), bearer(OTHER), {"x-api-key": KEY})]  # type: ignore[union-attr]
    assert owners[0] == ""
    assert len(set(owners)) == 3
    assert owners[1] == owners[3]


@pytest.mark.parametrize("key", ["", "\udcff", "é" * 10, "a" * 10_000])
def test_any_text_may_be_shown_as_a_key(key: str) -> None:
    assert Keys([(keys.digest(KEY), keys.ALL, "ann")]).caller(bearer(key)) is None


# over HTTP


@pytest.fixture
def keyed(serving: Callable[..., Here], key_file: Callable[..., str]) -> Iterator[httpx.Client]:
    path = key_file(keys.line(KEY, "read"), keys.line(OTHER, "chat"))
    here = serving(api_key_file=path)
    _add_routes(here)
    with here.client() as client:
        yield client


def _add_routes(here: Here) -> None:
    """/needs/SCOPE, which says who calls."""
    app: Any = here.server.config.app

    def add(scope: keys.Scope) -> None:
        async def who(caller: Any = Depends(keys.needs(scope))) -> dict[str, str]:  # noqa: B008
            return {"owner": caller.owner}

        app.get(f"/needs/{scope}")(who)
        app.post(f"/needs/{scope}")(who)

    for scope in keys.LADDER:
        add(scope)


@pytest.mark.parametrize(
    ("key", "statuses"), [(None, [401] * 3), ("wrong", [401] * 3), (KEY, [200, 403, 403]), (OTHER, [200, 200, 403])]
)
def test_scopes(keyed: httpx.Client, key: str | None, statuses: list[int]) -> None:
    headers = {} if key is None else bearer(key)
    answers = [keyed.get(f"/needs/{scope}", headers=headers) for scope in keys.LADDER]
    assert [answer.status_code for answer in answers] == statuses
    for answer in answers:
        if answer.status_code == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "insufficient_scope"


def test_metrics_and_the_document_need_a_key_and_health_none(keyed: httpx.Client) -> None:
    for path in ("/metrics", "/openapi.json"):
        assert keyed.get(path).status_code == 401
        assert keyed.get(path, headers=bearer(KEY)).status_code == 200
    for path in ("/health", "/health/live", "/health/ready"):
        assert keyed.get(path).status_code == 200


def test_the_body_of_a_stranger_is_not_read(keyed: httpx.Client) -> None:
    sent = 0

    def body() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 1 << 16
            yield bytes(1 << 16)

    answer = keyed.post("/needs/chat", content=body())
    assert answer.status_code == 401
    assert sent < 16 << 20
