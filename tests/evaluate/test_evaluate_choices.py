"""HellaSwag and PIQA: how questions are read and asked, and what is made of the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import rookery
from rookery.errors import DamagedFile, InputError
from rookery.evaluate import Likelihood, Likely, Local, make, run
from rookery.evaluate.requests import Answer, Request
from rookery.evaluate.tasks import hellaswag, piqa
from rookery.tokenizer import Bytes

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ENDINGS = ["runs.", "walks on.", "sings.", "sits."]
SWAG = {"activity_label": "Play", "ctx_a": "A man.", "ctx_b": "he", "endings": ENDINGS, "label": 1}
WAY = {"goal": "Boil an egg", "sol1": "Use water.", "sol2": "Use sand", "label": 0}


class Told:
    """A scorer that says what it was told of each continuation, and keeps what it was asked."""

    coder, prefix, about = Bytes(), (0,), {"architecture": "told"}

    def __init__(self, logprobs: Mapping[str, float]) -> None:
        self.logprobs = logprobs
        self.asked: list[tuple[Any, Any]] = []

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        assert all(isinstance(request, Likelihood) for request in requests)
        self.asked += [(request.context, request.continuation) for request in requests]
        return [Likely(self.logprobs[request.continuation], False, 1) for request in requests]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def figures(task: str, path: Path, logprobs: Mapping[str, float]) -> dict[str, Any]:
    results: dict[str, Any] = run(Told(logprobs), [make(task, data=path)])["results"][task]
    return results


def test_the_likeliest_answer_and_the_likeliest_for_its_length(tmp_path: Path) -> None:
    logprobs = {" runs.": -1.0, " walks on.": -1.2, " sings.": -3.0, " sits.": -4.0}  # 5, 9, 6 and 5 letters
    path = lines(tmp_path / "swag.jsonl", [SWAG, {**SWAG, "label": 0}, {**SWAG, "label": 3}, SWAG])
    found = figures("hellaswag", path, logprobs)
    assert (found["acc"], found["acc_norm"]) == (1 / 4, 2 / 4)
    assert found["acc_stderr"] == pytest.approx(math.sqrt((0.75**2 + 3 * 0.25**2) / 3 / 4))
    assert found["acc_norm_stderr"] == pytest.approx(math.sqrt(1 / 3 / 4))
    assert found["acc_low"] < 1 / 4 < found["acc_high"]
    assert (found["chance"], found["n"]) == (1 / 4, 4)


def test_characters_not_bytes_measure_an_answer(tmp_path: Path) -> None:
    """As lm-eval's acc_norm: ü is one. -2 / 4 against -1.6 / 4; by bytes it would be -2 / 8 against -1.6 / 4."""
    row = {**WAY, "sol1": "üüüü", "sol2": "aaaa", "label": 1}
    assert figures("piqa", lines(tmp_path / "p.jsonl", [row]), {" üüüü": -2.0, " aaaa": -1.6})["acc_norm"] == 1


def test_of_equal_ones_the_first(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", [{**WAY, "sol1": "abc", "sol2": "xyz"}])
    assert figures("piqa", path, {" abc": -1.0, " xyz": -1.0})["acc"] == 1


def test_hellaswag_asks_what_lm_eval_asks(tmp_path: Path) -> None:
    wikihow = {
        "activity_label": "Home",
        "ctx_a": "[header] How to rest [title] Lie down. [step] Close  your eyes.",
        "ctx_b": "you WAIT",
        "endings": ["[substeps] Sleep.", "Run. [title] Run on.", " sit ", "c"],
        "label": "2",
    }
    one, other = hellaswag.questions(lines(tmp_path / "swag.jsonl", [SWAG, wikihow]))
    assert one == hellaswag.Question("Play: A man. He", tuple(ENDINGS), 1)
    assert other.text == "Home:  How to rest. Lie down. Close your eyes. You wait".replace("  ", " ")
    assert (other.choices, other.gold) == ((" Sleep.", "Run.. Run on.", "sit", "c"), 2)
    scorer = Told({" " + choice: -1.0 for choice in ENDINGS})
    run(scorer, [make("hellaswag", data=tmp_path / "swag.jsonl")], limit=1)
    assert scorer.asked == [("Play: A man. He", " " + ending) for ending in ENDINGS]


def test_hellaswag_in_the_form_with_one_context(tmp_path: Path) -> None:
    row = {"ctx": "Play: A man. he [x]waits", "endings": ENDINGS, "label": 3}
    (question,) = hellaswag.questions(lines(tmp_path / "swag.jsonl", [row]))
    assert (question.text, question.gold) == ("Play: A man. he waits", 3)


def test_piqa_asks_what_lm_eval_asks(tmp_path: Path) -> None:
    scorer = Told({" Use water.": -1.0, " Use sand": -2.0})
    run(scorer, [make("piqa", data=lines(tmp_path / "p.jsonl", [WAY]))])
    prompt = "Question: Boil an egg\nAnswer:"
    assert scorer.asked == [(prompt, " Use water."), (prompt, " Use sand")]


def test_the_labels_of_piqa_may_lie_beside_it(tmp_path: Path) -> None:
    bare = {name: WAY[name] for name in ("goal", "sol1", "sol2")}
    path = lines(tmp_path / "piqa_valid.jsonl", [bare, bare, bare])
    with pytest.raises(DamagedFile, match=r"line 1: no field 'label', and there is no .*piqa_valid-labels\.lst"):
        list(piqa.questions(path))
    (tmp_path / "piqa_valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(DamagedFile, match=r"line 3: has no label; .*-labels\.lst has only 2"):
        list(piqa.questions(path))
    (tmp_path / "piqa_valid-labels.lst").write_text("0\n1\n1\n")
    assert [question.gold for question in piqa.questions(path)] == [0, 1, 1]
    assert make("piqa", data=tmp_path).path == str(path), "a folder is looked through"


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("hellaswag", {"ctx": "a", "label": 0}, "no field 'endings', wanted a list; it has 'ctx', 'label'"),
        ("hellaswag", {"ctx": "a", "endings": ENDINGS}, "no field 'label'"),
        ("hellaswag", {"endings": ENDINGS, "label": 0}, "no field 'ctx', wanted a text"),
        ("hellaswag", {"ctx_a": "a", "ctx_b": "b", "endings": ENDINGS, "label": 0}, "no field 'activity_label'"),
        ("hellaswag", {**SWAG, "label": 4}, "'label' is 4; wanted 0 to 3, or a letter from A to D"),
        ("hellaswag", {**SWAG, "label": ""}, "'label' is ''; wanted 0 to 3"),
        ("hellaswag", {**SWAG, "label": True}, "'label' is True; wanted 0 to 3"),
        ("hellaswag", {**SWAG, "label": [1]}, r"'label' is \[1\]; wanted 0 to 3"),
        ("hellaswag", {**SWAG, "endings": ["a", 1]}, "'endings' wanted as two or more texts"),
        ("hellaswag", {**SWAG, "endings": ["a"]}, "'endings' wanted as two or more texts"),
        ("hellaswag", {**SWAG, "endings": ["a", "\ud800"]}, "'endings' has half a surrogate pair"),
        ("piqa", {"goal": "a", "sol1": "b", "label": 0}, "no field 'sol2', wanted a text"),
        ("piqa", {**WAY, "sol2": " "}, "'sol1 and sol2' wanted as two or more texts, none of them blank"),
        ("piqa", {**WAY, "label": -1}, "'label' is -1; wanted 0 to 1"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, task: str, row: dict[str, Any], said: str) -> None:
    good = SWAG if task == "hellaswag" else WAY
    path = lines(tmp_path / "set.jsonl", [good, row])
    with pytest.raises(DamagedFile, match=rf"set\.jsonl: line 2: {said}"):
        list(make(task, data=path).items(Bytes()))


@pytest.mark.parametrize("task", ["hellaswag", "piqa"])
def test_a_set_that_is_not_there_is_asked_for(task: str) -> None:
    with pytest.raises(InputError, match=rf"{task} needs its data: give --data FILE \({task}_val"):
        make(task)


@pytest.mark.parametrize("name", ["v4", "v7"])
def test_alone_or_together_to_the_bit(shared: Path, name: str) -> None:
    scorer = Local(rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes"), (0,))
    for task in (make("hellaswag", data=shared / "data/eval"), make("piqa", data=shared / "data/eval")):
        items = [item for _, item in zip(range(6), task.items(scorer.coder), strict=False)]
        together = scorer.answer([request for item in items for request in item.requests])
        assert together == [scorer.answer([request])[0] for item in items for request in item.requests]
