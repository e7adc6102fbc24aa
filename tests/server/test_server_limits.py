"""Grammars are compiled few at a time, and a refusal costs once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rookery.errors import InputError
from rookery.server.errors import ApiError
from rookery.server.limits import AT_ONCE, WAITING, Compiler, Limit, limit
from rookery.server.shapes import Limited
from rookery.tokenizer import Bytes

TEXT = Bytes()


def test_a_refusal_costs_once() -> None:
    tried: list[Any] = []

    def make(*_: Any, **limits: Any) -> Any:
        tried.append(limits)
        raise InputError(f"no: {limits}")

    compiler = Compiler(make)
    for text in ("a", "a", "b", "a", "b"):
        with pytest.raises(InputError, match=f"no: .*'{text}'"):
            compiler(Limit("regex", text), TEXT, 256)
    with pytest.raises(InputError, match=r"no: .*schema"):
        compiler(Limit("schema", "a"), TEXT, 256)
    assert tried == [{"regex": "a"}, {"regex": "b"}, {"schema": "a"}]


def test_few_at_once_and_few_that_wait() -> None:
    go, lock, running, most = threading.Event(), threading.Lock(), [0], [0]

    def make(*_: Any, **limits: Any) -> Any:
        if limits == {"regex": "bad"}:
            raise InputError("bad")
        with lock:
            running[0] += 1
            most[0] = max(most)
            most.append(running[0])
        go.wait(60)
        with lock:
            running[0] -= 1
        return "made"

    compiler, made = Compiler(make), []
    with pytest.raises(InputError, match="bad"):
        compiler(Limit("regex", "bad"), TEXT, 256)
    threads = [
        threading.Thread(target=lambda n=n: made.append(compiler(Limit("regex", str(n)), TEXT, 256)))
        for n in range(AT_ONCE + WAITING)
    ]
    for thread in threads:
        thread.start()
    while compiler._waiting < AT_ONCE + WAITING or running[0] < AT_ONCE:
        pass
    try:
        with pytest.raises(ApiError) as refused:
            compiler(Limit("regex", "one more"), TEXT, 256)
        with pytest.raises(InputError, match="bad"):  # what is known takes no place
            compiler(Limit("regex", "bad"), TEXT, 256)
    finally:
        go.set()
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) > 0
    for thread in threads:
        thread.join(60)
    assert made == ["made"] * (AT_ONCE + WAITING)
    assert max(most) == AT_ONCE
    assert compiler(Limit("regex", "one more"), TEXT, 256) == "made"


def test_a_reply_follows_one_form() -> None:
    assert limit(Limited()) is None
    assert limit(Limited(regex="a")) == Limit("regex", "a", blank=True)
    assert limit(Limited.model_validate({"response_format": {"type": "text"}})) is None
    with pytest.raises(ApiError, match="regex and grammar"):
        limit(Limited(regex="a", grammar="b"))
    with pytest.raises(InputError, match="frob"):
        limit(Limited(json_schema={"frob": 1}))
