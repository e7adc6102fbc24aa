"""Live, ready, and the shape of every refusal that no route makes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving import Here

from rookery.server.errors import ErrorBody
from rookery.server.run import listen
from rookery.server.settings import Settings


def check(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """It is an error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = ErrorBody.model_validate(answer.json(), strict=True).error
    assert code is None or error.code == code, error
    return answer.json()["error"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_a_ready_server_says_so(server: Here, path: str) -> None:
    with server.client() as client:
        answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}


def test_it_listens_while_the_model_is_loaded(tiny_v7: Any) -> None:
    go_on = threading.Event()

    def load() -> Any:
        go_on.wait()
        return tiny_v7

    here = Here(load)
    with here.client() as client:
        assert client.get("/health/live").status_code == 200
        for path in ("/health", "/health/ready", "/metrics"):
            answer = client.get(path)
            check(answer, 503, "loading")
            assert int(answer.headers["retry-after"]) > 0
        assert here.said == []
        go_on.set()
        with here:
            assert client.get("/health/ready").status_code == 200
            assert here.said == [f"serving v7 at {here.url}"]


def test_a_draining_server_is_not_ready(serving: Callable[..., Here]) -> None:
    here = serving()
    here.life.drain()
    with here.client() as client:
        check(client.get("/health/ready"), 503, "draining")
        check(client.get("/metrics"), 503, "draining")
        assert client.get("/health/live").status_code == 200


def test_told_to_end_while_it_loads_it_ends_when_it_has_loaded(tiny_v7: Any) -> None:
    go_on = threading.Event()

    def load() -> Any:
        go_on.wait()
        return tiny_v7

    here = Here(load)
    with here.client() as client:
        client.get("/health/live")
    here.server.end()
    here.thread.join(0.3)
    assert here.thread.is_alive()  # a thread that reads a file in native code cannot be left alone
    go_on.set()
    here.thread.join(20)
    assert not here.thread.is_alive()
    assert here.said == []


def test_told_to_end_it_is_draining_at_once(serving: Callable[..., Here]) -> None:
    here = serving()
    here.server.end()
    assert here.life.phase == "draining"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_its_engine_it_is_not_ready(serving: Callable[..., Here]) -> None:
    here = serving()

    def stop() -> bool:
        raise SystemExit

    here.service.engine.step = stop  # type: ignore[method-assign]
    with here.client() as client:
        with suppress(httpx.ReadTimeout):
            client.post("/v1/completions", json={"prompt": "a"}, timeout=0.2)  # wakes it
        here.service.engine._thread.join()  # type: ignore[union-attr]
        check(client.get("/health/ready"), 503, "engine_stopped")
        assert client.get("/health/live").status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> Any:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        listen(Settings(port=0), load, print).run()


def test_unknown_paths_and_methods(server: Here) -> None:
    with server.client() as client:
        check(client.get("/nothing"), 404, "not_found")
        check(client.get("/health/"), 404, "not_found")
        answer = client.post("/health")
        assert check(answer, 405, "method_not_allowed")["message"] == "not with this method, but with GET"
        assert answer.headers["allow"] == "GET"


def test_no_web_page_of_others_is_loaded(server: Here) -> None:
    with server.client() as client:
        check(client.get("/docs"), 404)
        assert client.get("/openapi.json").json()["openapi"].startswith("3.")


def test_the_document_has_no_answer_that_is_never_given(server: Here) -> None:
    with server.client() as client:
        text = client.get("/openapi.json").text
    assert '"422"' not in text
    assert "HTTPValidationError" not in text
