"""Sensitivity to the form of a prompt: the same questions in many forms that mean the same.

After FormatSpread (Sclar et al., arXiv 2310.11324): forms are drawn from a grammar, and the spread is that between the
best and the worst of them. It is never 0, even where the form does not matter: the best of several equal scores lies
above the worst. So beside it stands what chance gives, from tables in which every question's answers are dealt to the
forms anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.errors import InputError
from rookery.evaluate import data, statistics
from rookery.evaluate.requests import Answer, Coder, Likelihood
from rookery.evaluate.settings import setting
from rookery.evaluate.task import Item
from rookery.evaluate.tasks import choices, hellaswag, mmlu, piqa, stories

Table: TypeAlias = npt.NDArray[np.float64]

DRAWS = 2000  # of the bootstrap, and of the tables by chance
FORMS, QUESTIONS, RESAMPLED, CHANCE = range(4)  # streams of a seed
FILES = piqa.FILES + hellaswag.FILES + mmlu.FILES
SOURCE = "for of=piqa, hellaswag or mmlu, see there; of=multihop needs none"


@dataclass(frozen=True)
class Settings:
    of: str = setting("multihop", "what is asked: multihop, piqa, hellaswag or mmlu")
    formats: int = setting(12, "forms of the prompt, drawn from the grammar")
    questions: int = setting(100, "questions, drawn from the set, the same in every form")
    seed: int = setting(0, "draws forms and questions")


class Question(NamedTuple):
    parts: tuple[str, ...]  # what is read, in order, such as a story and what is asked about it
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Source:
    """A set of questions. `line` says what to do; each question has so many `parts`."""

    read: Callable[[Settings, data.Path | None], Iterator[Question]]
    line: str
    parts: int = 1
    listed: bool = False  # the choices stand in the question, and their letters are scored
    files: tuple[str, ...] = ()  # none where it needs none
    where: str = ""  # to get them


class Form(NamedTuple):
    """One way to write a question, a choice from every line of GRAMMAR."""

    roles: tuple[str, str]
    case: str
    colon: str  # between a role and its words
    gap: str  # between fields
    inner: str  # between the parts of a question
    letter: str  # before a listed choice
    told: bool  # begins with the line that says what to do
    think: bool  # an empty thought opens the answer

    def write(self, question: Question, source: Source) -> tuple[Likelihood, ...]:
        """One request a choice."""
        asks, answers = (CASES[self.case](role) for role in self.roles)
        parts, scored = question.parts, question.choices
        if source.listed:
            scored = tuple("ABCDEFGHIJ"[: len(scored)])
            listed = [self.letter.format(*pair) for pair in zip(scored, question.choices, strict=True)]
            parts = (*parts, "\n".join(listed))
        fields = [source.line] * self.told + [asks + self.colon + self.inner.join(parts), answers + self.colon]
        context = self.gap.join(fields) + THOUGHT * self.think
        return tuple(Likelihood(context, choice) for choice in scored)


THOUGHT = "<think>\n</think>\n"  # as RWKV-7 G1 was trained on
CASES: dict[str, Callable[[str], str]] = {"as it is": str, "upper": str.upper, "lower": str.lower}
GRAMMAR: tuple[tuple[Any, ...], ...] = (
    (("User", "Assistant"), ("Question", "Answer"), ("Q", "A"), ("Bob", "Alice"), ("Task", "Solution")),
    tuple(CASES),
    (": ", ":", ":\n", " - ", " :: ", "\n"),
    ("\n", "\n\n", "\n\n\n", " ", " || "),
    (" ", "\n", "\n\n"),
    ("{}. {}", "({}) {}", "{}: {}"),
    (False, True),
    (False, True),
)


def forms(wanted: int, seed: int, source: Source) -> list[Form]:
    """So many forms, no two of which write this source's questions alike. Raises InputError."""
    if wanted < 2:
        raise InputError(f"formats={wanted}: a spread needs 2, and 10 or more to say something")
    specimen = Question(("One.", "Two?")[: source.parts], ("yes", "no"), 0)
    every = list(product(*GRAMMAR))
    found: dict[tuple[Likelihood, ...], Form] = {}
    for place in _draws(seed, FORMS).permutation(len(every)):
        form = Form(*every[place])
        found.setdefault(form.write(specimen, source), form)
        if len(found) == wanted:
            return list(found.values())
    raise InputError(f"formats={wanted}: the grammar has {len(found)} for these questions")


def spread(right: Table) -> float:
    """Of right [questions, forms]: the best form's share less the worst one's."""
    return float(np.ptp(right.mean(0)))


def resampled(right: Table, seed: int) -> Table:
    """The spreads of DRAWS draws of the questions with replacement; each keeps its answers in all forms."""
    n = len(right)
    times = _draws(seed, RESAMPLED).multinomial(n, np.full(n, 1 / n), DRAWS)
    spreads: Table = np.ptp(times @ right / n, axis=1)
    return spreads


def by_chance(right: Table, seed: int) -> Table:
    """The spreads of DRAWS tables in which forms do not matter: each question's answers are dealt to them anew."""
    rng = _draws(seed, CHANCE)
    return np.array([spread(rng.permuted(right, axis=1)) for _ in range(DRAWS)])


def _share(null: Table, seen: float) -> float:
    """How often chance gives as much as was seen; the table that was seen counts as one of chance's."""
    return float((1 + np.count_nonzero(null >= seen - 1e-12)) / (1 + len(null)))


class Format:
    """A row a question: whether the likeliest choice is the right one, in each form."""

    name = "format"

    def __init__(self, settings: Settings, path: data.Path | None) -> None:
        self.settings, self.source = settings, _source(settings)
        if settings.questions < 1:
            raise InputError(f"questions={settings.questions}: at least 1 is wanted")
        self.forms = forms(settings.formats, settings.seed, self.source)
        names, where = self.source.files, self.source.where
        self.path = data.needed(f"format of={settings.of}", path, names, where) if names else None

    def items(self, coder: Coder) -> Iterator[Item]:
        for question in islice(self.source.read(self.settings, self.path), self.settings.questions):
            asked = [request for form in self.forms for request in form.write(question, self.source)]
            yield Item(tuple(asked), {"gold": question.gold, "choices": len(question.choices)})

    def row(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        logprobs, gold = choices.likelihoods(answers).reshape(len(self.forms), -1), item.about["gold"]
        chosen = logprobs.argmax(1)
        margins = logprobs[:, gold] - np.delete(logprobs, gold, 1).max(1)
        return {"chosen": chosen.tolist(), "right": (chosen == gold).astype(int).tolist(), "margin": margins.tolist()}

    def summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`acc` over all forms, its error over questions. `spread_low` and `spread_high` hold 95 % of the resampled
        spreads; `spread_chance` is the mean by chance, and `p` how often chance gives as much as was seen. `margin`: of
        the right choice over the likeliest wrong one, in nats, which tells forms apart where a model is right by luck
        alone.
        """
        right, margins = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("right", "margin"))
        scores, seen = right.mean(0), spread(right)
        acc, error = statistics.mean(right.mean(1).tolist())
        margin, margin_error = statistics.mean(margins.mean(1).tolist())
        low, high = np.quantile(resampled(right, self.settings.seed), [0.025, 0.975])
        null = by_chance(right, self.settings.seed)
        order = np.argsort(-scores, kind="stable").tolist()
        return {
            "acc": acc,
            "acc_stderr": error,
            "acc_min": float(scores.min()),
            "acc_median": float(np.median(scores)),
            "acc_max": float(scores.max()),
            "spread": seen,
            "spread_low": float(low),
            "spread_high": float(high),
            "spread_chance": float(null.mean()),
            "p": _share(null, seen),
            "margin": margin,
            "margin_stderr": margin_error,
            "margin_spread": spread(margins),
            "margin_p": _share(by_chance(margins, self.settings.seed), spread(margins)),
            "chance": statistics.mean([1 / row["choices"] for row in rows])[0],
            "formats": len(self.forms),
            "best": self.shown(order[0]),
            "worst": self.shown(order[-1]),
            "tables": [self._table(right, margins, order)],
        }

    def shown(self, place: int) -> str:
        """A form, as it writes a text and an answer."""
        question = Question(("TEXT", "QUESTION")[-self.source.parts :], ("ANSWER", "OTHER"), 0)
        asked = self.forms[place].write(question, self.source)[0]
        return repr(f"{asked.context}{asked.continuation}")[1:-1]

    def _table(self, right: Table, margins: Table, order: Sequence[int]) -> dict[str, Any]:
        n, counts, means = len(right), right.sum(0).tolist(), margins.mean(0).tolist()
        rows = [[counts[at] / n, *statistics.wilson(counts[at], n), means[at], self.shown(at)] for at in order]
        return {"title": "by form", "columns": ["acc", "acc_low", "acc_high", "margin", "form"], "rows": rows}


def files(settings: Settings) -> tuple[str, ...]:
    """What the data of `settings.of` is called in a folder. Raises InputError for a set that is none."""
    return _source(settings).files


def _source(settings: Settings) -> Source:
    if settings.of not in SOURCES:
        raise InputError(f"of={settings.of!r}: choose from {', '.join(SOURCES)}")
    return SOURCES[settings.of]


def _draws(seed: int, *stream: int) -> np.random.Generator:
    if seed < 0:
        raise InputError(f"seed={seed}: 0 or more is wanted")
    return np.random.Generator(np.random.PCG64([seed, *stream]))


def _drawn(questions: Callable[[data.Path], Iterator[choices.Question]]) -> Callable[..., Iterator[Question]]:
    """A reader of a file's questions in an order by the seed, since files are often sorted."""

    def read(settings: Settings, path: data.Path | None) -> Iterator[Question]:
        assert path is not None
        every = list(questions(path))
        for place in _draws(settings.seed, QUESTIONS).permutation(len(every)):
            found = every[place]
            yield Question((found.text,), found.choices, found.gold)

    return read


def _stories(settings: Settings, path: data.Path | None) -> Iterator[Question]:
    """Of things handed on 0, 1 and 2 times, in turn."""
    for i in count():
        told = stories.story(_draws(settings.seed, QUESTIONS, i), stories.KINDS[i % 2], i // 2 % 3)
        yield Question((told.text, told.question), told.choices, told.choices.index(told.answer))


SOURCES = {
    "multihop": Source(_stories, "Answer the question about the story.", parts=2),
    "piqa": Source(_drawn(piqa.questions), "Say how to reach the goal.", files=piqa.FILES, where=piqa.SOURCE),
    "hellaswag": Source(
        _drawn(hellaswag.questions), "Go on with the text.", files=hellaswag.FILES, where=hellaswag.SOURCE
    ),
    "mmlu": Source(
        _drawn(mmlu.questions), "Choose the right answer.", listed=True, files=mmlu.FILES, where=mmlu.SOURCE
    ),
}
TASK = Format
