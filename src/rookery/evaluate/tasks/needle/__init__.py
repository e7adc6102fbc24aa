"""Needles in a haystack: what stands somewhere in a long text is asked for at its end.

Kinds: `passkey` (LongMamba's) and RULER's that need no download (ruler.py). `acc` is RULER's score, the share of what
is asked for that stands in a greedy continuation. A model too weak for that still shows something: `mc_acc` is the
share of right answers that are likelier than each of `choices` - 1 wrong ones, drawn as the right one was (numbers of
the text that belong to other keys among them); chance is 1 / choices. `margin`: by how many nats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import islice, product
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rookery.errors import InputError
from rookery.evaluate.requests import Answer, Coder, Continue, Likelihood, Likely
from rookery.evaluate.settings import setting
from rookery.evaluate.statistics import grouped, mean, wilson
from rookery.evaluate.task import Item
from rookery.evaluate.tasks.needle import ruler
from rookery.evaluate.tasks.needle.haystack import PROMPT, REQUEST, Example, Puzzle, fill, room
from rookery.evaluate.tasks.needle.passkey import passkey

FILES: tuple[str, ...] = ()
SOURCE = "made here"
EFFECTIVE = 0.856  # RULER's bar: what Llama-2-7B scores at 4,096 tokens
MOST_CHOICES = 50
LOOKED_AT = 1000  # prompts, before the first is asked: what is too short is told at once
ROOM = 16  # tokens that a continuation may have besides its answers

# share of the hay before the needle, wrong answers, kind of keys, of values -> puzzle
Draw = Callable[[np.random.Generator, float, int, str, str], Puzzle]
KINDS: dict[str, Draw] = {
    "passkey": lambda rng, share, wrong, keys, values: passkey(rng, share, wrong),
    "single": partial(ruler.among, others=0),
    "multikey": partial(ruler.among, others=ruler.MANY - 1),
    "needles": ruler.all_needles,
    "multivalue": lambda rng, share, wrong, keys, values: ruler.multivalue(rng, wrong, keys, values),
    "multiquery": partial(ruler.among, others=0, asked=ruler.MANY),
    "variables": lambda rng, share, wrong, keys, values: ruler.variables(rng, wrong),
    "words": lambda rng, share, wrong, keys, values: ruler.words(rng, wrong),
}
PLACED = ("passkey", "single", "multikey", "needles")  # the one needle asked for lies at a depth; others anywhere


def puzzle(
    rng: np.random.Generator,
    kind: str,
    share: float | None = None,
    wrong: int = 9,
    keys: str = "words",
    values: str = "numbers",
) -> Puzzle:
    """One of KINDS, drawn. `share`: of the hay before a needle that can be placed, 0 to 1; None draws it."""
    return KINDS[kind](rng, rng.random() if share is None else share, wrong, keys, values)


def example(rng: np.random.Generator, kind: str, pieces: int, share: float | None = None, wrong: int = 9) -> Example:
    """With `pieces` pieces of hay (sentences of five tokens, needles, words): no tokenizer is needed, so that many are
    made quickly to train on.
    """
    return puzzle(rng, kind, share, wrong).example(pieces)


@dataclass(frozen=True)
class Settings:
    kinds: tuple[str, ...] = setting(tuple(KINDS), "what is hidden")
    lengths: tuple[int, ...] = setting((256, 512, 1024), "tokens of the prompt, filled as near below as can be")
    depths: tuple[int, ...] = setting((0, 25, 50, 75, 100), "percent of the text before the needle")
    repeats: int = setting(5, "texts of each kind, length and depth")
    choices: int = setting(10, "the right answer and the wrong ones that it is weighed against")
    keys: str = setting("words", "words or uuids")
    values: str = setting("numbers", "numbers (of 7 digits) or uuids; a pass key is 1 to 50,000")
    seed: int = setting(0, "draws the needles and where they lie")


class Cell(NamedTuple):
    """What is drawn, apart from chance. `depth` in percent; a kind whose needles are not placed only counts by it."""

    repeat: int
    depth: int
    kind: str
    length: int


class Needle:
    name: ClassVar[str] = "needle"

    def __init__(self, settings: Settings, path: str | None = None) -> None:
        self.settings = settings
        self._check()
        room("lengths", max(settings.lengths), PROMPT + REQUEST * settings.choices)

    def _check(self) -> None:
        s = self.settings
        for kind in s.kinds:
            if kind not in KINDS:
                near = get_close_matches(kind, KINDS, 1, 0.4)
                raise InputError(
                    f"kinds={kind}: {f'did you mean {near[0]}' if near else 'choose from ' + ', '.join(KINDS)}"
                )
        for name, value, low, high in (
            *(("lengths", n, 1, None) for n in s.lengths),
            *(("depths", n, 0, 100) for n in s.depths),
            ("repeats", s.repeats, 1, None),
            ("choices", s.choices, 2, MOST_CHOICES),
            ("seed", s.seed, 0, None),
        ):
            if value < low or (high is not None and value > high):
                raise InputError(
                    f"{name}={value}: {low} to {high} is wanted" if high else f"{name}={value}: at least {low}"
                )
        for name, kind, known in (("keys", s.keys, ("words", "uuids")), ("values", s.values, ("numbers", "uuids"))):
            if kind not in known:
                raise InputError(f"{name}={kind}: choose from {', '.join(known)}")

    def cells(self, lengths: Sequence[int]) -> Iterator[Cell]:
        """Repeats outermost, so that the first n items (--limit) hold something of everything."""
        s = self.settings
        return (Cell(*cell) for cell in product(range(s.repeats), s.depths, s.kinds, lengths))

    def puzzle(self, cell: Cell) -> Puzzle:
        """The same needles in every length, so that lengths are compared pair by pair."""
        s = self.settings
        rng = np.random.Generator(np.random.PCG64([s.seed, list(KINDS).index(cell.kind), cell.depth, cell.repeat]))
        return puzzle(rng, cell.kind, cell.depth / 100, s.choices - 1, s.keys, s.values)

    def items(self, coder: Coder) -> Iterator[Item]:
        self._least(coder)
        for cell in self.cells(self.settings.lengths):
            drawn = self.puzzle(cell)
            ids = fill(coder.encode, drawn.prompt, cell.length)
            if ids is None:
                raise too_short(cell.length, {cell.kind: len(coder.encode(drawn.prompt(0)))})
            prompt, answers = tuple(ids), list(drawn.answers)
            likely = [Likelihood(prompt, f" {name}") for name in (*answers, *drawn.wrong)]
            tokens = len(coder.encode(drawn.example(0).answer)) + ROOM
            about = {
                "kind": cell.kind,
                "length": cell.length,
                "tokens": len(prompt),
                "depth": cell.depth if cell.kind in PLACED else None,
                "repeat": cell.repeat,
                "answers": answers,
            }
            yield Item((*likely, Continue(prompt, tokens)), about)

    def _least(self, coder: Coder) -> None:
        """Raises InputError, before anything is asked, where a prompt without hay is longer than it may be."""
        shortest = min(self.settings.lengths)
        least: dict[str, int] = {}
        for cell in islice(self.cells([shortest]), LOOKED_AT):
            bare = len(coder.encode(self.puzzle(cell).prompt(0)))
            least[cell.kind] = max(bare, least.get(cell.kind, 0))
        short = {kind: n for kind, n in least.items() if n > shortest}
        if short:
            raise too_short(shortest, short)

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        *likely, wrote = answers
        logprobs = [a.logprob for a in likely if isinstance(a, Likely)]
        asked: list[str] = item.about["answers"]
        right, wrong = logprobs[: len(asked)], logprobs[len(asked) :]
        return {
            "wrote": wrote,
            "found": mean([float(stands(name, str(wrote))) for name in asked])[0],
            "picked": mean([picked(logprob, wrong) for logprob in right])[0],
            "margin": mean(right)[0] - max(wrong),
        }

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`acc` with `chance`, `mc_acc` with `mc_chance`, `margin` in nats; `effective_length`: the longest at which
        `acc` over all kinds is at least 0.856, 0 if none is.
        """
        figures = scores(rows)
        return {
            **dict(
                zip(("n", "acc", "acc_low", "acc_high", "mc_acc", "mc_low", "mc_high", "margin"), figures, strict=True)
            ),
            "acc_stderr": grouped([row["found"] for row in rows], drawn(rows))[1],
            "mc_acc_stderr": grouped([row["picked"] for row in rows], drawn(rows))[1],
            "margin_stderr": grouped([row["margin"] for row in rows], drawn(rows))[1],
            "chance": 0.0,
            "mc_chance": 1 / self.settings.choices,
            "effective_length": effective(rows),
            "tables": self.tables(rows),
        }

    def tables(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        chance = 1 / self.settings.choices
        kinds = by(rows, "kind")
        tables = [
            {
                "title": "what is hidden x tokens",
                "columns": ["kind", "length", *SCORES, "mc_chance"],
                "rows": [[k, n, *scores(r), chance] for k, of in kinds.items() for n, r in by(of, "length").items()],
            },
            {
                "title": f"effective length (acc of {EFFECTIVE} or more)",
                "columns": ["kind", "tokens"],
                "rows": [[kind, effective(of)] for kind, of in kinds.items()],
            },
        ]
        if "passkey" in kinds:
            cells = [(d, n, r) for d, of in by(kinds["passkey"], "depth").items() for n, r in by(of, "length").items()]
            tables.append(
                {
                    "title": "pass key: depth in percent x tokens",
                    "columns": ["depth", "length", *SCORES, "mc_chance"],
                    "rows": [[depth, length, *scores(r), chance] for depth, length, r in cells],
                }
            )
        return tables


SCORES = ["n", "acc", "low", "high", "mc_acc", "mc_low", "mc_high", "margin"]


def scores(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Under SCORES. A share of several answers varies less than right or wrong: its interval is on the wide side."""
    figures: list[float] = [len(rows)]
    for name in ("found", "picked"):
        share, _, draws = grouped([row[name] for row in rows], drawn(rows))
        figures += [share, *wilson(share * draws, draws)]
    return [*figures, mean([row["margin"] for row in rows])[0]]


def drawn(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What was hidden, which is the same in every length."""
    return [(row["kind"], *row["answers"]) for row in rows]


def picked(right: float, wrong: Sequence[float]) -> float:
    """1 where `right` is likelier than each of `wrong`; of equals each is the choice as often as the others."""
    return 0.0 if right < max(wrong) else 1 / (1 + wrong.count(right))


def by(rows: Sequence[dict[str, Any]], field: str) -> dict[Any, list[dict[str, Any]]]:
    """Rows by their value of `field`; numbers ascend, names stand as they come."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[field], []).append(row)
    return found if field == "kind" else dict(sorted(found.items()))


def effective(rows: Sequence[dict[str, Any]]) -> int:
    """The longest length at which the mean score is at least EFFECTIVE; 0 if none."""
    return max((n for n, of in by(rows, "length").items() if mean([r["found"] for r in of])[0] >= EFFECTIVE), default=0)


def too_short(length: int, least: dict[str, int]) -> InputError:
    needs = ", ".join(f"{kind} {n}" for kind, n in least.items())
    return InputError(
        f"lengths={length}: too short for what is hidden (tokens: {needs}); "
        f"give lengths of {max(least.values())} or more, or other kinds"
    )


def stands(name: str, text: str) -> bool:
    """Whether `name` stands in `text` as a whole: 7 is not found in 74. RULER takes any place, for names that cannot
    be parts of others.
    """
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


TASK = Needle
