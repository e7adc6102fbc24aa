"""What a refusal says."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")

from serving import Here

from rookery.engine import Cancelled
from rookery.server.errors import as_api

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type", "required"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        (CHAT, {"messages": []}, "messages", "at least 1"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "n": 0}, "n", "greater than or equal to 1"),
        ("/v1/completions", {"prompt": [1, -1]}, "prompt.1", "greater than or equal to 0"),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": 1}]}]}, "input.0.content.0.type", "string"),
        ("/v1/responses", {}, "input", "required"),
    ],
)
def test_a_wrong_field_is_named_as_the_request_names_it(
    server: Here, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    with server.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert says in error["message"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/states", "GET, POST"), ("/v1/responses/resp_1", "DELETE, GET"), ("/v1/models", "GET"), (CHAT, "POST")],
)
def test_a_wrong_method_is_told_all_right_ones(server: Here, path: str, allowed: str) -> None:
    with server.client() as client:
        answer = client.patch(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_what_the_engines_end_cuts_off_may_be_asked_again() -> None:
    told = as_api(Cancelled())
    assert told is not None
    assert told.status == 503
    assert "Retry-After" in told.headers
