"""Questions with several answers: the one that the model holds for likeliest is its choice.

Scored as lm-eval 0.4 scores `multiple_choice`: a blank, then the answer, after the prompt; `acc` by the log-probability
of the whole answer, `acc_norm` by that over the answer's length in characters; of equals the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery.errors import DamagedFile
from rookery.evaluate import data, statistics
from rookery.evaluate.requests import Answer, Coder, Likelihood, Likely
from rookery.evaluate.task import Item


@dataclass(frozen=True)
class Question:
    """`text` is asked, `choices[gold]` is right. Formed as the set's rules say, before any prompt is laid around it."""

    text: str
    choices: tuple[str, ...]
    gold: int
    subject: str = ""


class Choices:
    """What the sets have in common; each says where its questions are and what its prompt looks like."""

    def questions(self) -> Iterator[Question]:
        raise NotImplementedError

    def prompt(self, question: Question) -> str:
        return question.text

    def items(self, coder: Coder) -> Iterator[Item]:
        for question in self.questions():
            prompt = self.prompt(question)
            asked = tuple(Likelihood(prompt, " " + choice) for choice in question.choices)
            chars = [max(1, len(choice)) for choice in question.choices]  # a set's rules may leave nothing of one
            yield Item(asked, {"gold": question.gold, "chars": chars})

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        gold, chars = item.about["gold"], np.asarray(item.about["chars"], float)
        logprobs = likelihoods(answers)
        return {
            "right": bool(np.argmax(logprobs) == gold),
            "right_norm": bool(np.argmax(logprobs / chars) == gold),
            "logprobs": logprobs.tolist(),
        }

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        normed, error = statistics.mean([float(row["right_norm"]) for row in rows])
        return {**accuracy(rows), "acc_norm": normed, "acc_norm_stderr": error}


def likelihoods(answers: Sequence[Answer]) -> Any:
    """float64 [choices], nats."""
    return np.asarray([answer.logprob for answer in answers if isinstance(answer, Likely)])


def accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of rows with `right` and, for what guessing gives, `logprobs` of each choice."""
    right = [float(row["right"]) for row in rows]
    acc, error = statistics.mean(right)
    low, high = statistics.wilson(sum(right), len(right))
    chance, _ = statistics.mean([1 / len(row["logprobs"]) for row in rows])
    return {"acc": acc, "acc_stderr": error, "acc_low": low, "acc_high": high, "chance": chance}


def texts(path: data.Path, number: int, row: Mapping[str, Any], name: str, blank: bool = False) -> tuple[str, ...]:
    """row[name], a list of at least two texts, of which none is blank unless `blank`. Raises DamagedFile."""
    found = data.field(path, number, row, name, list)
    if len(found) < 2 or not all(isinstance(text, str) and (blank or text.strip()) for text in found):
        wanted = "two or more texts" + ("" if blank else ", none of them blank")
        raise DamagedFile(path, f"line {number}: {name!r} wanted as {wanted}")
    return tuple(data.whole(path, number, name, text) for text in found)


def place(path: data.Path, number: int, row: Mapping[str, Any], name: str, choices: int) -> int:
    """row[name], which choice is right: a number from 0, also as a text, or a letter from A. Raises DamagedFile."""
    value = row[name] if name in row else data.field(path, number, row, name, int)
    letters = [chr(ord("A") + i) for i in range(choices)]
    named: list[Any] = [*range(choices), *map(str, range(choices)), *letters]
    if isinstance(value, bool | float) or value not in named:
        raise DamagedFile(
            path,
            f"line {number}: {name!r} is {value!r}; wanted 0 to {choices - 1}, or a letter from A to {letters[-1]}",
        )
    return named.index(value) % choices
