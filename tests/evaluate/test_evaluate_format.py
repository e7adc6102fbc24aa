"""Sensitivity to a prompt's form: it is found where it is, and not where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import DamagedFile, InputError, MissingFile
from rookery.evaluate import tasks
from rookery.evaluate.local import Local
from rookery.evaluate.requests import Likelihood, Likely
from rookery.evaluate.run import run
from rookery.evaluate.tasks import format as room
from rookery.evaluate.tasks.format import Format, Question, Settings, Source
from tolerances import SPREAD_DEVIATION, SPREAD_MEAN, SPREADS

COLOURS = ("red", "blue", "green", "white")


class NoCoder:
    """Forms are text: they need no tokens."""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    def read(settings: Settings, path: Any) -> Iterator[Question]:
        for i in range(1000):
            yield Question((f"Story {i}.", f"Which colour has ball {i}?"), COLOURS, i % 4)

    monkeypatch.setitem(room.SOURCES, "toy", Source(read, "Say it.", parts=2))
    return "toy"


def gold(context: str) -> str:
    """The right colour of a toy question, whatever its form."""
    return COLOURS[int(context.split("Story ")[1].split(".")[0]) % 4]


def summary(task: Format, right: Callable[[str], bool]) -> dict[str, Any]:
    """Of a model that is right where right(context) says so, and else takes the colour after the right one."""

    def answer(asked: Likelihood) -> Likely:
        assert isinstance(asked.context, str)
        at = COLOURS.index(gold(asked.context))
        liked = COLOURS[at if right(asked.context) else (at + 1) % 4]
        return Likely(-1.0 if asked.continuation == liked else -2.0, False, 1)

    rows = []
    for item in task.items(NoCoder()):  # type: ignore[arg-type]
        answers = [answer(request) for request in item.requests if isinstance(request, Likelihood)]
        rows.append({**item.about, **task.row(item, answers)})
    return task.summary(rows)


def noisy(share: float, salt: int) -> Callable[[str], bool]:
    """Right in `share` of all prompts, as if by dice, whatever the form."""
    return lambda context: sha256(f"{salt} {context}".encode()).digest()[0] < share * 256


def test_a_model_without_a_taste_for_forms_stays_within_chance(toy: str) -> None:
    task = Format(Settings(toy, questions=60), None)
    found = [summary(task, noisy(0.6, salt)) for salt in range(20)]
    assert all(one["spread"] > 0.05 for one in found)  # which alone would look like sensitivity
    assert sum(one["p"] < 0.05 for one in found) <= 3  # 1 of 20 is expected, 4 or more come once in 60 times
    spreads, chance = (np.mean([one[name] for one in found]) for name in ("spread", "spread_chance"))
    assert spreads == pytest.approx(chance, abs=SPREADS)


def test_a_model_with_a_taste_for_forms_is_found(toy: str) -> None:
    task = Format(Settings(toy, questions=60), None)
    steady = noisy(0.9, 1)
    found = summary(task, lambda context: steady(context) and "<think>" not in context)
    assert found["p"] < 0.001
    assert found["margin_p"] < 0.001
    assert found["acc_min"] == 0
    assert found["acc_max"] > 0.8
    assert found["spread"] == found["acc_max"] - found["acc_min"]
    assert found["spread_chance"] < found["spread_low"] <= found["spread"] <= found["spread_high"]
    assert "<think>" in found["worst"]
    assert "<think>" not in found["best"]
    shares = [row[0] for row in found["tables"][0]["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == found["formats"] == 12


def test_a_sure_model_has_no_spread_at_all(toy: str) -> None:
    found = summary(Format(Settings(toy, questions=20), None), lambda context: True)
    assert found["acc"] == found["acc_min"] == found["acc_max"] == 1
    assert found["spread"] == found["spread_high"] == found["spread_chance"] == 0
    assert found["p"] == found["margin_p"] == 1
    assert (found["margin"], found["margin_spread"]) == (1, 0)
    assert found["chance"] == 0.25


def test_questions_are_resampled_with_all_their_answers() -> None:
    column = np.random.default_rng(1).integers(0, 2, (80, 1)).astype(float)
    assert not room.resampled(np.repeat(column, 5, axis=1), 0).any()
    against_sure = np.concatenate([np.ones((400, 1)), np.arange(400)[:, None] % 4 > 0], axis=1)
    spreads = room.resampled(against_sure, 0)
    assert spreads.mean() == pytest.approx(0.25, abs=SPREAD_MEAN)
    assert spreads.std() == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=SPREAD_DEVIATION)


def test_chance_deals_answers_within_a_question_only() -> None:
    """Four questions of ten are known in every form: that they differ from the others is no spread."""
    right = np.repeat((np.arange(10) < 4)[:, None], 6, axis=1).astype(float)
    assert not room.by_chance(right, 0).any()


@pytest.mark.parametrize("of", ["multihop", "piqa", "hellaswag", "mmlu"])
def test_forms_differ_and_say_the_same(of: str) -> None:
    source = room.SOURCES[of]
    question = Question(("It lies there.", "Where is it?")[: source.parts], ("a box", "a hat", "a shoe"), 1)
    found = room.forms(200, 0, source)
    written = [form.write(question, source) for form in found]
    assert len({requests[0].context for requests in written}) == 200
    for form, requests in zip(found, written, strict=True):
        contexts = {str(request.context) for request in requests}
        assert len(contexts) == 1
        (context,) = contexts
        assert all(part in context for part in question.parts)
        assert (source.line in context) == form.told
        assert ("<think>" in context) == form.think
        assert tuple(request.continuation for request in requests) == (
            ("A", "B", "C") if source.listed else question.choices
        )
        if source.listed:
            assert all(choice in context for choice in question.choices)


def test_forms_and_questions_come_from_the_seed(toy: str) -> None:
    one, same, other = (Format(Settings(toy, 12, 5, seed), None) for seed in (1, 1, 2))
    assert one.forms == same.forms != other.forms
    assert list(one.items(None)) == list(same.items(None))  # type: ignore[arg-type]
    more = Format(Settings(toy, 12, 9, 1), None)
    assert list(more.items(None))[:5] == list(one.items(None))  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, list[dict[str, Any]]]:
    sets: dict[str, list[dict[str, Any]]] = {
        "piqa_valid.jsonl": [{"goal": f"goal {i}", "sol1": "push", "sol2": "pull", "label": i % 2} for i in range(9)],
        "hellaswag_val.jsonl": [
            {"ctx": f"start {i}", "endings": ["one", "two", "three", "four"], "label": 2} for i in range(9)
        ],
        "mmlu_dev.jsonl": [
            {"question": f"why {i}", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 3} for i in range(9)
        ],
    }
    for name, rows in sets.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sets


@pytest.mark.parametrize(
    ("of", "text", "choices"), [("piqa", "goal", 2), ("hellaswag", "start", 4), ("mmlu", "why", 4)]
)
def test_sets_are_read_from_a_folder_in_a_drawn_order(tmp_path: Path, of: str, text: str, choices: int) -> None:
    files(tmp_path)
    task = tasks.make("format", {"of": of, "formats": "3", "questions": "9"}, tmp_path)
    items = list(task.items(None))  # type: ignore[arg-type]
    seen = []
    for item in items:
        assert len(item.requests) == 3 * choices
        (number,) = [i for i in range(9) if f"{text} {i}" in str(item.requests[0].context)]  # type: ignore[union-attr]
        assert item.about["gold"] == {"piqa": number % 2, "hellaswag": 2, "mmlu": 3}[of]
        seen.append(number)
    assert sorted(seen) == list(range(9)) != seen
    fewer = list(tasks.make("format", {"of": of, "formats": "3", "questions": "4"}, tmp_path).items(None))  # type: ignore[arg-type]
    assert fewer == items[:4]


def test_a_line_without_its_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "piqa_valid.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n{"goal": "a"}\n')
    task = tasks.make("format", {"of": "piqa"}, tmp_path)
    with pytest.raises(DamagedFile, match="line 2: no field 'sol1'"):
        list(task.items(None))  # type: ignore[arg-type]


def test_bad_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    for given, says in [
        ({"of": "squad"}, "of='squad': choose from multihop, piqa, hellaswag, mmlu"),
        ({"formats": "1"}, "formats=1: a spread needs 2"),
        ({"formats": "99999"}, "formats=99999: the grammar has"),
        ({"questions": "0"}, "questions=0: at least 1"),
        ({"seed": "-1"}, "seed=-1: 0 or more"),
        ({"of": "piqa"}, "format of=piqa needs its data"),
        ({"format": "3"}, "did you mean formats"),
    ]:
        with pytest.raises(InputError, match=says):
            tasks.make("format", given)
    with pytest.raises(MissingFile, match="piqa_valid"):
        tasks.make("format", {"of": "piqa"}, tmp_path)


def test_gosling_is_asked_about_stories() -> None:
    model = rookery.load("gosling")
    found = run(Local(model), [tasks.make("format", {"questions": "6", "formats": "10"})])["results"]["format"]
    assert (found["n"], found["formats"]) == (6, 10)
    assert 0 <= found["acc_min"] <= found["acc_median"] <= found["acc_max"] <= 1
    assert 0 < found["p"] <= 1


def test_margins_tell_forms_apart_where_choices_do_not(toy: str) -> None:
    """Always wrong, and farther off after a thought: 2 nats instead of 1."""
    task = Format(Settings(toy, questions=30), None)

    def answer(asked: Likelihood) -> Likely:
        right = asked.continuation == gold(str(asked.context))
        return Likely((-3.0 if "<think>" in str(asked.context) else -2.0) if right else -1.0, False, 1)

    rows = []
    for item in task.items(None):  # type: ignore[arg-type]
        answers = [answer(request) for request in item.requests if isinstance(request, Likelihood)]
        rows.append({**item.about, **task.row(item, answers)})
    found = task.summary(rows)
    assert (found["acc_max"], found["p"]) == (0, 1)
    assert (found["margin_spread"], found["margin_p"]) == (1, pytest.approx(1 / 2001))
    assert -2 < found["margin"] < -1
    assert {row[3] for row in found["tables"][0]["rows"]} == {-1.0, -2.0}
