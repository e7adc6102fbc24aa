"""The n-gram model against its formula, written out, and against counts by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.errors import InputError, TokenError
from rookery.evaluate.ngram import Counter, NGram
from rookery.evaluate.requests import Continue, Likelihood, Likely, Passage, Read
from rookery.tokenizer import Bytes
from tolerances import NGRAM

VOCAB = 4
texts = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=12), min_size=1, max_size=5).filter(any)


def by_the_formula(counted: Sequence[Sequence[int]], history: Sequence[int], token: int) -> float:
    """Witten-Bell, each count made by looking through the texts."""

    def followers(h: Sequence[int]) -> list[int]:
        n = len(h)
        return [text[i + n] for text in counted for i in range(len(text) - n) if list(text[i : i + n]) == list(h)]

    lower = by_the_formula(counted, history[1:], token) if history else 1 / VOCAB
    seen = followers(history)
    kinds = len(set(seen))
    return (seen.count(token) + kinds * lower) / (len(seen) + kinds) if seen else lower


@settings(max_examples=60, deadline=None)
@given(texts, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), st.integers(1, 4))
def test_the_arrays_give_what_the_formula_gives(counted: list[list[int]], read: list[int], order: int) -> None:
    model = NGram.counted(counted, VOCAB, order)
    expected = [by_the_formula(counted, read[max(0, i - order + 1) : i], token) for i, token in enumerate(read)]
    assert np.exp(model.logprobs(read)) == pytest.approx(expected, rel=NGRAM)
    after = model.after(read[:-1])
    assert after[read[-1]] == pytest.approx(expected[-1], rel=NGRAM)
    assert after.sum() == pytest.approx(1, rel=NGRAM)


def test_by_hand() -> None:
    model = NGram.counted([[0, 1, 0, 1, 0, 2]], 4, 2)
    # 0 three times, 1 twice, 2 once of 6 tokens of 3 kinds; after 0: 1, 1, 2, so 3 of 2 kinds
    one = (2 + 3 / 4) / (6 + 3)
    never = (0 + 3 / 4) / (6 + 3)
    assert np.exp(model.logprobs([0, 1])) == pytest.approx([(3 + 3 / 4) / 9, (2 + 2 * one) / (3 + 2)], rel=NGRAM)
    assert np.exp(model.logprobs([0, 3], 1)) == pytest.approx([2 * never / 5], rel=NGRAM)
    assert np.exp(model.logprobs([2, 3], 1)) == pytest.approx([never], rel=NGRAM), "nothing ever followed a 2"


def test_texts_do_not_run_into_each_other() -> None:
    together, apart = NGram.counted([[0, 1, 2, 3]], 4, 2), NGram.counted([[0, 1], [2, 3]], 4, 2)
    assert together.after([1])[2] > apart.after([1])[2] == apart.after([])[2]


def test_order_none_is_uniform() -> None:
    assert NGram.counted([[1, 2]], 8, 0).logprobs([1, 7, 0]) == pytest.approx([-math.log(8)] * 3, rel=NGRAM)


def test_a_counter_answers_as_a_network_does() -> None:
    counter = Counter(NGram.counted([list(b"abcabcabd")], 256, 3), Bytes(), (0,))
    likely, unlikely, read = counter.answer([Likelihood("ab", "ca"), Likelihood("ab", "d"), Passage("abc")])
    assert isinstance(likely, Likely)
    assert isinstance(unlikely, Likely)
    assert isinstance(read, Read)
    assert (likely.greedy, unlikely.greedy, likely.tokens) == (True, False, 2)
    alone = counter.model.logprobs([0, *b"abca"])
    assert likely.logprob == pytest.approx(alone[3:].sum(), rel=NGRAM)
    assert read.logprobs == pytest.approx(alone[1:4], rel=NGRAM)
    bare = Counter(counter.model, Bytes()).answer([Passage("ab")])[0]
    assert isinstance(bare, Read)
    assert np.isnan(bare.logprobs).tolist() == [True, False]


def test_what_cannot_be() -> None:
    with pytest.raises(TokenError, match="token 4 is outside the vocabulary of 4"):
        NGram.counted([[0, 4]], 4)
    with pytest.raises(InputError, match="no tokens"):
        NGram.counted([[]], 4)
    with pytest.raises(InputError, match="order -1"):
        NGram.counted([[1]], 4, -1)
    with pytest.raises(InputError, match="writes none"):
        Counter(NGram.counted([[1]], 256), Bytes()).answer([Continue("a", 1)])
