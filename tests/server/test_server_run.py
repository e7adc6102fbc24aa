"""A real process: what it says at its start, how it ends, what it refuses to begin with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import PATIENCE, Process, wait_for

from rookery.cli.main import main

STORY = {"prompt": "Once upon a time", "stream": True, "logit_bias": {"0": -100}, "temperature": 1.0, "seed": 1}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*args): the one line with which `rookery serve` ends with exit code 2."""
    monkeypatch.setattr("rookery.server.run.log_to_stderr", lambda level: None)

    def run(*args: object) -> str:
        store = [] if "--store" in args else ["--store", tmp_path / "store"]
        assert main(["serve", "-t", "1", *map(str, [*args, *store])]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert err.startswith("rookery: ")
        return err

    return run


class Streaming:
    """A client in a thread, reading one stream to its end. `text` is what came by now."""

    def __init__(self, server: Process, **request: Any) -> None:
        self.text, self.error = "", ""
        self._work = threading.Thread(target=self._read, args=(server, STORY | request))
        self._work.start()
        wait_for(lambda: "data:" in self.text or not self._work.is_alive())
        assert "data:" in self.text, (self.text, self.error, server.said)

    def _read(self, server: Process, request: dict[str, Any]) -> None:
        try:
            with server.client() as client, client.stream("POST", "/v1/completions", json=request) as answer:
                for piece in answer.iter_text():
                    self.text += piece
        except httpx.HTTPError as error:
            self.error = type(error).__name__

    def end(self) -> str:
        self._work.join(PATIENCE)
        assert not self._work.is_alive()
        return self.text


# the start


def test_it_says_where_it_is_and_ends_in_order(process: Callable[..., Process], tmp_path: Path) -> None:
    server = process("--alias", "mine", "--log-level", "warning")
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mine"]
    server.terminate()
    assert server.said == f"rookery: serving mine at {server.url}\n"
    assert (tmp_path / "store" / "talks.db").is_file()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_ctrl_c_ends_it_in_order_too(process: Callable[..., Process]) -> None:
    server = process()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in server.said


def test_told_to_end_while_it_loads(process: Callable[..., Process]) -> None:
    server = process(ready=False)
    wait_for(lambda: server.process.poll() is not None or _listens(server))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) in (0, -signal.SIGTERM)  # before it has a handler, the system ends it
    assert "Traceback" not in server.said


def _listens(server: Process) -> bool:
    """By now it has read its settings (no address is said before it is ready)."""
    return Path(f"/proc/{server.process.pid}/task").is_dir() and (server.err.parent / "store").is_dir()


def test_without_a_store_talks_lie_with_the_users_data(tmp_path: Path) -> None:
    from rookery.cli import serve

    settings = serve._settings(serve.parser().parse_args([]), {})
    assert settings.store.endswith(os.path.join("rookery", "serve"))
    assert (settings.host, settings.port, settings.max_batch) == ("127.0.0.1", 8000, 16)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--host", "0.0.0.0"], ["--api-key-file", "--insecure"]),
        (["--host", "::"], ["--api-key-file", "--insecure"]),
        (["--host", "10.0.0.1"], ["--api-key-file", "--insecure"]),
        (["--host", "no.such.host.invalid"], ["--api-key-file"]),
        (["--host", "no.such.host.invalid", "--insecure"], ["no.such.host.invalid", "IP address"]),
        (["--host", "192.0.2.1", "--insecure"], ["192.0.2.1:8000"]),
        (["--port", "65536"], ["port is 65536"]),
        (["--port", "-1"], ["--port"]),
        (["--max-batch", "0"], ["--max-batch"]),
        (["--api-key-file", "none"], ["none: no such file"]),
        (["--records", "--store", "redis://localhost:1"], ["--store DIR"]),
        (["-m", "none.gguf", "--port", "0"], ["none.gguf"]),
        (["--chat-template", "none", "--port", "0"], ["none"]),
        (["--store", "redis://localhost:1", "--port", "0"], ["localhost:1"]),
        (["--cors", "page.example"], ["--cors", "https://"]),
        (["--log-level", "loud"], ["--log-level"]),
    ],
)
def test_a_wrong_start_is_one_line(refused: Callable[..., str], args: list[str], parts: list[str]) -> None:
    line = refused(*args)
    for part in parts:
        assert part in line


def test_whatever_is_logged_or_warned_of_is_one_line() -> None:
    code = """
import logging, warnings
from rookery.server.run import log_to_stderr
log_to_stderr("info")
warnings.warn("the first", stacklevel=1)
logging.getLogger("rookery.engine").warning("the second")
logging.getLogger("rookery.server").info("the third")
logging.getLogger("rookery.server").debug("not this")
logging.getLogger("uvicorn.error").error("nor this")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    lines = [line.split(" ", 1) for line in done.stderr.splitlines()]
    assert [line for _, line in lines] == ["W the first", "W the second", "I the third"]


def test_a_port_in_use(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--port", port)
    assert f"127.0.0.1:{port}: is in use already" in line
    assert "--port" in line


def test_a_port_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    from rookery.errors import NoPermission
    from rookery.server.run import bind
    from rookery.server.settings import Settings

    def deny(self: Any, address: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", deny)
    with pytest.raises(NoPermission, match="1024 or more"):
        bind(Settings(port=80))


def test_a_store_that_is_a_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("--store", tmp_path / "file", "--port", 0)


def test_a_key_file_that_others_can_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "keys").write_text("sk-0123456789abcdef chat ann\n")
    (tmp_path / "keys").chmod(0o644)
    assert "chmod 600" in refused("--api-key-file", tmp_path / "keys")


def test_a_key_becomes_its_line(tmp_path: Path, process: Callable[..., Process]) -> None:
    command = [sys.executable, "-m", "rookery", "serve", "--hash-key"]
    done = subprocess.run(command, input="sk-0123456789abcdef\n", capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    (tmp_path / "keys").write_text(done.stdout)
    (tmp_path / "keys").chmod(0o600)
    assert "sk-" not in done.stdout
    server = process("--api-key-file", tmp_path / "keys", "--host", "0.0.0.0")
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "sk-0123456789abcdef"}).status_code == 200


def test_as_many_files_as_connections_need(process: Callable[..., Process]) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1024 + 256:
        pytest.skip(f"the system allows only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = process()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] >= 1024 + 256


# the end


def test_sigterm_lets_a_stream_finish_and_takes_nothing_new(process: Callable[..., Process]) -> None:
    server = process()
    stream = Streaming(server, max_tokens=4000)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: _refuses(server))
    assert server.process.poll() is None, "the stream was over before the server could be seen to wait"
    text = stream.end()
    assert "requests in flight: 1, with 30 s" in server.said
    assert text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in text
    assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in server.said


def _refuses(server: Process) -> bool:
    try:
        return httpx.get(f"{server.url}/health/ready").status_code == 503
    except httpx.ConnectError:
        return True


def test_what_is_not_done_in_time_is_cut_off_with_a_word(process: Callable[..., Process]) -> None:
    server = process("--drain", 1)
    stream = Streaming(server, max_tokens=1_000_000)
    server.terminate()
    assert "going down" in stream.end()[-400:]
    assert "Traceback" not in server.said


def test_an_answer_that_is_not_done_in_time_is_503(process: Callable[..., Process]) -> None:
    server = process("--drain", 1)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with server.client() as client:
            answers.append(client.post("/v1/completions", json=STORY | {"stream": False, "max_tokens": 1_000_000}))

    asking = threading.Thread(target=ask)
    asking.start()
    with server.client() as client:
        wait_for(lambda: "rookery_engine_running 1.0" in client.get("/metrics").text)
    server.terminate()
    asking.join(PATIENCE)
    (answer,) = answers
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "draining"
    assert answer.headers["retry-after"]


def test_a_second_signal_ends_it_at_once(process: Callable[..., Process]) -> None:
    server = process("--drain", 600)
    stream = Streaming(server, max_tokens=1_000_000)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: _refuses(server))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
    stream.end()
    assert stream.error


def test_a_client_with_an_idle_connection_does_not_hold_the_end_up(process: Callable[..., Process]) -> None:
    server = process("--drain", 600)
    with server.client() as client:
        client.get("/health")
        server.terminate()


def test_the_next_server_goes_on_with_the_same_store(process: Callable[..., Process], tmp_path: Path) -> None:
    first = process("--store", tmp_path / "kept")
    first.kill()
    process("--store", tmp_path / "kept").terminate()
