"""Talking with a server over HTTP, and the same talk beside it in one process that nothing interrupts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from rookery import Sampling, Session, State

GREEDY = {"temperature": 0, "presence_penalty": 0}  # one of the two sets both penalties
WAYS = {
    "greedy": (GREEDY, Sampling(temperature=0), None),
    "seeded": ({"temperature": 1.3, "top_p": 0.9, "presence_penalty": 0}, Sampling(temperature=1.3, top_p=0.9), 7),
}


def ask(client: httpx.Client, text: str, previous: str | None = None, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/responses", json={"input": text, "previous_response_id": previous, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text_of(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for item in answer["output"] for part in item["content"])


def events_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


class Chain:
    """A talk over HTTP beside the same talk in one process that nothing interrupts."""

    def __init__(self, model: Any, way: str) -> None:
        self.fields, sampling, self.seed = WAYS[way]
        self.truth = Session(model, sampling=sampling, seed=self.seed)
        self.last: dict[str, Any] | None = None
        self.said: list[dict[str, Any]] = []

    def go_on(self, client: httpx.Client, text: str, tokens: int = 20) -> None:
        begins = self.last is None and self.seed is not None
        more = self.fields | ({"seed": self.seed} if begins else {})
        previous = self.last["id"] if self.last else None
        self.last = ask(client, text, previous, max_output_tokens=tokens, **more)
        self.said.append(self.last)
        assert text_of(self.last) == self.truth.say(text, tokens).text

    def check(self, client: httpx.Client, folder: Path) -> None:
        """All that was acknowledged is there as it was, and the state is the uninterrupted one's to the bit."""
        for said in self.said:
            assert client.get(f"/v1/responses/{said['id']}").json() == said
        assert self.last is not None
        path = folder / "state.safetensors"
        state, here = self.last["rookery"]["state"], {"at": self.last["id"]}
        path.write_bytes(client.get(f"/v1/states/{state}/export", params=here).content)
        found = State.load(path, self.truth.model)
        assert found.vector().tobytes() == self.truth.state.vector().tobytes()


def stream(client: httpx.Client, text: str, previous: str | None, tokens: int, **more: Any) -> Any:
    body = {"input": text, "previous_response_id": previous, "max_output_tokens": tokens, "stream": True}
    return client.stream("POST", "/v1/responses", json=body | GREEDY | more)
