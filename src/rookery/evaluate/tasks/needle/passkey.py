"""A pass key, 1 to 50,000, in repeated sentences: LongMamba's test, the one behind RWKV's published heat maps.

Its structure, in our own sentences; the key is said once, where LongMamba says it twice.
"""

from __future__ import annotations

import numpy as np

from rookery.evaluate.tasks.needle.haystack import Puzzle, hay, laid

MOST = 50_000


def passkey(rng: np.random.Generator, share: float, wrong: int) -> Puzzle:
    """Wrong ones have as many digits (those below 10 have one or two), so that lengths do not give it away."""
    key = int(rng.integers(1, MOST + 1))
    digits = len(str(key))
    low, high = (1, 100) if key < 100 else (10 ** (digits - 1), min(10**digits, MOST + 1))
    others = [n for n in (low + rng.choice(high - low, wrong + 1, replace=False)).tolist() if n != key][:wrong]

    def prompt(pieces: int) -> str:
        text = laid(hay(pieces), [(share, f"The pass key is {key}.")])
        return f"A pass key stands in this text. Remember it.\n{text}\nWhat is the pass key? The pass key is"

    return Puzzle(prompt, (str(key),), tuple(map(str, others)))
