"""Recall of many pairs: what is asked, how it is scored, and that the figures tell recall from a guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import InputError, TokenizerError
from rookery.evaluate.local import Local
from rookery.evaluate.requests import Answer, Likelihood, Likely, Request
from rookery.evaluate.tasks.mqar import EMPTY, Mqar, Settings, draw, kinds_of

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


class Ids:
    """A coder of a network without words."""

    end: int | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        raise AssertionError("ids need no words")

    decode_bytes: Any = encode


def answered(task: Mqar, coder: Any, choose: Callable[[Likelihood], int]) -> dict[str, Any]:
    """The summary of a model whose likeliest token is choose(request)."""

    def answer(asked: Request) -> Answer:
        assert isinstance(asked, Likelihood)
        right = asked.continuation == (choose(asked),)
        return Likely(-0.1 if right else -5.0, right, 1)

    items = list(task.items(coder))
    return task.summary([task.row(item, [answer(asked) for asked in item.requests]) for item in items])


def bound(asked: Likelihood) -> int:
    """What follows the last id of the context where it stood first."""
    key = asked.context[-1]
    return int(asked.context[asked.context.index(key) + 1])  # type: ignore[arg-type]


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_every_key_is_asked_for_once_and_answered_by_its_value() -> None:
    keys, values = kinds_of(64)
    assert not set(keys) & set(values)
    assert EMPTY not in {*keys, *values}
    assert len(keys) == 31
    assert len(values) == 32
    tokens, targets = draw(rng(), 5, 3, keys, values)
    assert tokens.shape == targets.shape == (3, 20)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 5
        assert set(pairs) <= set(keys)
        assert set(pairs.values()) <= set(values)
        asked = row[10::2]
        assert sorted(asked) == sorted(pairs)
        assert set(row[11::2]) == {EMPTY}
        assert wanted[10::2] == [pairs[key] for key in asked]
        assert set(wanted[:10] + wanted[11::2]) == {-1}


def test_the_end_of_text_is_no_key_and_no_value() -> None:
    keys, values = kinds_of(10, end=4)
    assert sorted([*keys, *values]) == [1, 2, 3, 5, 6, 7, 8, 9]


def test_recall_scores_one_a_guess_among_those_shown_one_in_pairs() -> None:
    task = Mqar(Settings(pairs=(4, 16), repeats=60, vocab=64))
    perfect = answered(task, Ids(64), bound)
    assert perfect["acc"] == 1
    assert perfect["acc_high"] == 1
    assert perfect["answers"] == 60 * 20
    assert perfect["nats"] == pytest.approx(0.1)
    assert perfect["chance"] == 1 / 32
    source = rng(2)
    guess = answered(task, Ids(64), lambda a: int(source.choice(a.context[1 : 2 * _pairs(a) : 2])))  # type: ignore[arg-type]
    (table,) = guess["tables"]
    for row in table["rows"]:
        shown = dict(zip(table["columns"], row, strict=True))
        assert shown["guess"] == 1 / shown["pairs"]
        assert shown["acc_low"] <= shown["guess"] <= shown["acc_high"]
    single = answered(task, Ids(64), lambda a: bound(a) if sum(a.context) % 2 else 0)  # type: ignore[arg-type]
    whole = answered(task, Ids(64), lambda a: bound(a) if sum(a.context[: 2 * _pairs(a)]) % 2 else 0)  # type: ignore[arg-type]
    assert whole["acc_stderr"] > 2.5 * single["acc_stderr"]  # sequences all right or all wrong: each as if asked once
    last = answered(task, Ids(64), lambda a: int(a.context[2 * _pairs(a) - 1]))  # type: ignore[arg-type]
    assert [row[2] for row in last["tables"][0]["rows"]] == [1 / 4, 1 / 16]


def _pairs(asked: Likelihood) -> int:
    """The first key that stands a second time is the first question."""
    seen: Sequence[Any] = asked.context
    return next(at for at, id in enumerate(seen) if id in seen[:at]) // 2


def test_items_depend_on_the_seed_and_not_on_how_many_there_are() -> None:
    def items(**settings: Any) -> list[Any]:
        return [item.requests for item in Mqar(Settings(vocab=64, **settings)).items(Ids(64))]

    few, many = items(repeats=2, pairs=(4, 8)), items(repeats=3, pairs=(4, 8))
    assert few == many[:4]
    assert few[0] != few[2]
    assert few != items(repeats=2, pairs=(4, 8), seed=1)
    assert few[1::2] == items(repeats=2, pairs=(8,))


def test_words_are_asked_for_line_by_line() -> None:
    coder = rookery.load("gosling").tokenizer
    task = Mqar(Settings(pairs=(3,), repeats=2, text=True))
    for item in task.items(coder):
        for n, asked in enumerate(item.requests):
            assert isinstance(asked, Likelihood)
            said = coder.decode([*asked.context, *asked.continuation])  # type: ignore[list-item]
            shown, questions = (part.split("\n") for part in said.split("\n\n"))
            pairs = dict(line.split() for line in shown)
            assert len(pairs) == 3
            assert len(questions) == n + 1
            assert all(pairs[key] == value for key, value in map(str.split, questions))
            assert coder.encode(said) == [*asked.context, *asked.continuation]  # as the model would read it
    assert answered(task, coder, bound)["acc"] == 1


def test_a_network_without_words_is_asked_by_its_ids() -> None:
    model = Local(rookery.load(FIXTURES / "v7.safetensors"))
    assert model.prefix == ()
    task = Mqar(Settings(pairs=(4,), repeats=3, vocab=64))
    rows = [task.row(item, model.answer(item.requests)) for item in task.items(model.coder)]
    assert task.summary(rows)["nats"] > 1  # it was never trained
    with pytest.raises(TokenizerError, match="says nothing of its tokenizer"):
        next(Mqar(Settings(pairs=(4,), text=True)).items(model.coder))


def test_too_many_pairs_are_refused_before_anything_is_asked() -> None:
    with pytest.raises(InputError, match="at most 31 pairs"):
        next(Mqar(Settings(pairs=(4, 32), vocab=64)).items(Ids(64)))
    with pytest.raises(InputError, match="the model has 64 ids"):
        next(Mqar(Settings(pairs=(4,), vocab=65)).items(Ids(64)))
    with pytest.raises(InputError, match="1 or more"):
        Mqar(Settings(pairs=(0,)))
