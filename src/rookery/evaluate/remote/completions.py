"""/v1/completions as it is asked here, and its answers, of which nothing is taken on trust."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import BackendError
from rookery.evaluate.remote.client import Client

ROUTE = "/v1/completions"
MOST_SCORES = 1 << 20  # log-probabilities in one answer of the server
ABOVE_ZERO = 1e-6  # nats by which rounding may lift a log-probability


class Completions:
    """`model`: the id to ask for. `print`: what the server says of the model and the arithmetic that answer."""

    def __init__(self, client: Client, model: str) -> None:
        self._client, self._model = client, model
        self.print: Any = None
        self.print = self._ask([[0]], max_tokens=0).get("system_fingerprint")

    def write(self, prompts: Sequence[list[int]], max_tokens: int, **settings: Any) -> list[str]:
        """What follows each prompt of ids; `settings`: more of the route's, such as `temperature`, `stop`, `seed`."""
        choices = self._choices(self._ask(prompts, max_tokens=max_tokens, **settings), len(prompts))
        texts = [choice.get("text") for choice in choices]
        if not all(isinstance(text, str) for text in texts):
            raise self._wrong("a choice without a text")
        return [str(text) for text in texts]

    def scores(self, prompts: Sequence[list[int]], top: bool) -> list[tuple[npt.NDArray[np.float64], list[bool]]]:
        """Of each token of each prompt its log-probability in nats, NaN for the first, and with `top` whether it was
        the likeliest.
        """
        if not prompts:
            return []
        answer = self._ask(prompts, max_tokens=0, echo=True, logprobs=int(top), temperature=0)
        choices = self._choices(answer, len(prompts))
        return [self._scores(choice, len(ids), top) for ids, choice in zip(prompts, choices, strict=True)]

    def names(self, ids: list[int]) -> list[str]:
        """What the server calls each token: its text, or `bytes:\\x..`."""
        [choice] = self._choices(self._ask([ids], max_tokens=0, echo=True, logprobs=0), 1)
        names = self._column(choice, "tokens", len(ids))
        if not all(isinstance(name, str) for name in names):
            raise self._wrong("tokens without names")
        return names

    def _ask(self, prompts: Sequence[list[int]], **fields: Any) -> dict[str, Any]:
        answer = self._client.post(ROUTE, {"model": self._model, "prompt": prompts, **fields})
        made_by = answer.get("system_fingerprint")
        if self.print is not None and made_by != self.print:
            raise self._wrong(f"figures of another model than before ({str(made_by)[:40]}, not {self.print})")
        return answer

    def _choices(self, answer: dict[str, Any], count: int) -> list[dict[str, Any]]:
        given = answer.get("choices")
        choices = [choice for choice in given if isinstance(choice, dict)] if isinstance(given, list) else []
        found = {choice["index"]: choice for choice in choices if isinstance(choice.get("index"), int)}
        if set(found) != set(range(count)):
            raise self._wrong(f"other choices than the {count} that were asked for")
        return [found[n] for n in range(count)]

    def _scores(self, choice: dict[str, Any], count: int, top: bool) -> tuple[npt.NDArray[np.float64], list[bool]]:
        values = self._column(choice, "token_logprobs", count)
        if values[0] is not None or not all(map(_is_logprob, values[1:])):
            raise self._wrong("what is no log-probability")
        likeliest = [False] * count
        if top:
            names, others = self._column(choice, "tokens", count), self._column(choice, "top_logprobs", count)
            for n in range(1, count):
                likeliest[n] = self._likeliest(others[n]) == names[n]
        return np.asarray([math.nan, *values[1:]], np.float64), likeliest

    def _likeliest(self, others: Any) -> str:
        """Of those that are as likely the first, which for Rookery is the one with the lowest id."""
        if not isinstance(others, dict) or not others or not all(map(_is_logprob, others.values())):
            raise self._wrong("no likeliest token beside one of a prompt")
        return str(max(others, key=others.__getitem__))

    def _column(self, choice: dict[str, Any], name: str, count: int) -> list[Any]:
        columns = choice.get("logprobs")
        column = columns.get(name) if isinstance(columns, dict) else None
        if not isinstance(column, list) or len(column) != count:
            raise self._wrong(f"no {name} for each of the {count} tokens of a prompt (echo)")
        return column

    def _wrong(self, what: str) -> BackendError:
        url = f"{self._client.url}{ROUTE}"
        return BackendError(f"{url}: the server answers with {what}; wanted what `rookery serve` gives")


def _is_logprob(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value <= ABOVE_ZERO
