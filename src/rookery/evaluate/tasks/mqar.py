"""Multi-query associative recall: pairs of key and value are read, then every key is asked for once.

After Arora et al., "Zoology", arXiv 2312.04927. The same sequences train the networks of examples/tasks/mqar.py.
As ids: key value key value ..., then the keys in another order, each before an empty slot (id 0), where its value is
wanted. As text, for a model of language: one pair of words a line, then each key again, its value once it was asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError, TokenError
from rookery.evaluate.requests import Answer, Coder, Likelihood, Likely
from rookery.evaluate.settings import setting
from rookery.evaluate.statistics import grouped, mean, wilson
from rookery.evaluate.task import Item

Ids = npt.NDArray[np.int64]

FILES: tuple[str, ...] = ()
SOURCE = "made from the seed"
EMPTY = 0
WORD = re.compile(rb" [a-z]{2,}")


@dataclass(frozen=True)
class Settings:
    pairs: tuple[int, ...] = setting((4, 8, 16, 32), "pairs of key and value in one sequence")
    repeats: int = setting(25, "sequences for each number of pairs; every pair of each is asked for")
    vocab: int = setting(0, "ids to draw from, the empty slot among them; 0: the model's. As text: words to draw from")
    text: bool = setting(False, "words of the tokenizer, one pair a line, instead of ids")
    seed: int = setting(0, "of the pairs and of the order of asking")


class Mqar:
    """`acc`: the share of values that are the model's likeliest token; a pair is one answer.

    `chance` is a guess among all values there are; `guess` one among those of the sequence, which needs no binding of
    value to key.
    """

    name = "mqar"

    def __init__(self, settings: Settings, data: str | None = None) -> None:
        if min(settings.pairs) < 1 or settings.repeats < 1:
            raise InputError("mqar: pairs and repeats must be 1 or more")
        self.settings = settings

    def items(self, coder: Coder) -> Iterator[Item]:
        s = self.settings
        kinds = _words(coder, s.vocab) if s.text else kinds_of(s.vocab or coder.vocab_size, coder.end)
        if s.vocab > coder.vocab_size:
            raise InputError(f"mqar.vocab={s.vocab}: the model has {coder.vocab_size} ids")
        most = min(map(len, kinds))
        if max(s.pairs) > most:
            what = "words of two letters or more" if s.text else "ids"
            raise InputError(
                f"mqar.pairs={max(s.pairs)}: needs as many keys and as many values, and there are "
                f"{len(kinds[0])} and {len(kinds[1])} {what}; ask for at most {most} pairs"
            )
        between = (coder.encode("\n"), coder.encode("\n\n")) if s.text else None
        for repeat in range(s.repeats):
            for pairs in s.pairs:
                rng = np.random.Generator(np.random.PCG64([s.seed, repeat, pairs]))
                tokens, targets = (x[0] for x in draw(rng, pairs, 1, *kinds))
                asked = _lines(tokens, targets, *between) if between else _slots(tokens, targets)
                yield Item(tuple(asked), {"pairs": pairs, "repeat": repeat, "values": len(kinds[1])})

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        found = [a for a in answers if isinstance(a, Likely)]
        return {**item.about, "right": sum(a.greedy for a in found), "nats": -math.fsum(a.logprob for a in found)}

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        names = ("answers", "acc", "acc_stderr", "acc_low", "acc_high", "nats", "chance", "guess")
        found = {pairs: [row for row in rows if row["pairs"] == pairs] for pairs in self.settings.pairs}
        table = [[pairs, *_figures(some)] for pairs, some in found.items() if some]
        columns = {"title": "recall by pairs", "columns": ["pairs", *names], "rows": table}
        return {**dict(zip(names, _figures(rows), strict=True)), "tables": [columns]}


def kinds_of(vocab: int, end: int | None = None) -> tuple[Ids, Ids]:
    """The ids below `vocab` that may be keys, and those that may be values: neither the empty slot nor the end."""
    ids = np.array([id for id in range(1, vocab) if id != end], np.int64)
    return ids[: len(ids) // 2], ids[len(ids) // 2 :]


def draw(rng: np.random.Generator, pairs: int, batch: int, keys: Ids, values: Ids) -> tuple[Ids, Ids]:
    """tokens and targets [batch, 4 pairs]; a target is a value where one is asked for, else -1.

    No key and no value occurs twice in a row.
    """

    def some(of: Ids) -> Ids:
        return of[rng.random((batch, len(of))).argsort(1)[:, :pairs]]

    shown, bound = some(keys), some(values)
    order = rng.random((batch, pairs)).argsort(1)
    tokens = np.full((batch, 4 * pairs), EMPTY)
    targets = np.full_like(tokens, -1)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = shown, bound
    tokens[:, 2 * pairs :: 2] = np.take_along_axis(shown, order, 1)
    targets[:, 2 * pairs :: 2] = np.take_along_axis(bound, order, 1)
    return tokens, targets


def _slots(tokens: Ids, targets: Ids) -> Iterator[Likelihood]:
    for at in np.flatnonzero(targets >= 0):
        yield Likelihood(tuple(tokens[: at + 1].tolist()), (int(targets[at]),))


def _lines(tokens: Ids, targets: Ids, line: list[int], blank: list[int]) -> Iterator[Likelihood]:
    """The pairs as lines, a blank line, and the keys again, each with its value filled in once it was asked for."""
    shown = tokens[: len(tokens) // 2].reshape(-1, 2).tolist()
    text = [id for n, pair in enumerate(shown) for id in [*(line if n else []), *pair]]
    for n, at in enumerate(np.flatnonzero(targets >= 0)):
        text += [*(line if n else blank), int(tokens[at])]
        yield Likelihood(tuple(text), (int(targets[at]),))
        text.append(int(targets[at]))


def _words(coder: Coder, count: int) -> tuple[Ids, Ids]:
    """Single tokens that are a blank and a word: every other one a key, the rest values, `count` (0: all) in all."""
    found = [id for id in range(coder.vocab_size) if id != coder.end and _is_word(coder, id)]
    ids = np.array(found[: count or None], np.int64)
    return ids[::2][: len(ids) // 2], ids[1::2]


def _is_word(coder: Coder, id: int) -> bool:
    try:
        return WORD.fullmatch(coder.decode_bytes([id])) is not None
    except TokenError:  # a gap in the vocabulary
        return False


def _figures(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Answers, their share that is right, its error and 95 % interval, nats an answer, chance, guess. How well a
    model reads a sequence shows in all of its answers, so the error is over sequences.
    """
    n = sum(row["pairs"] for row in rows)
    right = [float(at < row["right"]) for row in rows for at in range(row["pairs"])]
    acc, error, draws = grouped(right, [of for of, row in enumerate(rows) for _ in range(row["pairs"])])
    nats, _ = mean([row["nats"] / row["pairs"] for row in rows for _ in range(row["pairs"])])
    chance, _ = mean([1 / row["values"] for row in rows for _ in range(row["pairs"])])
    return [n, acc, error, *wilson(acc * draws, draws), nats, chance, len(rows) / n if n else math.nan]


TASK = Mqar
