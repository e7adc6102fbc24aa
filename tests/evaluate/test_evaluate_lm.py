"""The class for lm-eval gives the model's own figures; how it cuts texts into tokens, and how lm-eval would."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import InputError, MissingExtra
from rookery.evaluate import Local
from rookery.evaluate.requests import Likelihood, pair
from rookery.tokenizer import World
from tolerances import LOGPROB_SUM

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXT = "Once upon a time there was a fox who lived in the wood, and the fox had a brother"


@dataclass
class Instance:
    """What lm-eval hands over."""

    args: tuple[Any, ...]


def asked(*args: tuple[Any, ...]) -> list[Any]:
    return [Instance(each) for each in args]


@pytest.fixture(scope="module")
def lm_class() -> Any:
    pytest.importorskip("lm_eval", reason="lm-eval is of the extra eval")
    from rookery.evaluate import LM

    return LM


@pytest.fixture(scope="module")
def gosling() -> Any:
    return rookery.load("gosling", threads=1)


@pytest.fixture(scope="module")
def lm(lm_class: Any, gosling: Any) -> Any:
    return lm_class(gosling)


def logprobs(model: Any, ids: list[int]) -> Any:
    """[len(ids) - 1]: of each token after those before it, in float64; and which were the likeliest."""
    logits = model.forward(ids, every=True)[0][:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    rows = np.arange(len(ids) - 1)
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[rows, ids[1:]], logits.argmax(1) == ids[1:]


COMMAND = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}  # what lm-eval's command adds by itself
PAIRS = [(TEXT[:n], TEXT[n : n + k]) for n, k in product((0, 11, 16, 50), (1, 9, 20))] + [
    ("The fox ", " said"),
    ("Once upon a", " time"),
]


@pytest.mark.parametrize("prefix", [None, [5, 7]])
def test_likelihoods_are_the_models(lm_class: Any, gosling: Any, prefix: Any) -> None:
    found = lm_class(gosling, prefix=prefix, batch_size=5).loglikelihood(asked(*PAIRS), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        kept = context.rstrip()
        before = [*(prefix or [0]), *gosling.tokenizer.encode(kept)]
        scored = gosling.tokenizer.encode(context[len(kept) :] + continuation)
        own, likeliest = logprobs(gosling, before + scored)
        assert value == pytest.approx(own[len(before) - 1 :].sum(), abs=LOGPROB_SUM)
        assert greedy == likeliest[len(before) - 1 :].all()
    assert 0 < sum(greedy for _, greedy in found) < len(found)


def test_a_rolling_likelihood_is_one_pass(lm: Any, gosling: Any) -> None:
    text = TEXT * 30
    own = logprobs(gosling, [0, *gosling.tokenizer.encode(text)])[0]
    short, whole, nothing = lm.loglikelihood_rolling(asked((TEXT,), (text,), ("",)), disable_tqdm=True)
    assert whole == pytest.approx(own.sum(), abs=LOGPROB_SUM * 30)
    assert short == pytest.approx(logprobs(gosling, [0, *gosling.tokenizer.encode(TEXT)])[0].sum(), abs=LOGPROB_SUM)
    assert nothing == 0.0


def test_without_an_end_of_text_the_first_token_is_not_counted(lm_class: Any) -> None:
    model = rookery.load(FIXTURES / "v6.safetensors", tokenizer="bytes", threads=1)
    [value] = lm_class(model).loglikelihood_rolling(asked((TEXT,)), disable_tqdm=True)
    assert value == pytest.approx(logprobs(model, list(TEXT.encode()))[0].sum(), abs=LOGPROB_SUM)


def test_the_order_is_lm_evals_and_the_batch_changes_nothing(lm_class: Any, gosling: Any) -> None:
    one, many = (lm_class(gosling, batch_size=n).loglikelihood(asked(*PAIRS), True) for n in (2, 64))
    assert one == many
    backwards = lm_class(gosling, batch_size="auto").loglikelihood(asked(*PAIRS[::-1]), True)
    assert backwards == one[::-1]


def test_texts_to_be_written(lm: Any, gosling: Any) -> None:
    greedy = {"until": ["\n\n", "", "King"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}
    drawn = {"until": "\n\n", "max_gen_toks": 9, "temperature": 1.1, "top_k": 40}
    requests = asked((TEXT, drawn), (TEXT, greedy), ("A wolf", drawn), ("The fox", {"until": []}))
    np.random.seed(3)
    first, whole, second, long = lm.generate_until(requests, disable_tqdm=True)
    prompt = [0, *gosling.tokenizer.encode(TEXT)]
    assert whole == gosling.generate(prompt, 20, temperature=0, stop=["\n\n", "King"])
    assert long == gosling.generate([0, *gosling.tokenizer.encode("The fox")], 256, temperature=0)
    np.random.seed(3)
    for context, text in ((TEXT, first), ("A wolf", second)):
        seed, ids = int(np.random.randint(1 << 31)), [0, *gosling.tokenizer.encode(context)]
        assert text == gosling.generate(ids, 9, temperature=1.1, top_k=40, top_p=1.0, seed=seed, stop=["\n\n"])
    with pytest.raises(InputError, match="num_beams: not a setting of drawing"):
        lm.generate_until(asked((TEXT, {"do_sample": True, "temperature": 1.0, "num_beams": 4})), disable_tqdm=True)


def test_talks(lm_class: Any, gosling: Any) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    own = lm_class(gosling)
    template = rookery.chat.load(None, gosling.weights.metadata)
    assert own.apply_chat_template(talk[:1]) == template.render(talk[:1])
    assert own.apply_chat_template(talk, add_generation_prompt=False) == template.render(talk, reply=False)
    assert own.chat_template() is None
    assert own.chat_template(True) in own.tokenizer_name
    assert own.chat_template("raven") == "raven"
    assert own.apply_chat_template(talk[:1]).startswith("Bob: Hi")
    assert lm_class(gosling, template="raven").tokenizer_name == own.tokenizer_name


def test_the_cache_hears_of_each_answer(lm_class: Any, gosling: Any) -> None:
    class Hook:
        heard: dict[Any, Any] = {}  # noqa: RUF012

        def add_partial(self, *said: Any) -> None:
            self.heard[said[:2]] = said[2]

    made = lm_class(gosling, batch_size=2)
    made.set_cache_hook(Hook())
    found = made.loglikelihood(asked(*PAIRS[:5]), True)
    assert Hook.heard == {("loglikelihood", args): answer for args, answer in zip(PAIRS[:5], found, strict=True)}


def test_lm_eval_makes_it_by_name(lm_class: Any, gosling: Any) -> None:
    from lm_eval.api.registry import get_model

    made = get_model("rookery").create_from_arg_string("pretrained=gosling,threads=1,prefix=7", COMMAND)
    assert isinstance(made, lm_class)
    assert made.scorer.prefix == (7,)
    assert lm_class(gosling, prefix="none").scorer.prefix == ()
    info = made.get_model_info()
    assert info["model_sha"] == gosling.weights.fingerprint
    assert info["rookery"]["prefix"] == [7]
    for wrong in ({}, {"pretrained": "gosling", "prefix": "zero"}):
        with pytest.raises(InputError):
            lm_class(**wrong)


def test_without_lm_eval_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "rookery.evaluate.lm", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'rookery\[eval\]'"):
        rookery.evaluate.LM  # noqa: B018


ACROSS = {  # of each vocabulary: pairs that one token lies across, and pairs that none does
    "gosling": ([("princ", "ess"), ("a tal", "e")], [("Question: why?\nAnswer:", " because"), ("the fox", " ran")]),
    "world": ([("x =", "= 3"), ("the wood", "s")], [("Question: why?\nAnswer:", " because"), ("the fox", " ran")]),
}


@pytest.mark.parametrize("name", ACROSS)
def test_tokens_across_the_cut(name: str, gosling: Any) -> None:
    """lm-eval's own classes cut the ids of the whole text behind as many as the context alone has. Where a token lies
    across, what they score is not the continuation; here it always is.
    """
    tokenizer = gosling.tokenizer if name == "gosling" else World()
    across, apart = ACROSS[name]
    for context, continuation in across:
        kept = tokenizer.encode(context)
        cut = tokenizer.encode(context + continuation)[len(kept) :]
        assert tokenizer.decode(cut) != continuation
    for context, continuation in apart:
        kept = tokenizer.encode(context)
        assert tokenizer.encode(context + continuation) == kept + tokenizer.encode(continuation)
    if name == "gosling":
        scorer = Local(gosling)
        for context, continuation in (*across, *apart):
            before, scored = pair(scorer, Likelihood(context, continuation))
            assert tokenizer.decode(scored) == continuation
            assert tokenizer.decode(before[1:]) == context
