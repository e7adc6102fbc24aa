"""Multi-hop: stories against their replay, and scores of readers who know all, nothing, or one trick."""

import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery.errors import InputError
from rookery.evaluate.local import Local
from rookery.evaluate.requests import Continue, Likelihood, Likely
from rookery.evaluate.run import run
from rookery.evaluate.tasks import make, stories
from rookery.evaluate.tasks.multihop import replay

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
GIVES = re.compile(r"(\w+) gives the (\w+) to (\w+)\.")


class Bytes:
    vocab_size, end = 256, None

    def encode(self, text):
        return list(text.encode())

    def decode_bytes(self, ids):
        return bytes(ids)


class Fake:
    """Answers by what `solve` makes of a prompt."""

    coder, prefix, about = Bytes(), (), {"fake": True}

    def __init__(self, solve):
        self.solve = solve

    def answer(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        if isinstance(request, Continue):
            return f" {self.solve(bytes(request.prompt).decode())}."
        right = request.continuation.strip() == self.solve(bytes(request.context).decode())
        return Likely(0.0 if right else -2.5, right, 1)


def backwards(prompt):
    """From the question to the last sentence that it hangs on, and on from there: no state is kept."""
    text, question = prompt.split("\n")
    person = re.search(r"thing that (\w+) has", question)
    thing = person and last(text, rf"(?:gives the (\w+) to {person[1]}\.|{person[1]} has a \w+ (\w+)\.)")
    if thing:
        return re.search(rf"has a (\w+) {thing}\.", text)[1]
    asked = re.match(r"Who has the (\w+)\?", question)[1]
    return last(text, rf"(?:gives the {asked} to (\w+)\.|(\w+) has a \w+ {asked}\.)")


def named_last(prompt):
    """Whoever was given something last; for a colour, that thing's."""
    text, question = prompt.split("\n")
    _, thing, taker = GIVES.findall(text)[-1]
    return taker if question.startswith("Who") else re.search(rf"has a (\w+) {thing}\.", text)[1]


def last(text, pattern):
    return next(name for name in list(re.finditer(pattern, text))[-1].groups() if name)


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


def some(count):
    """Stories of all sizes."""
    for i in range(count):
        r = rng(i)
        people = int(r.integers(2, 21))
        things = int(r.integers(1, min(people, 13)))
        kind, hops, busy = stories.KINDS[i % 2], int(r.integers(6)), bool(r.integers(2))
        yield hops, things, busy, stories.story(r, kind, hops, people, things, busy)


def test_replays_agree_with_what_was_told():
    for _, things, _, story in some(400):
        assert replay(f"{story.text} {story.question}") == story.answer
        assert backwards(f"{story.text}\n{story.question}") == story.answer
        assert story.answer in story.choices
        assert len(set(story.choices)) == len(story.choices)
        assert len(story.choices) == (things if story.question.startswith("What") else story.text.count(" has "))


def test_a_replay_notices_what_cannot_be():
    seen = 0
    for _, _, _, story in some(200):
        gives = list(GIVES.finditer(story.text))
        if gives:
            at = gives[len(gives) // 2]
            giver, thing, taker = at.groups()
            swapped = f"{story.text[: at.start()]}{taker} gives the {thing} to {giver}.{story.text[at.end() :]}"
            with pytest.raises(ValueError, match="it cannot be"):
                replay(f"{swapped} {story.question}")
            seen += 1
    assert seen > 100


def test_hands_are_changed_as_often_as_was_asked():
    for hops, things, busy, story in some(200):
        handed = Counter(thing for _, thing, _ in GIVES.findall(story.text))
        if busy:
            assert list(handed.values()) == [hops] * (things if hops else 0)
        else:
            assert list(handed.values()) == [hops] * bool(hops)


def test_hay_lies_between_story_and_question():
    example = stories.example(rng(1), hops=2, pieces=7)
    text, _ = example.prompt.split("\n")
    assert text.endswith(" ".join(stories.hay(7)))
    assert len(example.wrong) in (3, 5)
    assert example.answers[0] == replay(example.prompt.split("?")[0] + "?")
    assert example.answers[0] not in example.wrong


def test_a_reader_of_the_text_is_right_everywhere():
    result = run(Fake(backwards), [make("multihop", {"repeats": 4})])["results"]["multihop"]
    assert (result["n"], result["acc"], result["exact"], result["margin"]) == (80, 1.0, 1.0, 2.5)
    assert result["chance"] == pytest.approx((1 / 6 + 1 / 4) / 2)
    for table, chance in zip(result["tables"], (1 / 6, 1 / 4), strict=True):
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        assert [(r["hops"], r["distance"]) for r in rows] == [(h, d) for h in range(5) for d in (0, 128)]
        assert [(r["n"], r["acc"], r["exact"], r["margin"]) for r in rows] == [(4, 1, 1, 2.5)] * 10
        assert [r["chance"] for r in rows] == pytest.approx([chance] * 10)


def test_a_guess_scores_chance():
    class Guess(Fake):
        draws = rng(5)

        def one(self, request):
            return Likely(self.draws.normal(), False, 1) if isinstance(request, Likelihood) else " nobody"

    for kind, chance in (("who", 1 / 6), ("colour", 1 / 4)):
        task = make("multihop", {"kinds": kind, "repeats": 60, "distances": 0})
        result = run(Guess(None), [task])["results"]["multihop"]
        assert result["chance"] == pytest.approx(chance)
        assert abs(result["acc"] - chance) < 3 * result["acc_stderr"]
        assert result["exact"] == 0


@pytest.mark.parametrize("kind", stories.KINDS)
def test_who_was_named_last_tells_little_where_all_are_busy(kind):
    task = make("multihop", {"kinds": kind, "hops": "1,2,3,4", "distances": 0, "repeats": 50})
    result = run(Fake(named_last), [task])["results"]["multihop"]
    assert abs(result["acc"] - 1 / 4) < 3 * result["acc_stderr"]
    idle = make("multihop", {"kinds": kind, "hops": "1,2,3,4", "distances": 0, "repeats": 5, "busy": False})
    assert run(Fake(named_last), [idle])["results"]["multihop"]["acc"] == 1


def test_distances_are_filled_and_stories_paired():
    gosling = rookery.load("gosling").tokenizer
    for coder in (gosling, Bytes()):
        items = list(make("multihop", {"repeats": 2, "distances": "0,64,300"}).items(coder))
        for near, *farther in zip(items[::3], items[1::3], items[2::3], strict=True):
            assert [far.about["answer"] for far in farther] == [near.about["answer"]] * 2
            for far, distance in zip(farther, (64, 300), strict=True):
                longest = 2 + max(len(coder.encode(sentence)) for sentence in stories.hay(5))
                assert distance - longest < far.about["tokens"] - near.about["tokens"] <= distance


def test_seeds_reproduce_and_differ():
    def shown(**settings):
        items = make("multihop", {"distances": "0,40", **settings}).items(Bytes())
        return [(item.about, item.requests) for item in items]

    first = shown(repeats=3)
    assert first == shown(repeats=3)
    assert shown(repeats=4)[: len(first)] == first
    assert len({repr(requests) for _, requests in first}) == len(first)
    assert not any(a[1] == b[1] for a, b in zip(first, shown(repeats=3, seed=1), strict=True))


def test_rows_say_what_was_picked():
    task = make("multihop", {"kinds": "who", "hops": 1, "distances": 0, "repeats": 1})
    (item,) = task.items(Bytes())
    answer, choices = item.about["answer"], item.about["choices"]
    other = next(name for name in choices if name != answer)
    likely = [Likely({answer: -1.0, other: -0.5}.get(name, -9.0), False, 1) for name in choices]
    row = task.row(item, [*likely, f" {answer}s"])
    assert (row["picked"], row["right"], row["margin"], row["exact"]) == (other, False, -0.5, False)
    assert task.row(item, [*likely, f' "{answer}", he'])["exact"]


class ByStory(Fake):
    """How likely a name is hangs on the story and nothing else, or on nothing."""

    def __init__(self, hangs):
        self.hangs = hangs

    def one(self, request):
        if isinstance(request, Continue):
            return ""
        story = bytes(request.context).decode().split("\n")[0].split(" The hay")[0]
        seed = zlib.crc32(f"{story} {request.continuation}".encode())
        return Likely(rng(seed).normal() if self.hangs else -1.0, False, 1)


def test_one_who_takes_all_for_equal_scores_chance():
    task = make("multihop", {"repeats": 60, "hops": 1, "distances": 0})
    result = run(ByStory(False), [task])["results"]["multihop"]
    assert abs(result["acc"] - result["chance"]) < 3 * result["acc_stderr"]
    assert result["margin"] == 0


def test_a_story_at_two_distances_is_one_draw():
    once, twice = (
        run(ByStory(True), [make("multihop", {"repeats": 10, "distances": of})])["results"]["multihop"]
        for of in ("0", "0,60")
    )
    assert (once["n"], twice["n"]) == (100, 200)
    for name in ("acc", "acc_stderr", "margin", "margin_stderr"):
        assert twice[name] == pytest.approx(once[name])
    assert twice["acc_high"] == pytest.approx(once["acc_high"], abs=0.002)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"people": 1}, "people=1: 2 to 20"),
        ({"people": 21}, "people=21: 2 to 20"),
        ({"objects": 13, "people": 20}, "objects=13: 1 to 12"),
        ({"objects": 6}, "objects=6 leave none of people=6 with empty hands"),
        ({"kinds": "whom"}, "kinds=whom: choose from who, colour"),
        ({"hops": "0,-1"}, "hops=-1: at least 0"),
        ({"distances": -5}, "distances=-5: at least 0"),
        ({"repeats": 0}, "repeats=0: at least 1"),
        ({"hops": 10**14}, "hops and distances: a text of .* tokens needs .* GB"),
        ({"distances": 10**14}, "hops and distances: a text of .* tokens needs .* GB"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=message):
        make("multihop", settings)


def test_one_thing_leaves_one_colour_to_choose():
    with pytest.raises(InputError, match="objects=1: a question of colour"):
        make("multihop", {"objects": 1})
    make("multihop", {"objects": 1, "kinds": "who"})


def test_a_model_that_has_learnt_nothing():
    model = rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes")
    task = make("multihop", {"hops": "0,1", "distances": 0, "repeats": 20})
    result = run(Local(model), [task])["results"]["multihop"]
    assert result["n"] == 80
    assert abs(result["acc"] - result["chance"]) < 3 * result["acc_stderr"]
    assert result["exact"] == 0
