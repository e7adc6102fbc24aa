"""Texts to learn recall from: needles in hay and stories of hand-overs, each with questions and answers.

A text is one that `rookery eval needle multihop` could ask, and goes on with further questions about the same needles
or the same story, so that much is asked for in few ids. Some batches are bare pairs of the words and numbers that
answers are made of (`rookery eval mqar`), where every fourth id is asked for: what binds is learnt there first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rookery.evaluate.tasks import mqar, needle, stories
from rookery.evaluate.tasks.multihop import replay
from rookery.evaluate.tasks.needle.words import ADJECTIVES, NOUNS
from rookery.tokenizer import World

Array = npt.NDArray[np.int64]
Parts = list[tuple[str, str]]  # what is read, and what is to be written after it

WEIGHTS = {
    **{"passkey": 3.0, "single": 2.0, "multikey": 2.0, "multivalue": 0.5, "multiquery": 0.5},
    "multihop": 4.0,
}
LENGTHS = (48, 64, 96, 128, 192)  # ids of a batch's rows; what is too long for them is not among them
PAIRS, BARE = (4, 8, 16), 0.4  # of a sequence of bare pairs; the share of such batches
PEOPLE, HOPS = (3, 6), (0, 4)  # of a story, least and most

WORDS = re.compile(r" ?[A-Za-z]*[a-z]|[^A-Za-z0-9\s]+")
SAMPLES = 20  # of every kind, to take words from
DIGITS = [f"{n:02}" for n in range(100)] + [str(n) for n in range(10)]
NUMBERS = [*DIGITS, *(" " + digits for digits in DIGITS)]
NEEDLE = re.compile(r"The secret number of (\S+) is (\d+)\.")
THING = re.compile(r"has a \w+ (\w+)\.")
GIVES = re.compile(r"( \w+ gives the)( \w+)( to \w+\.)")


def generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(key))


class Texts:
    """Texts of `kinds` (name: weight) in rows of `lengths` ids."""

    def __init__(self, kinds: Mapping[str, float] = WEIGHTS, lengths: Sequence[int] = LENGTHS) -> None:
        self.kinds, weights = list(kinds), np.array(list(kinds.values()))
        self.weights = weights / weights.sum()
        self.lengths = np.array(lengths)
        self.vocabulary = vocabulary()
        self.tokenizer = World.from_text(self.vocabulary.encode(), "recall", "examples/recall")
        told = [" " + name for of in (stories.PEOPLE, stories.THINGS, stories.COLOURS) for name in of]
        self.names = np.array([self.tokenizer.encode(name)[0] for name in (*told, *NUMBERS)])

    def batch(self, rng: np.random.Generator, ids: int) -> tuple[Array, Array]:
        """tokens and targets [ids // length, length]; targets are -1 but for the answers. Of every length as many ids
        are read on average.
        """
        if rng.random() < BARE:
            return self.bare(rng, ids)
        length = int(rng.choice(self.lengths, p=(1 / self.lengths) / (1 / self.lengths).sum()))
        tokens = np.zeros((ids // length, length + 1), np.int64)
        targets = np.full_like(tokens, -1)
        for row in range(len(tokens)):
            text = self.text(rng, length + 1)
            tokens[row, : len(text)], targets[row, : len(text)] = text.T
        return tokens[:, :-1], targets[:, 1:]

    def bare(self, rng: np.random.Generator, ids: int) -> tuple[Array, Array]:
        """As `batch`; each value stands after its key the second time too."""
        pairs, names = int(rng.choice(PAIRS)), rng.permutation(self.names)
        half = len(names) // 2
        tokens, targets = mqar.draw(rng, pairs, ids // (4 * pairs), names[:half], names[half:])
        tokens[:, 1:] = np.where(targets[:, :-1] >= 0, targets[:, :-1], tokens[:, 1:])
        return tokens, targets

    def text(self, rng: np.random.Generator, most: int) -> Array:
        """[n, 2], n at most `most`: ids, and the same where they are an answer's, else -1. The end of text is first,
        as in an evaluation, and last.
        """
        while True:
            kind = self.kinds[rng.choice(len(self.kinds), p=self.weights)]
            fitting = [self.coded(parts) for parts in made(rng, kind, int(rng.integers(0, most // 5)))]
            whole = [text for text in fitting if len(text) <= most]
            if whole:
                return whole[-1]

    def coded(self, parts: Parts) -> Array:
        found = [(0, -1)]
        for read, written in parts:
            found += [(id, -1) for id in self.tokenizer.encode(read)]
            found += [(id, id) for id in self.tokenizer.encode(written)]
        return np.array([*found, (0, 0)])


class Stories(Texts):
    """Stories alone, asked about while they are told: of 3 or 4 people with 2 or 3 things, 0 to 3 times handed on."""

    def batch(self, rng: np.random.Generator, ids: int) -> tuple[Array, Array]:
        """As of `Texts`, but about `ids`; stories of a batch are of equally many people, things and hops."""
        people, hops = int(rng.integers(3, 5)), int(rng.integers(0, 4))
        things = int(rng.integers(2, people))
        often = (0.0, 0.3, 0.6)[int(rng.integers(3))]
        rows: list[Array] = []
        while (len(rows) + 1) * max(map(len, rows), default=0) <= ids:
            rows.append(self.coded(running(rng, people, things, hops, often)))
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        targets = np.full_like(tokens, -1)
        for row, text in enumerate(rows):
            tokens[row, : len(text)], targets[row, : len(text)] = text.T
        return tokens[:, :-1], targets[:, 1:]


def made(rng: np.random.Generator, kind: str, pieces: int) -> list[Parts]:
    """A text with one question, with two, ...; `pieces` of hay."""
    if kind == "multihop":
        people, hops = (int(rng.integers(low, high + 1)) for low, high in (PEOPLE, HOPS))
        things = int(rng.integers(2, min(people, 5)))
        asked = stories.KINDS[int(rng.integers(2))]
        story = stories.story(rng, asked, hops, people, things, bool(rng.integers(2)))
        first = story.puzzle().example(pieces if rng.random() < 0.5 else 0)
        further = about_story(story.text)
    else:
        first = needle.example(rng, kind, pieces, wrong=1)
        found = dict.fromkeys(NEEDLE.findall(first.prompt)) if kind == "multikey" else ()
        further = [(f"What is the secret number of {k}? The secret number of {k} is", f" {v}") for k, v in found]
    parts: Parts = [(first.prompt, first.answer)]
    more = [(f"\n{read}", written) for read, written in mixed(rng, further) if not first.prompt.endswith(read)]
    return [parts + more[:n] for n in range(len(more) + 1)]


def running(rng: np.random.Generator, people: int, things: int, hops: int, often: float) -> Parts:
    """A story, a question after an event as `often`, all questions at its end; what is given is for the reader to say
    too, for its giver is named before it and has but one thing.
    """
    parts, said = [], ""
    for sentence in re.findall(r"[^.]+\.", stories.story(rng, "who", hops, people, things).text):
        gives = GIVES.fullmatch(sentence)
        if gives and rng.random() < often:
            parts += [(f"\n{read}", written) for read, written in mixed(rng, about_story(said))[:1]]
        parts += [(gives[1], gives[2]), (gives[3], "")] if gives else [(sentence, "")]
        said += sentence
    return parts + [(f"\n{read}", written) for read, written in mixed(rng, about_story(said))]


def about_story(text: str) -> Parts:
    """All that can be asked."""
    parts = []
    for thing in THING.findall(text):
        who = f"Who has the {thing}?"
        holder = replay(f"{text} {who}")
        colour = f"What colour is the thing that {holder} has?"
        parts += [(f"{who} The {thing} is with", f" {holder}"), (f"{colour} It is", f" {replay(f'{text} {colour}')}")]
    return parts


def mixed(rng: np.random.Generator, of: Parts) -> Parts:
    return [of[i] for i in rng.permutation(len(of))]


def vocabulary() -> str:
    """A World-style vocabulary of the words of these texts, of pairs of digits, and of bytes."""
    words: Counter[str] = Counter()
    rng = generator(0)
    for kind in (*needle.KINDS, "multihop"):
        for _ in range(SAMPLES):
            words.update(WORDS.findall("".join(read + written for read, written in made(rng, kind, 10)[-1])))
    lists = (ADJECTIVES, NOUNS, stories.PEOPLE, stories.THINGS, stories.COLOURS)
    words.update([*NOUNS, *stories.PEOPLE, *(" " + word for of in lists for word in of)])
    pieces = sorted({*words, *NUMBERS} - {chr(n) for n in range(128)})
    tokens = [*(bytes((n,)) for n in range(256)), *(piece.encode() for piece in pieces)]
    return "".join(f"{id} {token!r} {len(token)}\n" for id, token in enumerate(tokens, 1))
