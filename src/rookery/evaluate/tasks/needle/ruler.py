"""RULER's synthetic tasks that need no download, in our own sentences: needles in a haystack, tracing of names,
counting of words. (Hsieh et al., arXiv 2404.06654)

    single      one needle in repeated sentences                       niah_single 1, with uuids 3
    multikey    four needles, one is asked for                         niah_multikey 1
    needles     the hay is needles too                                 niah_multikey 2, with keys=uuids values=uuids 3
    multivalue  one key with four values, all asked for                niah_multivalue
    multiquery  four keys, all asked for                               niah_multiquery
    variables   one chain of four hops: all names of one value         vt
    words       the ten words that a list has most often               cwe

Hay is repeated sentences where RULER has essays, and `words` are not numbered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rookery.evaluate.tasks.needle.haystack import Puzzle, hay, laid, names
from rookery.evaluate.tasks.needle.words import NOUNS

MANY = 4  # keys, values, queries
HOPS = 4
COMMON, OFTEN = 10, 6  # words, and how often each stands in a short list
SAID = {"words": "word", "numbers": "number", "uuids": "code"}


def hidden(context: str, keys: Sequence[str], values: str, several: bool) -> str:
    """A prompt that asks for the values of `keys`."""
    thing, asked = SAID[values], listed(keys)
    if several:
        opening, question = f"Secret {thing}s stand", f"What are the secret {thing}s of {asked}?"
        answer = f"The secret {thing}s of {asked} are"
    else:
        opening, question = f"A secret {thing} stands", f"What is the secret {thing} of {asked}?"
        answer = f"The secret {thing} of {asked} is"
    return f"{opening} in this text. Remember {'them' if several else 'it'}.\n{context}\n{question} {answer}"


def listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:-1]) + " and " + keys[-1] if len(keys) > 1 else keys[0]


def needle(key: str, value: str, values: str) -> str:
    return f"The secret {SAID[values]} of {key} is {value}."


def among(
    rng: np.random.Generator, share: float, wrong: int, keys: str, values: str, others: int, asked: int = 1
) -> Puzzle:
    """`asked` needles of as many keys are asked for, `others` are not; with one asked, it lies at `share`."""
    keyed = names(keys, rng, asked + others)
    valued = names(values, rng, asked + others + wrong)
    shares = rng.random(asked + others).tolist()
    if asked == 1:
        shares[0] = share
    pairs = zip(keyed, valued, strict=False)
    needles = [(s, needle(k, v, values)) for s, (k, v) in zip(shares, pairs, strict=False)]

    def prompt(pieces: int) -> str:
        return hidden(laid(hay(pieces), needles), keyed[:asked], values, asked > 1)

    return Puzzle(prompt, tuple(valued[:asked]), tuple(valued[asked : asked + wrong]))


def all_needles(rng: np.random.Generator, share: float, wrong: int, keys: str, values: str) -> Puzzle:
    """Every fourth piece of hay becomes a needle; up to three sentences fill up what is too short for one more."""
    (key,), (value,) = names(keys, rng, 1), names(values, rng, 1)
    seed = int(rng.integers(1 << 62))

    def others(count: int) -> tuple[list[str], list[str]]:
        of_keys, of_values = (np.random.Generator(np.random.PCG64([seed, i])) for i in range(2))
        return names(keys, of_keys, count, (key,), unique=False), names(
            values, of_values, count, (value,), unique=False
        )

    def prompt(pieces: int) -> str:
        count, rest = divmod(pieces, 4)
        stack = [needle(k, v, values) for k, v in zip(*others(count), strict=True)]
        return hidden(laid(hay(rest) + stack, [(share, needle(key, value, values))]), [key], values, several=False)

    return Puzzle(prompt, (value,), tuple(others(wrong)[1]))


def multivalue(rng: np.random.Generator, wrong: int, keys: str, values: str) -> Puzzle:
    (key,), valued = names(keys, rng, 1), names(values, rng, MANY + wrong)
    shares = np.sort(rng.random(MANY)).tolist()
    needles = [(s, f"One secret {SAID[values]} of {key} is {v}.") for s, v in zip(shares, valued, strict=False)]

    def prompt(pieces: int) -> str:
        return hidden(laid(hay(pieces), needles), [key], values, several=True)

    return Puzzle(prompt, tuple(valued[:MANY]), tuple(valued[MANY:]))


def variables(rng: np.random.Generator, wrong: int) -> Puzzle:
    named = names("letters", rng, HOPS + 1 + wrong)
    value = int(rng.integers(10_000, 100_000))
    chain = [f"Let {name} be {of}." for name, of in zip(named[: HOPS + 1], [value, *named], strict=False)]
    needles = list(zip(np.sort(rng.random(HOPS + 1)).tolist(), chain, strict=True))

    def prompt(pieces: int) -> str:
        return (
            f"Names get values in this text. Remember them.\n{laid(hay(pieces), needles)}\n"
            f"Which {HOPS + 1} names have the value {value}? They are"
        )

    return Puzzle(prompt, tuple(named[: HOPS + 1]), tuple(named[HOPS + 1 :]))


def words(rng: np.random.Generator, wrong: int) -> Puzzle:
    """The piece of hay is one more word. Rarer words stand `rare` times, the common ones 6 times, or 10 times as often
    where the list is so long that rare words are to be repeated: RULER's 6 to 1, 30 to 3.
    """
    order = [NOUNS[i] for i in rng.permutation(len(NOUNS))]
    common, rarer = order[:COMMON], order[COMMON:]
    seed = int(rng.integers(1 << 62))

    def prompt(pieces: int) -> str:
        total = COMMON * OFTEN + pieces
        rare, often = 1, OFTEN
        while COMMON * often + rare * len(rarer) < total:
            rare, often = 3 * rare, 30 * rare
        every = common * often + (rarer * rare)[: total - COMMON * often]
        shuffled = [every[i] for i in np.random.Generator(np.random.PCG64(seed)).permutation(total)]
        return (
            f"Some words stand in this list more often than others.\n{', '.join(shuffled)}\n"
            f"Which {COMMON} words stand in it most often? They are"
        )

    return Puzzle(prompt, tuple(common), tuple(rarer[:wrong]))
