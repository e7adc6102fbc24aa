"""A model behind a server that answers requests, over the routes of `rookery serve`.

Asked are /v1/models, /props, /tokenizer_info, /tokenize, /detokenize, and /v1/completions with token ids and `echo`,
which gives the log-probability of every token of a prompt. The routes know no state, so choices that share a context
have it read anew for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from rookery.errors import BackendError, InputError
from rookery.evaluate.remote.client import TIMEOUT, Client
from rookery.evaluate.remote.coder import Coder
from rookery.evaluate.remote.completions import MOST_SCORES, Completions
from rookery.evaluate.requests import Answer, Continue, Likelihood, Likely, Passage, Read, Request, ids, pair

__all__ = ["Remote"]

SLOTS, MOST_SLOTS = 8, 64  # prompts of one request: where the server does not say what it reads at once; at most
IN_FLIGHT = 2  # requests: while one's answer is read the server is at work on the next


class Row(NamedTuple):
    """`ids` to be read; those from `first` on are what is asked about."""

    ids: list[int]
    first: int


class Remote:
    """Answers by the server at `url`. `model`: one of its ids, else its first. `prefix`, `told`: as Local's.
    `key`: what the server asks for; default what the environment variable ROOKERY_API_KEY holds.

    Raises InputError for what the server refuses, BackendError where it gives no answer, or none to be believed.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        prefix: Sequence[int] | None = None,
        told: Callable[[int], None] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client, self._told, self._asked = Client(url, key, timeout), told, 0
        self._card = self._chosen(model)
        self.model = str(self._card["id"])
        self._meta = self._card.get("meta") or {}
        self._completions = Completions(self._client, self.model)
        self.coder = Coder(self._client, self._completions, self.model, self._meta.get("n_vocab"))
        given = prefix if prefix is not None else [] if self.coder.end is None else [self.coder.end]
        self.prefix = tuple(self.coder.checked(given))
        self._slots = self._side_by_side()

    @property
    def about(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "architecture": self._meta.get("version"),
            "parameters": self._meta.get("n_params"),
            "fingerprint": self._meta.get("fingerprint"),
            "arithmetic": self._completions.print,
            "tokenizer": self.coder.name,
            "prefix": list(self.prefix),
        }

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        found: dict[int, Answer] = {}
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                rows = list(pool.map(self._row, requests))
                for batch in pool.map(lambda batch: self._batch(requests, rows, batch), self._batches(requests, rows)):
                    found |= batch
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._asked += sum(len(row.ids) for row in rows)
        if self._told:
            self._told(self._asked)
        return [found[place] for place in range(len(requests))]

    def write(self, prompt: list[int], max_tokens: int, **settings: Any) -> str:
        """What the server writes after these ids; `settings`: more of /v1/completions, such as `top_p`."""
        return self._completions.write([prompt], max_tokens, **settings)[0]

    def render(self, messages: Sequence[dict[str, Any]], reply: bool = True) -> str:
        """A talk as the server's template writes it; with reply=True it ends with the assistant's opening."""
        asked = {"messages": list(messages), "add_generation_prompt": reply}
        prompt = self._client.post("/apply-template", asked).get("prompt")
        if not isinstance(prompt, str):
            raise BackendError(f"{self._client.url}/apply-template: the server answers without a prompt")
        return prompt

    def _row(self, request: Request) -> Row:
        if isinstance(request, Likelihood):
            before, scored = pair(self, request)
            return Row(self.coder.checked([*before, *scored]), len(before))
        text = request.text if isinstance(request, Passage) else request.prompt
        found = self.coder.checked([*self.prefix, *ids(self.coder, text)])
        if not found and isinstance(request, Continue):
            raise InputError("nothing to go on with: give a text, or a prefix (--prefix 0)")
        return Row(found, len(self.prefix))

    def _batches(self, requests: Sequence[Request], rows: Sequence[Row]) -> Iterator[list[int]]:
        """Places of requests that are one to the server: of one kind, of similar lengths, and not too many."""
        kinds: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            kind = (request.max_tokens, request.stop) if isinstance(request, Continue) else type(request)
            kinds.setdefault(kind, []).append(place)
        for places in kinds.values():
            batch: list[int] = []
            room = MOST_SCORES
            for place in sorted(places, key=lambda place: -len(rows[place].ids)):
                need = 2 * len(rows[place].ids)  # the token, and the likeliest beside it
                if batch and (len(batch) == self._slots or need > room):
                    yield batch
                    batch, room = [], MOST_SCORES
                batch.append(place)
                room -= need
            yield batch

    def _batch(self, requests: Sequence[Request], rows: Sequence[Row], batch: list[int]) -> dict[int, Answer]:
        """The answers to requests of one kind, by place. Nothing is asked about nothing."""
        asked, some = requests[batch[0]], [place for place in batch if rows[place].ids]
        prompts = [rows[place].ids for place in some]
        if isinstance(asked, Continue):
            texts = self._completions.write(prompts, asked.max_tokens, temperature=0, stop=list(asked.stop))
            return dict(zip(batch, texts, strict=True))
        found: dict[int, Answer] = {place: Read(np.zeros(0, np.int64), np.zeros(0)) for place in batch}
        pairs = isinstance(asked, Likelihood)
        for place, (logprobs, likeliest) in zip(some, self._completions.scores(prompts, pairs), strict=True):
            row, first = rows[place]
            if pairs:
                found[place] = Likely(float(logprobs[first:].sum()), all(likeliest[first:]), len(row) - first)
            else:
                found[place] = Read(np.asarray(row[first:], np.int64), logprobs[first:])
        return found

    def _chosen(self, wanted: str | None) -> dict[str, Any]:
        listed = self._client.get("/v1/models").get("data")
        cards = [card for card in listed if _is_card(card)] if isinstance(listed, list) else []
        for card in cards:
            if wanted is None or wanted in (card["id"], *card.get("aliases", ())):
                return dict(card)
        there = ", ".join(str(card["id"])[:100] for card in cards[:20]) or "none"
        raise InputError(f"{self._client.url}: has no model {(wanted or 'at all')[:100]!r}; there is {there}")

    def _side_by_side(self) -> int:
        try:
            slots = self._client.get("/props").get("total_slots")
        except InputError:  # a route that others lack
            slots = None
        return min(slots, MOST_SLOTS) if isinstance(slots, int) and slots > 0 else SLOTS


def _is_card(card: Any) -> bool:
    if not isinstance(card, dict) or not isinstance(card.get("id"), str):
        return False
    return isinstance(card.get("meta", {}), dict | None) and isinstance(card.get("aliases", []), list)
