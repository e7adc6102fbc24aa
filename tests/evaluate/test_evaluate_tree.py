"""A batch read as a tree gives what each sequence gives alone; both agree with the plain definition."""

from pathlib import Path

import numpy as np
import pytest

import rookery
from rookery.errors import InputError, ModelError, TokenError
from rookery.evaluate import Continue, Likelihood, Likely, Local, Passage, Read
from rookery.evaluate import tree as trees
from tolerances import EVALUATE_LOGPROB

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = ("v4", "v5.2", "v6", "v7")
HEAD = "The fox met the crow under a tree. "
ASKED = [
    Likelihood(HEAD + "The crow had", " cheese"),
    Likelihood(HEAD + "The crow had", " a piece of cheese"),
    Likelihood(HEAD, "It"),
    Passage(HEAD + "The crow"),
    Likelihood("", "The fox"),
    Continue(HEAD, 12),
    Continue(HEAD + "The crow had", 3),
    Passage(""),
    Likelihood((5, 6), (7,)),
    Passage(HEAD + "The crow"),
    Likelihood("x" * 700, "y" * 300),
]


@pytest.fixture(scope="module", params=VERSIONS)
def scorer(request):
    return Local(rookery.load(FIXTURES / f"{request.param}.safetensors", tokenizer="bytes"), prefix=[0])


def same(one, other):
    if isinstance(one, Read):
        return np.array_equal(one.ids, other.ids) and np.array_equal(one.logprobs, other.logprobs)
    return one == other


def truth(model, ids, first):
    """Log-probabilities of ids[first:], by one forward and the definition."""
    logits = model.forward(ids, every=True)[0].astype(np.float64)
    every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.array([every[at - 1, ids[at]] for at in range(first, len(ids))]), logits.argmax(-1)


def test_batch_is_single_to_the_bit(scorer):
    together = scorer.answer(ASKED)
    for request, answer in zip(ASKED, together, strict=True):
        assert same(scorer.answer([request])[0], answer), request
    assert all(map(same, scorer.answer(ASKED[::-1])[::-1], together))


@pytest.mark.parametrize(("budget", "rows"), [(1, 1), (4 * 256 * 7, 7), (128 << 20, 2 * trees.PIECE)])
def test_neither_the_memory_for_logits_nor_the_rows_at_once_change_a_figure(scorer, budget, rows, monkeypatch):
    expected = scorer.answer(ASKED)
    read, forward, asked = trees.read, scorer.model.forward_batch, []

    def watched(tokens, states, every=False):
        asked.append((len(tokens), sum(map(len, tokens)) if every else 0))
        return forward(tokens, states, every)

    monkeypatch.setattr(
        "rookery.evaluate.local.read", lambda model, rows, at_once: read(model, rows, 2, logits_bytes=budget)
    )
    monkeypatch.setattr(scorer.model, "forward_batch", watched)
    monkeypatch.setattr(scorer, "_at_once", 2)
    assert all(map(same, scorer.answer(ASKED), expected))
    sequences, most = map(max, zip(*asked, strict=True))
    assert sequences == 2
    assert most <= max(rows, 2)  # of logits at once; a row each at the least


def test_likelihoods_are_the_definition(scorer):
    for asked in (a for a in ASKED if isinstance(a, Likelihood)):
        texts = [list(t) if isinstance(t, tuple) else list(t.encode()) for t in (asked.context, asked.continuation)]
        if isinstance(asked.context, str) and asked.context.endswith(" "):  # a blank at the end goes over
            texts = [texts[0][:-1], [32, *texts[1]]]
        ids = [0, *texts[0], *texts[1]]
        logprobs, likeliest = truth(scorer.model, ids, 1 + len(texts[0]))
        answer = scorer.answer([asked])[0]
        assert answer.logprob == pytest.approx(logprobs.sum(), abs=EVALUATE_LOGPROB * len(logprobs))
        assert answer.tokens == len(texts[1])
        assert answer.greedy == all(likeliest[len(texts[0]) : -1] == texts[1])


def test_passages_and_texts_are_the_definition(scorer):
    data = HEAD.encode()
    read = scorer.answer([Passage(HEAD)])[0]
    np.testing.assert_allclose(read.logprobs, truth(scorer.model, [0, *data], 1)[0], atol=EVALUATE_LOGPROB)
    assert list(read.ids) == list(data)
    expected = scorer.model.generate([0, *data], 20, temperature=0)
    assert scorer.answer([Continue(HEAD, 20)])[0] == expected


def test_a_text_ends_before_a_stop_and_where_the_end_is_drawn():
    scorer = Local(rookery.load("gosling"))
    whole = scorer.answer([Continue("Once upon a time", 30)])[0]
    assert scorer.answer([Continue("Once upon a time", 30, ("xyz", "daughter"))]) == [whole.split("daughter")[0]]
    ids = scorer.coder.encode(whole)
    scorer.coder.end = ids[3]
    assert scorer.answer([Continue("Once upon a time", 30)])[0].encode() == scorer.coder.decode_bytes(ids[:3])


def test_a_greedy_continuation_is_called_greedy():
    scorer = Local(rookery.load("gosling"))
    text = scorer.answer([Continue("Once upon a time", 8)])[0]
    ids = tuple(scorer.coder.encode(text))
    other = (*ids[:-1], ids[-1] + 1)
    found = scorer.answer([Likelihood("Once upon a time", ids), Likelihood("Once upon a time", other)])
    assert [answer.greedy for answer in found] == [True, False]
    assert found[0].logprob > found[1].logprob


def test_a_greedy_continuation_is_greedy_from_its_first_token():
    scorer = Local(rookery.load("gosling"))
    best, other = scorer.coder.encode("Once upon a time"), scorer.coder.encode(" cat")[0]
    (after,) = scorer.answer([Continue((*best, other), 1)])
    ids = (other, *scorer.coder.encode(after))
    assert not scorer.answer([Likelihood(tuple(best), ids)])[0].greedy
    assert scorer.answer([Likelihood((*best, other), ids[1:])])[0].greedy


def test_of_equals_the_lowest_id_is_the_likeliest():
    tied = np.array([0.0, 1.0, 1.0], np.float32)
    assert [trees.logprob(tied, id)[1] for id in range(3)] == [False, True, False]


def test_what_might_have_begun_a_stop_text_is_written_at_the_end(scorer):
    whole = scorer.answer([Continue(HEAD, 12)])[0]
    assert scorer.answer([Continue(HEAD, 12, (whole[-1:] + "\0never",)), Continue(HEAD, 0)]) == [whole, ""]


def test_what_is_shared_is_read_once(scorer, monkeypatch):
    fed = []
    forward = scorer.model.forward_batch

    def counting(tokens, *args, **kwargs):
        fed.extend(map(len, tokens))
        return forward(tokens, *args, **kwargs)

    monkeypatch.setattr(scorer.model, "forward_batch", counting)
    scorer.answer([Likelihood("The crow had a", f" {c}") for c in "ABCD"])
    assert sum(fed) == 1 + len("The crow had a") + 1  # the prefix, the context and the blank; no letter is read


def test_without_a_prefix_the_first_token_of_a_passage_is_not_scored(scorer):
    bare = Local(scorer.model)
    assert bare.prefix == ()  # bytes have no end of text
    read = bare.answer([Passage("crow")])[0]
    assert np.isnan(read.logprobs[0])
    np.testing.assert_allclose(read.logprobs[1:], truth(scorer.model, list(b"crow"), 1)[0], atol=EVALUATE_LOGPROB)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (Likelihood("", "a"), InputError, "--prefix"),
        (Likelihood("a", ""), InputError, "empty continuation"),
        (Continue("", 4), InputError, "--prefix"),
        (Likelihood("a", (99999,)), TokenError, "99999"),
        (Passage((-1,)), TokenError, "-1"),
    ],
)
def test_what_cannot_be_asked(scorer, asked, error, said):
    with pytest.raises(error, match=said):
        Local(scorer.model).answer([asked])


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ModelError, match="not finite"):
        trees.logprob(np.array([0.0, np.nan, 1.0], np.float32), 0)
    value, likeliest = trees.logprob(np.array([1e4, -1e4], np.float32), 0)
    assert (value, likeliest) == (0.0, True)


def test_answers_are_of_the_three_kinds(scorer):
    kinds = {Likelihood: Likely, Passage: Read, Continue: str}
    assert [type(a) for a in scorer.answer(ASKED)] == [kinds[type(a)] for a in ASKED]
