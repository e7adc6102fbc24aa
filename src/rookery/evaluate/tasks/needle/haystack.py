"""Hay: sentences that say nothing, as many as fill a prompt, and needles at their places among them.

A share is a place in the hay: 0 before all of it, 1 behind all of it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np

from rookery.errors import InputError
from rookery.evaluate.tasks.needle.words import ADJECTIVES, NOUNS

PROMPT, REQUEST = 100, 30  # bytes a token: a prompt while it is filled; what each request holds of it (measured)

HAY = ("The hay is dry.", "The barn is red.", "The pond is still.", "A cart goes by.", "The wind comes and goes.")


@dataclass(frozen=True)
class Example:
    """A prompt, the `answers` it asks for, all of them, and `wrong` ones, drawn as those were."""

    prompt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def answer(self) -> str:
        """What follows the prompt, its blank with it."""
        return " " + ", ".join(self.answers)


@dataclass(frozen=True)
class Puzzle:
    """An Example of any length: `prompt(n)` has n pieces of hay."""

    prompt: Callable[[int], str]
    answers: tuple[str, ...]
    wrong: tuple[str, ...]

    def example(self, hay: int) -> Example:
        return Example(self.prompt(hay), self.answers, self.wrong)


def hay(pieces: int) -> list[str]:
    return list(islice(cycle(HAY), pieces))


def laid(hay: Sequence[str], needles: Iterable[tuple[float, str]], between: str = " ") -> str:
    """The hay, and each of `needles` (share, text) at its place; those of one place in the order given."""
    parts: list[str] = []
    at = 0
    for share, needle in sorted(needles, key=lambda pair: pair[0]):
        place = round(share * len(hay))
        parts += (*hay[at:place], needle)
        at = place
    return between.join(chain(parts, hay[at:]))


def names(
    kind: str, rng: np.random.Generator, count: int, without: Collection[str] = (), unique: bool = True
) -> list[str]:
    """`count` names of a kind: "words" (silver-kettle), "numbers" (7 digits), "uuids" or "letters" (5 capitals); none
    of them in `without`.

    From the same generator, fewer are the beginning of more.
    """
    spare = len(without) + 8 + count // 16
    found: list[str] = []
    while len(found) < count:
        drawn = (name for name in MAKE[kind](rng, count + spare) if name not in without)
        found = list(dict.fromkeys(chain(found, drawn))) if unique else [*found, *drawn]
    return found[:count]


def _words(rng: np.random.Generator, count: int) -> list[str]:
    places = (rng.random(count) * (len(ADJECTIVES) * len(NOUNS))).astype(int)
    return [f"{ADJECTIVES[p // len(NOUNS)]}-{NOUNS[p % len(NOUNS)]}" for p in places.tolist()]


def _numbers(rng: np.random.Generator, count: int) -> list[str]:
    return list(map(str, (10**6 + rng.random(count) * 9 * 10**6).astype(int).tolist()))


def _uuids(rng: np.random.Generator, count: int) -> list[str]:
    drawn = rng.bytes(16 * count)
    return [str(uuid.UUID(bytes=drawn[i : i + 16], version=4)) for i in range(0, len(drawn), 16)]


def _letters(rng: np.random.Generator, count: int) -> list[str]:
    drawn = rng.integers(ord("A"), ord("Z") + 1, 5 * count, dtype=np.uint8).tobytes().decode()
    return [drawn[i : i + 5] for i in range(0, len(drawn), 5)]


MAKE: dict[str, Callable[[np.random.Generator, int], list[str]]] = {
    "words": _words,
    "numbers": _numbers,
    "uuids": _uuids,
    "letters": _letters,
}


def fill(encode: Callable[[str], list[int]], prompt: Callable[[int], str], wanted: int) -> list[int] | None:
    """The tokens of `prompt` with as much hay as `wanted` tokens have room for; None where it is too long without."""
    best = encode(prompt(0))
    if len(best) > wanted:
        return None
    bare, fits, over = len(best), 0, None
    tokens_apiece = 8.0
    while over is None or over - fits > 1:
        guess = max(fits + 1, int((wanted - bare) / tokens_apiece))
        pieces = guess if over is None else min(guess, over - 1)
        ids = encode(prompt(pieces))
        if len(ids) <= wanted:
            best, fits = ids, pieces
        else:
            over = pieces
        tokens_apiece = max(1.0, (len(ids) - bare) / pieces)
    return best


def free_bytes() -> int | None:
    """What a process may still have, where the system says so."""
    try:
        with open("/proc/meminfo") as file:
            return 1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def room(setting: str, tokens: int, bytes_a_token: int) -> None:
    """InputError where `tokens` of text are more than memory holds."""
    need, free = tokens * bytes_a_token, free_bytes()
    if need > (free or 1 << 40):
        have = "any machine has" if free is None else f"the {free / 1e9:.2f} GB that are free"
        raise InputError(
            f"{setting}: a text of {tokens:,} tokens needs {need / 1e9:,.2f} GB, more than {have}; give a shorter one"
        )
