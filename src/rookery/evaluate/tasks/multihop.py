"""Multi-hop: a thing is handed on several times; who has it, and what colour is the thing that somebody has?

Accuracy by hops and distance, for each kind of question: the likeliest of all people, or colours, of the story. Chance
is one over their number. `margin`: nats between the right one and the likeliest wrong one. `exact`: whether a greedy
continuation begins with it. What is right is found by replaying the text, not by asking the generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rookery.errors import InputError
from rookery.evaluate.requests import Answer, Coder, Continue, Likelihood
from rookery.evaluate.settings import setting
from rookery.evaluate.statistics import grouped, mean, wilson
from rookery.evaluate.task import Item
from rookery.evaluate.tasks import stories
from rookery.evaluate.tasks.choices import likelihoods
from rookery.evaluate.tasks.needle.haystack import PROMPT, REQUEST, fill, room

FILES: tuple[str, ...] = ()
SOURCE = "made here"


@dataclass(frozen=True)
class Settings:
    kinds: tuple[str, ...] = setting(stories.KINDS, "who has the thing, what colour it is that somebody has")
    hops: tuple[int, ...] = setting((0, 1, 2, 3, 4), "how often the thing asked for is handed on")
    distances: tuple[int, ...] = setting((0, 128), "tokens between the story and the question, as near below as can be")
    people: int = setting(6, "in a story")
    objects: int = setting(4, "in a story, each of another colour; fewer than people")
    busy: bool = setting(True, "the other things are handed on as often as the one asked for")
    repeats: int = setting(25, "stories of each kind, hops and distance")
    seed: int = setting(0, "draws the stories")


class Multihop:
    name: ClassVar[str] = "multihop"

    def __init__(self, settings: Settings, path: str | None = None) -> None:
        self.settings = s = settings
        stories.check(s.people, s.objects)
        least = [("repeats", s.repeats, 1), ("seed", s.seed, 0)]
        least += [("hops", n, 0) for n in s.hops] + [("distances", n, 0) for n in s.distances]
        for name, value, low in least:
            if value < low:
                raise InputError(f"{name}={value}: at least {low} is wanted")
        for kind in s.kinds:
            if kind not in stories.KINDS:
                raise InputError(f"kinds={kind}: choose from {', '.join(stories.KINDS)}")
        if s.objects == 1 and "colour" in s.kinds:
            raise InputError("objects=1: a question of colour has nothing to choose from; want 2 or more, or kinds=who")
        handed = max(s.hops) * (s.objects if s.busy else 1)
        room("hops and distances", max(s.distances) + 10 * handed, PROMPT + REQUEST * s.people)

    def items(self, coder: Coder) -> Iterator[Item]:
        """Repeats outermost, so that the first n items (--limit) hold something of everything; the same stories at
        every distance.
        """
        s = self.settings
        for repeat in range(s.repeats):
            for kind in s.kinds:
                for hops in s.hops:
                    rng = np.random.Generator(np.random.PCG64([s.seed, stories.KINDS.index(kind), hops, repeat]))
                    story = stories.story(rng, kind, hops, s.people, s.objects, s.busy)
                    for distance in s.distances:
                        yield self.item(
                            coder, story, {"kind": kind, "hops": hops, "distance": distance, "repeat": repeat}
                        )

    def item(self, coder: Coder, story: stories.Story, about: dict[str, Any]) -> Item:
        prompt = story.puzzle().prompt
        bare = len(coder.encode(prompt(0)))
        ids = fill(coder.encode, prompt, bare + about["distance"])
        assert ids is not None
        choices = list(story.choices)
        likely = [Likelihood(tuple(ids), f" {name}") for name in choices]
        longest = max(len(coder.encode(f" {name}")) for name in choices)
        told = {"tokens": len(ids), "answer": replay(f"{story.text} {story.question}"), "choices": choices}
        return Item((*likely, Continue(tuple(ids), longest + 1)), {**about, **told})

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        *likely, wrote = answers
        names, logprobs = item.about["choices"], likelihoods(likely)
        right, picked = names.index(item.about["answer"]), int(np.argmax(logprobs))
        exact = re.match(rf"\W*{re.escape(names[right])}\b", str(wrote)) is not None
        return {
            "picked": names[picked],
            "right": picked == right,
            "margin": float(logprobs[right] - np.delete(logprobs, right).max()),
            "wrote": wrote,
            "exact": exact,
        }

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        figures = dict(zip(SCORES, scores(rows), strict=True))
        errors = {name: grouped([float(row[of]) for row in rows], told(rows))[1] for name, of in ERRORS.items()}
        return {
            **figures,
            **{f"{name}_stderr": error for name, error in errors.items()},
            "tables": [self.table(kind, [r for r in rows if r["kind"] == kind]) for kind in self.settings.kinds],
        }

    def table(self, kind: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in rows:
            cells.setdefault((row["hops"], row["distance"]), []).append(row)
        title = {"who": "who has it", "colour": "what colour it is"}[kind]
        found = [[*cell, *scores(of)] for cell, of in sorted(cells.items())]
        return {"title": f"{title}: hops x distance", "columns": ["hops", "distance", *SCORES], "rows": found}


SCORES = ["n", "acc", "acc_low", "acc_high", "chance", "exact", "margin"]
ERRORS = {"acc": "right", "exact": "exact", "margin": "margin"}


def scores(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Under SCORES."""
    acc, _, draws = grouped([float(row["right"]) for row in rows], told(rows))
    chance = mean([1 / len(row["choices"]) for row in rows])[0]
    others = [mean([float(row[name]) for row in rows])[0] for name in ("exact", "margin")]
    return [len(rows), acc, *wilson(acc * draws, draws), chance, *others]


def told(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Which story, the same at every distance."""
    return [(row["kind"], row["hops"], row["repeat"]) for row in rows]


def replay(text: str) -> str:
    """The answer to the question that `text` ends with, from what it says and nothing else.

    Raises ValueError where somebody gives what he does not have, or takes with full hands.
    """
    holds: dict[str, str] = {}
    colours: dict[str, str] = {}
    for sentence in re.findall(r"[^.?]+[.?]", text):
        said = sentence.strip()
        if has := re.fullmatch(r"(\w+) has a (\w+) (\w+)\.", said):
            person, colour, thing = has.groups()
            holds[person], colours[thing] = thing, colour
        elif gives := re.fullmatch(r"(\w+) gives the (\w+) to (\w+)\.", said):
            giver, thing, taker = gives.groups()
            if holds.get(giver) != thing or taker in holds:
                raise ValueError(f"it cannot be that {said}")
            holds[taker] = holds.pop(giver)
        elif who := re.fullmatch(r"Who has the (\w+)\?", said):
            return next(person for person, thing in holds.items() if thing == who[1])
        elif of := re.fullmatch(r"What colour is the thing that (\w+) has\?", said):
            return colours[holds[of[1]]]
    raise ValueError("no question")


TASK = Multihop
