"""Stories of things that are handed on, and a question that only all of it answers.

Every person holds one thing or nothing, so that "the thing that Mary has" is always one. Where the things not asked for
are handed on too, each is as often as the one asked for: who knows only that whoever was given something last has
something is right for one in so many things, a little above chance; where they are not, it is all there is to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rookery.errors import InputError
from rookery.evaluate.tasks.needle.haystack import Example, Puzzle, hay

PEOPLE = (
    *("Alice", "Anna", "Ben", "David", "Emma", "Fred", "Grace", "Jack", "James", "Jane"),
    *("John", "Kate", "Mary", "Paul", "Peter", "Polly", "Rose", "Ruth", "Sam", "Tom"),
)
THINGS = ("ball", "bell", "book", "bottle", "box", "cube", "cup", "hat", "key", "lamp", "mirror", "pen", "ring", "rope")
COLOURS = (
    *("black", "blue", "brown", "golden", "green", "grey"),
    *("pink", "purple", "red", "silver", "white", "yellow"),
)
KINDS = ("who", "colour")


@dataclass(frozen=True)
class Story:
    """`lead` begins the answer, where that helps; `answer` is one of `choices`: people, or colours, of the story."""

    text: str
    question: str
    lead: str
    answer: str
    choices: tuple[str, ...]

    def puzzle(self) -> Puzzle:
        """Hay lies between the story and the question."""

        def prompt(pieces: int) -> str:
            return f"{' '.join((self.text, *hay(pieces)))}\n{self.question} {self.lead}"

        return Puzzle(prompt, (self.answer,), tuple(name for name in self.choices if name != self.answer))


def check(people: int, things: int) -> None:
    """Raises InputError where such a story cannot be told."""
    if not 2 <= people <= len(PEOPLE):
        raise InputError(f"people={people}: 2 to {len(PEOPLE)} is wanted")
    if not 1 <= things <= len(COLOURS):
        raise InputError(f"objects={things}: 1 to {len(COLOURS)} is wanted")
    if things >= people:
        raise InputError(f"objects={things} leave none of people={people} with empty hands to be given one; want fewer")


def story(rng: np.random.Generator, kind: str, hops: int, people: int = 6, things: int = 4, busy: bool = True) -> Story:
    """`hops`: how often the thing asked for is handed on; the others are as often if `busy`, else never.

    `kind`: "who" has it, or what "colour" the thing is that its holder has.
    """
    named, owned, coloured = (_some(rng, *of) for of in ((PEOPLE, people), (THINGS, things), (COLOURS, things)))
    asked = int(rng.integers(things))
    holders, empty = named[:things], named[things:]
    begin = [f"{p} has a {c} {t}." for p, c, t in zip(holders, coloured, owned, strict=True)]
    begin += [f"{p} has nothing." for p in empty]
    told = _some(rng, begin, people)
    for thing in rng.permutation(np.repeat(np.arange(things) if busy else asked, hops)).tolist():
        giver, place = holders[thing], int(rng.integers(len(empty)))
        holders[thing], empty[place] = empty[place], giver
        told.append(f"{giver} gives the {owned[thing]} to {holders[thing]}.")
    text, holder = " ".join(told), holders[asked]
    if kind == "who":
        return Story(text, f"Who has the {owned[asked]}?", f"The {owned[asked]} is with", holder, tuple(sorted(named)))
    question = f"What colour is the thing that {holder} has?"
    return Story(text, question, "It is", coloured[asked], tuple(sorted(coloured)))


def example(
    rng: np.random.Generator, hops: int, pieces: int = 0, people: int = 6, things: int = 4, busy: bool = True
) -> Example:
    """Of either kind, with `pieces` sentences of hay (five tokens each) before the question: no tokenizer is needed, so
    that many are made quickly to train on.
    """
    return story(rng, KINDS[int(rng.integers(2))], hops, people, things, busy).puzzle().example(pieces)


def _some(rng: np.random.Generator, of: tuple[str, ...] | list[str], count: int) -> list[str]:
    return [of[i] for i in rng.permutation(len(of))[:count].tolist()]
