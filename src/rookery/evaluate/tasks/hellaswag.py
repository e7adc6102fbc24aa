"""HellaSwag: which of four endings follows a description; the wrong ones were written by a machine.

Texts are formed as lm-eval's `hellaswag` forms them. (Zellers et al., arXiv 1905.07830)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rookery.evaluate import data
from rookery.evaluate.tasks import choices
from rookery.evaluate.tasks.choices import Question

FILES = ("hellaswag_val.jsonl", "hellaswag_validation.jsonl")
SOURCE = (
    "10,042 lines, {'activity_label', 'ctx_a', 'ctx_b', 'endings', 'label'} of Rowan/hellaswag on the Hugging Face hub "
    "or {'ctx', 'endings', 'label'} of klosax/hellaswag_text_data"
)


@dataclass(frozen=True)
class Settings:
    """None."""


class Hellaswag(choices.Choices):
    name = "hellaswag"

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings, self.path = settings, data.needed(self.name, path, FILES, SOURCE)

    def questions(self) -> Iterator[Question]:
        return questions(self.path)


def questions(path: data.Path) -> Iterator[Question]:
    """Raises DamagedFile for a line without the fields of either form."""
    for number, row in data.rows(path, {"endings": list}):
        endings = tuple(plain(text) for text in choices.texts(path, number, row, "endings"))
        yield Question(_text(path, number, row), endings, choices.place(path, number, row, "label", len(endings)))


def _text(path: data.Path, number: int, row: dict[str, Any]) -> str:
    if "ctx_a" not in row:  # klosax's form, where activity and context are one text already
        return plain(data.field(path, number, row, "ctx", str))
    activity, first, second = (data.field(path, number, row, n, str) for n in ("activity_label", "ctx_a", "ctx_b"))
    return plain(f"{activity}: {first} {second.capitalize()}")


def plain(text: str) -> str:
    """Without the marks that WikiHow's pages left: [title] begins a sentence, other brackets go."""
    unmarked = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return unmarked.replace("  ", " ")


TASK = Hellaswag
