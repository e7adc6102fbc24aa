"""MMLU the reference's way: no examples, one reading a question, the logits of " A" to " D" compared.

The prompt is that of BlinkDL's RWKV-v7/rwkv_mmlu_eval.py. Figures are below those of the usual five examples in the
prompt, and not to be compared with them. (Hendrycks et al., arXiv 2009.03300)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery.errors import DamagedFile, InputError
from rookery.evaluate import data
from rookery.evaluate.requests import Answer, Coder, Likelihood
from rookery.evaluate.task import Item
from rookery.evaluate.tasks import choices
from rookery.evaluate.tasks.choices import Question

FILES = ("mmlu_test.jsonl", "mmlu.jsonl", "mmlu_dev.jsonl")
SOURCE = "14,042 lines {'question', 'subject', 'choices', 'answer'} of cais/mmlu on the Hugging Face hub"
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Settings:
    """None."""


class Mmlu(choices.Choices):
    name = "mmlu"

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings, self.path = settings, data.needed(self.name, path, FILES, SOURCE)

    def questions(self) -> Iterator[Question]:
        return questions(self.path)

    def prompt(self, question: Question) -> str:
        answers = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True))
        asked = f"User: You are a very talented expert in {question.subject.replace('_', ' ')}. Answer this question:\n"
        return f"{asked}{question.text}\n{answers}\n\nAssistant: The answer is".replace("\r\n", "\n").strip()

    def items(self, coder: Coder) -> Iterator[Item]:
        tokens = [token(coder, " " + letter) for letter in LETTERS]
        for question in self.questions():
            prompt = self.prompt(question)
            asked = tuple(Likelihood(prompt, (token,)) for token in tokens)
            yield Item(asked, {"subject": question.subject, "gold": question.gold})

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        logprobs = choices.likelihoods(answers)
        return {"right": bool(np.argmax(logprobs) == item.about["gold"]), "logprobs": logprobs.tolist()}

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`acc` is over questions (micro), `acc_macro` the mean of the subjects'."""
        subjects: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            subjects.setdefault(row["subject"], []).append(row)
        of = {name: choices.accuracy(mine) for name, mine in sorted(subjects.items())}
        macro = math.fsum(found["acc"] for found in of.values()) / len(of) if of else math.nan
        error = math.sqrt(math.fsum(found["acc_stderr"] ** 2 for found in of.values())) / len(of) if of else math.nan
        lines = [[name, len(subjects[name]), f["acc"], f["acc_low"], f["acc_high"]] for name, f in of.items()]
        table = {"title": "by subject", "columns": ["subject", "n", "acc", "acc_low", "acc_high"], "rows": lines}
        return {**choices.accuracy(rows), "acc_macro": macro, "acc_macro_stderr": error, "tables": [table]}


def questions(path: data.Path) -> Iterator[Question]:
    """Raises DamagedFile for a line without its fields, or without four answers."""
    for number, row in data.rows(path, {"question": str, "subject": str, "choices": list}):
        answers = choices.texts(path, number, row, "choices", blank=True)  # letters are scored
        if len(answers) != len(LETTERS):
            raise DamagedFile(path, f"line {number}: 'choices' has {len(answers)} texts; wanted four")
        answer = choices.place(path, number, row, "answer", len(LETTERS))
        yield Question(row["question"], answers, answer, row["subject"])


def token(coder: Coder, text: str) -> int:
    """The one token that is `text`. Raises InputError."""
    found = coder.encode(text)
    if len(found) != 1:
        raise InputError(
            f"mmlu compares the logits of one token a letter, and {text!r} is {len(found)} tokens in this vocabulary; "
            "take a model of the World vocabulary, or lm-eval's mmlu by rookery.evaluate.LM"
        )
    return found[0]


TASK = Mmlu
