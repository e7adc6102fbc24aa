"""MMLU as the reference asks it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rookery
from rookery.errors import DamagedFile, InputError
from rookery.evaluate import Likelihood, Likely, Local, make, run
from rookery.evaluate.requests import Answer, Request
from rookery.tokenizer import Bytes
from tolerances import EVALUATE_LOGPROB

ROW = {"question": " What is 1 + 1?\r\n", "subject": "high_school_maths", "choices": ["0", "1", "2", "3"], "answer": 2}
LETTERS = {" A": 7, " B": 8, " C": 9, " D": 10}


class Letters:
    """Four tokens, and what was asked."""

    vocab_size, end, prefix, about = 16, None, (0,), {"architecture": "letters"}

    def __init__(self, logprobs: Sequence[float]) -> None:
        self.coder, self.logprobs = self, dict(zip(LETTERS.values(), logprobs, strict=True))
        self.asked: list[Any] = []

    def encode(self, text: str) -> list[int]:
        return [LETTERS[text]]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        assert all(isinstance(request, Likelihood) for request in requests)
        self.asked += [request.context for request in requests]
        return [Likely(self.logprobs[request.continuation[0]], False, 1) for request in requests]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_prompt_is_the_reference_s(tmp_path: Path) -> None:
    scorer = Letters([-4, -3, -1, -2])
    run(scorer, [make("mmlu", data=lines(tmp_path / "m.jsonl", [ROW]))])
    assert set(scorer.asked) == {
        "User: You are a very talented expert in high school maths. Answer this question:\n"
        " What is 1 + 1?\n\nA. 0\nB. 1\nC. 2\nD. 3\n\nAssistant: The answer is"
    }
    assert len(scorer.asked) == 4


def test_by_subject_by_question_and_the_mean_of_subjects(tmp_path: Path) -> None:
    answers = [("law", 2), ("law", "C"), ("law", 0), ("law", "3"), ("art", 2), ("art", 1)]  # C is always chosen
    path = lines(tmp_path / "m.jsonl", [{**ROW, "subject": subject, "answer": answer} for subject, answer in answers])
    found = run(Letters([-4, -3, -1, -2]), [make("mmlu", data=path)])["results"]["mmlu"]
    assert (found["acc"], found["chance"], found["n"]) == (3 / 6, 1 / 4, 6)
    assert found["acc_macro"] == (2 / 4 + 1 / 2) / 2
    law, art = 4 * 0.25 / 3 / 4, 2 * 0.25 / 1 / 2  # the squares of their errors
    assert found["acc_macro_stderr"] == pytest.approx(math.sqrt(law + art) / 2)
    (table,) = found["tables"]
    assert [row[:3] for row in table["rows"]] == [["art", 2, 1 / 2], ["law", 4, 2 / 4]]
    assert "acc_norm" not in found


def test_a_vocabulary_without_the_letters() -> None:
    path = Path(__file__)  # never read: the vocabulary is looked at first
    with pytest.raises(InputError, match=r"' A' is 2 tokens in this vocabulary; take a model of the World vocabulary"):
        next(iter(make("mmlu", data=path).items(Bytes())))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"subject": "law", "choices": ROW["choices"], "answer": 0}, "no field 'question', wanted a text"),
        ({**ROW, "choices": ["a", "b", "c"]}, "'choices' has 3 texts; wanted four"),
        ({**ROW, "answer": "E"}, "'answer' is 'E'; wanted 0 to 3, or a letter from A to D"),
        ({"question": "a", "choices": ROW["choices"], "answer": 0}, "no field 'subject'"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = lines(tmp_path / "set.jsonl", [ROW, row])
    with pytest.raises(DamagedFile, match=rf"set\.jsonl: line 2: {said}"):
        list(make("mmlu", data=path).items(Letters([-1] * 4)))


def test_one_reading_gives_the_logits_of_all_four(shared: Path) -> None:
    """As the reference does it: one pass over the prompt, four logits of what comes next."""
    model = rookery.load("gosling")
    (item,) = [
        item
        for _, item in zip(range(1), make("mmlu", data=shared / "data/eval").items(Local(model).coder), strict=False)
    ]
    asked = item.requests[0]
    assert isinstance(asked, Likelihood)
    assert isinstance(asked.context, str)
    logits, _ = model.forward([0, *model.tokenizer.encode(asked.context)])
    answers = Local(model).answer(list(item.requests))
    ids = [model.tokenizer.encode(letter)[0] for letter in LETTERS]
    between = [answer.logprob - answers[0].logprob for answer in answers if isinstance(answer, Likely)]
    assert between == pytest.approx([float(logits[id]) - float(logits[ids[0]]) for id in ids], abs=EVALUATE_LOGPROB)
