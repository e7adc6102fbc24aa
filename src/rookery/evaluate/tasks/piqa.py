"""PIQA: which of two ways reaches a goal, in everyday physics.

The prompt is that of lm-eval's `piqa`. (Bisk et al., arXiv 1911.11641)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rookery.errors import DamagedFile
from rookery.evaluate import data
from rookery.evaluate.tasks import choices
from rookery.evaluate.tasks.choices import Question

FILES = ("piqa_valid.jsonl", "valid.jsonl")
SOURCE = (
    "1,838 lines {'goal', 'sol1', 'sol2'} of ybisk.github.io/piqa, with 'label' in each line "
    "or a line each in NAME-labels.lst beside NAME.jsonl"
)


@dataclass(frozen=True)
class Settings:
    """None."""


class Piqa(choices.Choices):
    name = "piqa"

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings, self.path = settings, data.needed(self.name, path, FILES, SOURCE)

    def questions(self) -> Iterator[Question]:
        return questions(self.path)

    def prompt(self, question: Question) -> str:
        return f"Question: {question.text}\nAnswer:"


def questions(path: data.Path) -> Iterator[Question]:
    """Raises DamagedFile for a line without its fields, or without a label."""
    labels: Sequence[str] | None = None
    for index, (number, row) in enumerate(data.rows(path, {"goal": str, "sol1": str, "sol2": str})):
        solutions = choices.texts(path, number, {"sol1 and sol2": [row["sol1"], row["sol2"]]}, "sol1 and sol2")
        if "label" not in row:
            labels = _labels(path, number) if labels is None else labels
            if index >= len(labels):
                raise DamagedFile(path, f"line {number}: has no label; {beside(path)} has only {len(labels)}")
            row["label"] = labels[index]
        yield Question(row["goal"], solutions, choices.place(path, number, row, "label", 2))


def beside(path: data.Path) -> str:
    """Where the labels of a file lie that has none in its lines."""
    name = os.fspath(path).removesuffix(".gz")
    return os.path.splitext(name)[0] + "-labels.lst"


def _labels(path: data.Path, number: int) -> list[str]:
    if not os.path.isfile(beside(path)):
        raise DamagedFile(path, f"line {number}: no field 'label', and there is no {beside(path)} with the labels")
    return [line.strip() for _, line in data.lines(beside(path))]


TASK = Piqa
