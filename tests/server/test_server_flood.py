"""Ten thousand requests at once: all are answered, with a reply or with when to come again, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Process

FLOOD, LONG = 10_000, 300.0
ASKED = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
BODY = json.dumps(ASKED).encode()
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
) + BODY


def resident(process: Process) -> int:
    """Bytes."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


async def flood(port: int, count: int, at_once: int) -> list[tuple[int, dict[str, str], Any]]:
    """Status, headers and body of each; a connection that is refused counts as status 0."""
    gate = asyncio.Semaphore(at_once)

    async def one() -> tuple[int, dict[str, str], Any]:
        async with gate:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(REQUEST)
                answer = await reader.read()
                writer.close()
            except OSError:
                return 0, {}, None
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers, json.loads(body)

    return await asyncio.wait_for(asyncio.gather(*(one() for _ in range(count))), LONG)


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [32, FLOOD], ids=["short queue", "long queue"])
def test_ten_thousand_requests(process: Callable[..., Process], waiting: int) -> None:
    served = process("--max-waiting", waiting, "--log-level", "error")
    with served.client() as client:
        before = client.post("/v1/completions", json=ASKED).json()["choices"][0]["text"]
        memory = resident(served)
        answers = asyncio.run(flood(int(served.url.rsplit(":", 1)[1]), FLOOD, 1000))
        counts = Counter(status for status, _, _ in answers)
        print(dict(counts), f"memory {memory >> 20} MB, then {resident(served) >> 20} MB")
        assert set(counts) <= {200, 429, 503}
        assert counts[200] == FLOOD if waiting == FLOOD else 0 < counts[200] < FLOOD
        for status, headers, body in answers:
            if status == 200:
                assert body["choices"][0]["text"] == before
            else:
                assert int(headers["retry-after"]) >= 1
                assert body["error"]["message"]
        assert resident(served) < memory + (300 << 20)  # the cache of prompts may grow
        assert client.post("/v1/completions", json=ASKED).json()["choices"][0]["text"] == before
    served.terminate()
