"""What a server keeps through faults that are really done: nothing that was acknowledged is lost, and what goes on is
what would have been without them, token for token.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FIXTURES, Here, Process, wait_for
from talking import GREEDY, WAYS, Chain, ask, events_of, stream, text_of

from rookery import Session

TINY = ("-m", FIXTURES / "v7.safetensors", "--tokenizer", "bytes")
Start = Callable[..., Process]


def kill_while_streaming(server: Process, chain: Chain) -> list[dict[str, Any]]:
    """In the middle of a reply, of which nothing was acknowledged."""
    assert chain.last is not None
    with server.client() as client, stream(client, "Long.", chain.last["id"], 100_000) as answer:
        heard = events_of(answer)
        for _ in range(30):
            assert next(heard)["type"] != "response.failed"
        server.kill()
        with pytest.raises(httpx.TransportError):
            list(heard)
    return []


def kill_while_writing(server: Process, chain: Chain, after: float) -> list[dict[str, Any]]:
    """While turns are put into the store, one after the other; those that were acknowledged."""
    assert chain.last is not None
    previous, heard = chain.last["id"], []

    def talk() -> None:
        with server.client() as client:
            for n in range(10_000):
                heard.append(ask(client, f"{n}", previous, max_output_tokens=1))

    with ThreadPoolExecutor(2) as pool:
        talking = [pool.submit(talk) for _ in range(2)]
        wait_for(lambda: heard)
        time.sleep(after)
        server.kill()
        for each in talking:
            with pytest.raises(httpx.TransportError):
                each.result()
    return heard


def kill_again_and_again(start: Start, chain: Chain, folder: Path, times: int) -> None:
    moments, server = random.Random(times), start(*TINY)
    for n in range(times):
        with server.client() as client:
            chain.go_on(client, f"Turn {n}.")
        kill = (kill_while_writing, (moments.random() / 4,)) if n % 2 else (kill_while_streaming, ())
        heard = kill[0](server, chain, *kill[1])  # type: ignore[operator]
        server = start(*TINY)
        with server.client() as client:
            for said in heard:
                assert client.get(f"/v1/responses/{said['id']}").json() == said
            chain.check(client, folder)
    with server.client() as client:
        chain.go_on(client, "The last.")
        chain.check(client, folder)


def test_kill_9_loses_nothing_that_was_acknowledged(process: Start, tiny_v7: Any, tmp_path: Path) -> None:
    kill_again_and_again(process, Chain(tiny_v7, "seeded"), tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_kill_9_again_and_again(process: Start, tiny_v7: Any, tmp_path: Path, way: str) -> None:
    kill_again_and_again(process, Chain(tiny_v7, way), tmp_path, 10)


@pytest.fixture(params=["sqlite", "redis"])
def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that several servers can use."""
    return request.getfixturevalue("redis_server") if request.param == "redis" else str(tmp_path / "shared")


@pytest.mark.parametrize("way", WAYS)
def test_another_server_on_the_same_store_goes_on(
    serving: Callable[..., Here], tiny_v7: Any, tmp_path: Path, shared_store: str, way: str
) -> None:
    chain = Chain(tiny_v7, way)
    servers = [serving(store=shared_store), serving(store=shared_store)]
    for n in range(4):
        with servers[n % 2].client() as client:
            chain.go_on(client, f"Turn {n}.")
            chain.check(client, tmp_path)


def test_another_server_takes_over_from_one_that_was_killed(
    process: Start, tiny_v7: Any, tmp_path: Path, shared_store: str
) -> None:
    chain = Chain(tiny_v7, "seeded")
    one, other = (process(*TINY, "--store", shared_store) for _ in range(2))
    for server in (one, other):
        with server.client() as client:
            chain.go_on(client, "Who is there?")
    with other.client() as client:
        chain.check(client, tmp_path)
    assert chain.last is not None
    kill_while_streaming(other, chain)
    with one.client() as client:
        chain.go_on(client, "Still there?")
        chain.check(client, tmp_path)


def test_two_servers_race_from_one_turn_and_both_turns_stay(serving: Callable[..., Here], shared_store: str) -> None:
    servers = [serving(store=shared_store), serving(store=shared_store)]
    clients = [server.client() for server in servers]
    first = ask(clients[0], "First.", max_output_tokens=3)
    together = threading.Barrier(4)

    def race(n: int) -> dict[str, Any]:
        with servers[n % 2].client() as client:
            together.wait()
            return ask(client, f"Racer {n}.", first["id"], max_output_tokens=5)

    with ThreadPoolExecutor(4) as pool:
        racers = list(pool.map(race, range(4)))
    assert len({racer["id"] for racer in racers}) == 4
    for client in clients:
        for racer in racers:
            assert client.get(f"/v1/responses/{racer['id']}").json() == racer
            ask(client, "And on.", racer["id"], max_output_tokens=2)
    turns = clients[1].get(f"/v1/states/{first['rookery']['state']}").json()["turns"]
    assert [turn["parent"] for turn in turns].count(first["id"]) == 4
    for client in clients:
        client.close()


def refused(client: httpx.Client, **body: Any) -> None:
    """503 in OpenAI's shape, for the store."""
    answer = client.post("/v1/responses", json={"max_output_tokens": 5, **body})
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "store_unavailable"
    assert int(answer.headers["retry-after"]) > 0


def test_a_full_disk_refuses_and_the_server_goes_on_when_there_is_room(
    process: Start, tiny_v7: Any, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("no prlimit here")
    server, chain = process(*TINY), Chain(tiny_v7, "seeded")
    pid = server.process.pid
    with server.client() as client:
        chain.go_on(client, "Before.")
        assert chain.last is not None
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, before[1]))  # no file may be longer
        refused(client, input="No room.")
        refused(client, input="No room.", previous_response_id=chain.last["id"])
        with stream(client, "No room.", chain.last["id"], 5) as answer:
            heard = list(events_of(answer))
        assert heard[-1]["type"] == "response.failed"
        assert "response.completed" not in [event["type"] for event in heard]
        assert client.get("/health/ready").status_code == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        lost = client.post("/v1/responses", json={"input": "On.", "previous_response_id": heard[-1]["response"]["id"]})
        assert lost.status_code == 404
        chain.go_on(client, "After.")
        chain.check(client, tmp_path)
    server.kill()
    server = process(*TINY)
    with server.client() as client:
        chain.check(client, tmp_path)


def locked(folder: Path) -> sqlite3.Connection:
    """Another program that writes and does not end."""
    made = sqlite3.connect(folder / "talks.db", isolation_level=None, check_same_thread=False)
    made.execute("BEGIN IMMEDIATE")
    return made


def test_a_locked_store_is_waited_for_while_others_are_served(serving: Callable[..., Here], tmp_path: Path) -> None:
    server = serving(store=str(tmp_path))
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        first = ask(client, "First.", max_output_tokens=3)
        lock = locked(tmp_path)
        waiting = pool.submit(ask, client, "Second.", first["id"], max_output_tokens=3)
        time.sleep(0.5)
        with server.client() as other:
            assert other.get("/health/ready").status_code == 200
            assert ask(other, "Kept nowhere.", store=False, max_output_tokens=3)["status"] == "incomplete"
        assert not waiting.done()
        lock.close()
        second = waiting.result()
        assert client.get(f"/v1/responses/{second['id']}").json() == second


@pytest.mark.slow
def test_a_store_that_stays_locked_is_said_to_be(serving: Callable[..., Here], tmp_path: Path) -> None:
    server = serving(store=str(tmp_path))
    with server.client() as client:
        first = ask(client, "First.", max_output_tokens=3)
        lock = locked(tmp_path)
        refused(client, input="Second.", previous_response_id=first["id"])
        lock.close()
        ask(client, "Third.", first["id"], max_output_tokens=3)


def redis_at(folder: Path) -> subprocess.Popen[bytes]:
    """One that keeps what it has acknowledged, on a socket."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    command = [program, "--port", "0", "--unixsocket", str(folder / "socket"), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    (folder / "socket").unlink(missing_ok=True)
    made = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for((folder / "socket").exists)
    return made


def test_a_redis_that_is_gone_for_a_while(process: Start, tiny_v7: Any, tmp_path: Path) -> None:
    pytest.importorskip("redis")
    chain, redis = Chain(tiny_v7, "seeded"), redis_at(tmp_path)
    try:
        server = process(*TINY, "--store", f"unix://{tmp_path / 'socket'}")
        with server.client() as client:
            chain.go_on(client, "Before.")
            assert chain.last is not None
            redis.kill()
            redis.wait()
            refused(client, input="Gone.", previous_response_id=chain.last["id"])
            refused(client, input="Gone.")
            assert ask(client, "Kept nowhere.", store=False, max_output_tokens=3)["status"] == "incomplete"
            assert client.get("/health/ready").status_code == 200
            redis = redis_at(tmp_path)
            wait_for(lambda: client.get(f"/v1/responses/{chain.said[0]['id']}").status_code == 200)
            chain.go_on(client, "After.")
            chain.check(client, tmp_path)
    finally:
        redis.kill()
        redis.wait()


def turns_of(server: Here, response: str) -> list[dict[str, Any]]:
    with server.client() as client:
        answer = client.get(f"/v1/states/state_{response[5:37]}")
        return answer.json()["turns"] if answer.status_code == 200 else []


def test_what_was_written_is_kept_when_the_client_is_gone(serving: Callable[..., Here], tiny_v7: Any) -> None:
    server = serving()
    with server.client() as client, stream(client, "Hello.", None, 200_000) as answer:
        heard = events_of(answer)
        id = next(heard)["response"]["id"]
        pieces = [event["delta"] for event in (next(heard) for _ in range(20)) if "delta" in event]
    wait_for(lambda: turns_of(server, id))
    wait_for(lambda: server.service.engine.stats()["running"] == 0)
    (turn,) = turns_of(server, id)
    assert (turn["id"], turn["stop_reason"]) == (id, "cancelled")
    with server.client() as client:
        kept = client.get(f"/v1/responses/{id}").json()
        assert kept["status"] == "cancelled"
        assert text_of(kept).startswith("".join(pieces))
        written = kept["usage"]["output_tokens"]
        assert written < 200_000
        truth = Session(tiny_v7)
        reply = truth.say("Hello.", 200_000)
        while len(reply.tokens) < written:
            next(reply)
        reply.cancel()
        assert text_of(ask(client, "On.", id, max_output_tokens=20, **GREEDY)) == truth.say("On.", 20).text


def request_by_hand(server: Here, reader: socket.socket, **body: Any) -> None:
    """Send it and read nothing; it is being answered when this returns."""
    host, port = server.url.removeprefix("http://").split(":")
    reader.connect((host, int(port)))
    data = json.dumps({"input": "Hello.", "max_output_tokens": 200_000} | body)
    head = f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    reader.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode())
    wait_for(lambda: server.service.engine.stats()["tokens_written"])


def check_cancelled(server: Here) -> None:
    """Its only turn is one that was cut."""
    wait_for(lambda: not server.service.works)
    assert server.service.engine.stats()["running"] == 0
    with server.client() as client:
        (talk,) = client.get("/v1/states").json()["data"]
        (turn,) = client.get(f"/v1/states/{talk['id']}").json()["turns"]
        assert turn["stop_reason"] == "cancelled"
        ask(client, "Others are served.", max_output_tokens=3)


def test_a_whole_answer_whose_client_is_gone_is_kept_too(serving: Callable[..., Here]) -> None:
    server = serving()
    with socket.socket() as reader:
        request_by_hand(server, reader)
    check_cancelled(server)


def test_a_reader_that_takes_nothing_is_dropped(serving: Callable[..., Here]) -> None:
    server = serving(stuck_seconds=0.5)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request_by_hand(server, reader, stream=True)
        check_cancelled(server)


def test_sigterm_lets_a_stream_finish(process: Start) -> None:
    server = process(*TINY)
    with server.client() as client, stream(client, "Hello.", None, 3000) as answer:
        heard = events_of(answer)
        next(heard)
        server.process.terminate()
        last = list(heard)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["usage"]["output_tokens"] == 3000
    assert server.process.wait(30) == 0
    server = process(*TINY)
    with server.client() as client:
        assert client.get(f"/v1/responses/{last['response']['id']}").json() == last["response"]


def test_sigterm_keeps_what_a_long_stream_has_written(process: Start) -> None:
    server = process(*TINY, "--drain", "1")
    with server.client() as client, stream(client, "Hello.", None, 1_000_000) as answer:
        heard = events_of(answer)
        id = next(heard)["response"]["id"]
        wait_for(lambda: "delta" in next(heard))
        server.process.terminate()
        assert server.process.wait(30) == 0
    server = process(*TINY)
    with server.client() as client:
        kept = client.get(f"/v1/responses/{id}").json()
        assert kept["status"] == "cancelled"
        ask(client, "On.", id, max_output_tokens=3)
