"""Needles: the prompts are what they say, and what is right is scored as right."""

from __future__ import annotations

import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import InputError
from rookery.evaluate.local import Local
from rookery.evaluate.requests import Answer, Continue, Likelihood, Likely, Request
from rookery.evaluate.run import run
from rookery.evaluate.tasks import make, needle
from rookery.evaluate.tasks.needle import haystack
from rookery.tokenizer import Tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
OF_VALUES = (
    "passkey",
    "single",
    "multikey",
    "needles",
    "multivalue",
    "multiquery",
)  # what is asked for stands there once
Solve = Callable[[str], list[str]]


class Bytes:
    vocab_size, end = 256, None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)


class Fake:
    """Answers by what `solve` makes of a prompt; a likelihood is high for what is in it."""

    coder, prefix, about = Bytes(), (), {"fake": True}

    def __init__(self, solve: Solve):
        self.solve = solve

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [self.one(request) for request in requests]

    def one(self, request: Request) -> Answer:
        if isinstance(request, Continue):
            return f" {', '.join(self.solve(text_of(request.prompt)))}."
        assert isinstance(request, Likelihood)
        assert isinstance(request.continuation, str)
        right = request.continuation.strip() in self.solve(text_of(request.context))
        return Likely(0.0 if right else -5.0, right, 1)


class Guess(Fake):
    """Knows nothing."""

    def __init__(self, seed: int):
        super().__init__(lambda _: ["nothing"])
        self.rng = np.random.default_rng(seed)

    def one(self, request: Request) -> Answer:
        return Likely(self.rng.normal(), False, 1) if isinstance(request, Likelihood) else super().one(request)


def text_of(prompt: str | tuple[int, ...]) -> str:
    return prompt if isinstance(prompt, str) else bytes(prompt).decode()


def solved(prompt: str) -> list[str]:
    """What is asked for, by reading the prompt and nothing else."""
    text, question = prompt.rsplit("\n", 1)
    if question.startswith("What is the pass key?"):
        return re.findall(r"The pass key is (\d+)\.", text)
    if value := re.match(r"Which 5 names have the value (\d+)\?", question):
        found = [value[1]]
        for name, of in re.findall(r"Let (\w+) be (\w+)\.", text):
            found += [name] if of in found else []
        return found[1:]
    if question.startswith("Which 10 words"):
        return [word for word, _ in Counter(text.split("\n")[1].split(", ")).most_common(10)]
    asked = re.match(r"What (?:is|are) the secret (\w+?)s? of ([^?]+)\?", question)
    assert asked
    keys = re.split(", | and ", asked[2])
    return [v for key in keys for v in re.findall(rf"secret {asked[1]} of {key} is ([\w-]+)\.", text)]


def rng(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def gosling() -> Tokenizer:
    return rookery.load("gosling").tokenizer


@pytest.mark.parametrize("settings", [{}, {"values": "uuids"}, {"keys": "uuids", "values": "uuids"}])
def test_a_reader_of_the_text_is_right_everywhere(settings: dict[str, str]):
    task = make("needle", {"lengths": "1200,2600", "repeats": 2, "depths": "0,50,100", **settings})
    result = run(Fake(solved), [task])["results"]["needle"]
    assert (result["n"], result["acc"], result["mc_acc"], result["margin"]) == (96, 1.0, 1.0, 5.0)
    assert result["effective_length"] == 2600
    kinds, effective, passkeys = result["tables"]
    assert [row[:3] for row in kinds["rows"]] == [[k, n, 6] for k in needle.KINDS for n in (1200, 2600)]
    assert [row[:3] for row in passkeys["rows"]] == [[d, n, 2] for d in (0, 50, 100) for n in (1200, 2600)]
    assert effective["rows"] == [[kind, 2600] for kind in needle.KINDS]
    assert all(len(row) == len(table["columns"]) for table in result["tables"] for row in table["rows"])


@pytest.mark.parametrize("choices", [2, 10])
def test_a_guess_scores_chance(choices: int):
    task = make("needle", {"lengths": 700, "repeats": 20, "choices": choices})
    result = run(Guess(3), [task])["results"]["needle"]
    assert result["acc"] == result["effective_length"] == 0
    assert result["mc_chance"] == 1 / choices
    assert abs(result["mc_acc"] - 1 / choices) < 3 * result["mc_acc_stderr"]
    kinds = [dict(zip(result["tables"][0]["columns"], row, strict=True)) for row in result["tables"][0]["rows"]]
    assert sum(row["mc_low"] < row["mc_chance"] < row["mc_high"] for row in kinds) >= 7  # of 8 intervals of 95 %


@pytest.mark.parametrize("kind", needle.PLACED)
def test_a_task_hides_its_needle_where_its_row_says(kind: str):
    task = make("needle", {"kinds": kind, "lengths": 2000, "repeats": 1})
    for item in task.items(Bytes()):
        text = text_of(item.requests[0].context)
        at = text.index(f" is {item.about['answers'][0]}.") / len(text)
        assert abs(at - item.about["depth"] / 100) < 0.1


def test_wrong_pass_keys_are_never_the_right_one():
    drawn = [needle.puzzle(rng(seed), "passkey", 0.5, 49) for seed in range(1500)]
    assert all(len({*puzzle.answers, *puzzle.wrong}) == 50 for puzzle in drawn)


class ByNeedle(Guess):
    """How likely a name is hangs on it and nothing else, or on nothing."""

    def __init__(self, hangs: bool):
        super().__init__(0)
        self.hangs = hangs

    def one(self, request: Request) -> Answer:
        if isinstance(request, Continue):
            return super().one(request)
        draws = np.random.default_rng(zlib.crc32(str(request.continuation).encode()))
        return Likely(draws.normal() if self.hangs else -1.0, False, 1)


def test_one_who_takes_all_for_equal_scores_chance():
    task = make("needle", {"lengths": 700, "repeats": 2, "choices": 4})
    result = run(ByNeedle(False), [task])["results"]["needle"]
    assert (result["mc_acc"], result["mc_chance"], result["margin"]) == (0.25, 0.25, 0)


def test_a_needle_in_two_lengths_is_one_draw():
    once, twice = (
        run(ByNeedle(True), [make("needle", {"lengths": of, "repeats": 4})])["results"]["needle"]
        for of in ("700", "700,900")
    )
    assert (once["n"], twice["n"]) == (160, 320)
    for name in ("mc_acc", "mc_acc_stderr", "margin", "margin_stderr"):
        assert twice[name] == pytest.approx(once[name])
    assert all(of["mc_high"] - of["mc_acc"] > 1.9 * of["mc_acc_stderr"] for of in (once, twice))


def test_parts_of_an_answer_count_as_parts():
    task = make("needle", {"kinds": "multivalue", "lengths": 800, "depths": 0, "repeats": 3})
    result = run(Fake(lambda prompt: solved(prompt)[:1]), [task])["results"]["needle"]
    assert result["acc"] == 0.25
    assert result["mc_acc"] == pytest.approx(0.25 + 0.75 * 0.1)  # the other three are as likely as the nine wrong ones
    assert result["margin"] == pytest.approx(1.25)  # 5 nats for one of four


@pytest.mark.parametrize("kind", needle.PLACED)
@pytest.mark.parametrize("depth", [0, 25, 50, 75, 100])
def test_the_needle_lies_at_its_depth(kind: str, depth: int):
    for seed in range(5):
        example = needle.example(rng(seed), kind, 400, depth / 100)
        hay = example.prompt.split("\n")[1]
        before, after = hay.split(re.search(rf"[A-Z][^.]* is {example.answer.strip()}\.", hay)[0])  # type: ignore[index]
        assert len(before) / len(before + after) == pytest.approx(depth / 100, abs=100 / len(hay))


@pytest.mark.parametrize("kind", needle.KINDS)
def test_what_is_asked_for_stands_where_it_should(kind: str):
    for seed in range(20):
        example = needle.example(rng(seed), kind, 60)
        opening, text, question = example.prompt.split("\n")
        words = Counter(re.findall(r"[\w-]+", text))
        assert len(example.wrong) == 9
        assert len({*example.answers, *example.wrong}) == len(example.answers) + 9
        assert not any(needle.stands(name, question + opening) for name in example.answers)
        if kind in OF_VALUES:
            assert [words[name] for name in example.answers] == [1] * len(example.answers)
        elif kind == "variables":
            assert [words[name] for name in example.answers] == [2, 2, 2, 2, 1]  # each but the last is handed on
            assert not any(words[name] for name in example.wrong)
        else:
            assert {words[name] for name in example.answers} == {6}
            assert set(words.values()) == {1, 6}
            assert words.total() == 120


def test_common_words_stay_common_in_long_lists():
    for pieces in (400, 458, 460, 461, 1500, 1700, 9000):
        example = needle.example(rng(7), "words", pieces)
        counts = Counter(example.prompt.split("\n")[1].split(", "))
        rarest = min(counts[word] for word in example.answers)
        assert counts.total() == 60 + pieces
        assert rarest >= 6 * max(n for word, n in counts.items() if word not in example.answers)


@pytest.mark.parametrize("kind", needle.KINDS)
def test_prompts_are_filled(kind: str, gosling: Tokenizer):
    for coder, lengths in ((gosling, (256, 512, 1024, 3000)), (Bytes(), (700, 1500))):
        task = make("needle", {"kinds": kind, "lengths": ",".join(map(str, lengths)), "repeats": 2})
        for item in task.items(coder):
            assert isinstance(item.requests[0], Likelihood)
            assert item.about["tokens"] == len(item.requests[0].context)
            assert 0.95 * item.about["length"] <= item.about["tokens"] <= item.about["length"]


def test_one_more_piece_would_be_too_long():
    def prompt(pieces):
        return "begin " + " ".join(haystack.hay(pieces)) + " end"

    for wanted in range(11, 300):
        ids = haystack.fill(lambda text: list(text.encode()), prompt, wanted)
        fits = [n for n in range(30) if len(prompt(n)) <= wanted]
        assert ids == list(prompt(fits[-1]).encode())
    assert haystack.fill(lambda text: list(text.encode()), prompt, 9) is None


def test_hay_is_kept_whole_and_needles_in_order():
    hay = haystack.hay(7)
    laid = haystack.laid(hay, [(0.5, "C"), (0.0, "A"), (1.0, "D"), (0.0, "B")])
    assert laid.split(" ")[:2] == ["A", "B"]
    assert laid.split(" ")[-1] == "D"
    assert haystack.laid(hay, []) == re.sub(r"\b[ABCD]\b ?(?=[A-Z]|$)", "", laid).strip() == " ".join(hay)


@pytest.mark.parametrize("kind", haystack.MAKE)
def test_fewer_names_are_the_beginning_of_more(kind):
    few, more = haystack.names(kind, rng(1), 10), haystack.names(kind, rng(1), 400)
    assert few == more[:10]
    assert len(set(more)) == 400
    assert haystack.names(kind, rng(1), 398, more[:2]) == more[2:]


def test_no_needle_of_the_hay_has_the_key_asked_for(monkeypatch):
    monkeypatch.setattr(haystack, "ADJECTIVES", ["old"])
    monkeypatch.setattr(haystack, "NOUNS", ["owl", "fox", "hen"])
    for seed in range(5):
        example = needle.example(rng(seed), "needles", 80)
        assert solved(example.prompt) == list(example.answers)


def shown(task: Any, limit: int | None = None) -> list[tuple[Any, ...]]:
    return [(item.about, item.requests) for item, _ in zip(task.items(Bytes()), range(limit or 10**6), strict=False)]


def test_seeds_reproduce_and_differ():
    settings = {"lengths": "700,1400", "repeats": 2, "depths": "0,100"}
    first = shown(make("needle", settings))
    assert first == shown(make("needle", settings))
    more = shown(make("needle", {**settings, "repeats": 3}))
    assert more[: len(first)] == first
    assert not any(a[1] == b[1] for a, b in zip(first, shown(make("needle", {**settings, "seed": 1})), strict=True))
    assert len({repr(requests) for _, requests in more}) == len(more)
    needles = [[a for a, _ in first if a["length"] == length] for length in (700, 1400)]
    assert [a["answers"] for a in needles[0]] == [a["answers"] for a in needles[1]]  # lengths are paired


def test_all_of_an_item_begins_with_one_haystack():
    for item in make("needle", {"lengths": 700, "repeats": 1}).items(Bytes()):
        *likely, last = item.requests
        assert isinstance(last, Continue)
        assert all(isinstance(request, Likelihood) and request.context is last.prompt for request in likely)
        assert len(likely) == len(item.about["answers"]) + 9


def test_long_texts_are_asked_about_one_by_one(monkeypatch):
    asked = []

    class Counted(Fake):
        def answer(self, requests):
            asked.append(len(requests))
            return super().answer(requests)

    task = make("needle", {"kinds": "passkey", "lengths": "300,5000", "repeats": 1, "depths": "0,50"})
    whole = run(Counted(solved), [task])
    monkeypatch.setattr(sys.modules[run.__module__], "HELD", 5000 * 11)
    assert run(Counted(solved), [task]) == whole
    assert asked == [44, 22, 22]  # 11 an item; a short one goes with the long one after it


def test_a_number_is_found_whole_only():
    assert needle.stands("74", "It is 74.")
    assert needle.stands("AbCdE", "abcde,")
    assert not needle.stands("7", "It is 74.")
    assert not needle.stands("day", "birthday")


def test_effective_length():
    rows = [{"length": n, "found": found} for n, found in [(64, 1), (64, 1), (128, 0.85), (256, 0.86), (512, 0)]]
    assert needle.effective(rows) == 256
    assert needle.effective(rows[2:3]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": "paskey"}, "did you mean passkey"),
        ({"kinds": "zzz"}, "choose from passkey, single"),
        ({"depths": "0,101"}, "depths=101: 0 to 100"),
        ({"lengths": 0}, "lengths=0: at least 1"),
        ({"repeats": 0}, "repeats=0: at least 1"),
        ({"choices": 1}, "choices=1: 2 to 50"),
        ({"seed": -1}, "seed=-1: at least 0"),
        ({"values": "words"}, "values=words: choose from numbers, uuids"),
        ({"lengths": 10**15}, r"a text of 1,000,000,000,000,000 tokens needs 400,000,000.00 GB"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        make("needle", settings)


def test_memory_is_asked_for_before_anything_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(haystack, "free_bytes", lambda: 4_000_000_000)
    make("needle", {"lengths": 10_000_000})
    with pytest.raises(InputError, match=r"10,100,000 tokens needs 4.04 GB, more than the 4.00 GB that are free"):
        make("needle", {"lengths": "256,10100000"})


def test_too_short_for_the_needles_says_how_long(gosling: Tokenizer):
    with pytest.raises(InputError, match="lengths=40: too short") as caught:
        next(make("needle", {"lengths": "40,512"}).items(gosling))
    least = int(re.search(r"lengths of (\d+) or more", str(caught.value))[1])  # type: ignore[index]
    assert len(list(make("needle", {"lengths": least}).items(gosling))) == 200
    with pytest.raises(InputError, match="too short"):
        next(make("needle", {"lengths": least - 1}).items(gosling))


def test_a_model_that_has_learnt_nothing():
    model = rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes")
    task = make("needle", {"kinds": "passkey,single", "lengths": 200, "depths": "0,50,100", "repeats": 8})
    result = run(Local(model), [task])["results"]["needle"]
    assert result["n"] == 48
    assert result["acc"] == 0
    assert abs(result["mc_acc"] - 0.1) < 3 * max(result["mc_acc_stderr"], 0.043)  # of 48 guesses
