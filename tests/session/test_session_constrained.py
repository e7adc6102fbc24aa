"""Replies held to a grammar inside a talk: with the blank that RWKV begins with, cut and gone on with, kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason="needs the extra chat")

from talks import SAMPLINGS, gosling, same, tiny

import rookery
from rookery import Session, errors
from rookery.chat.blank import AfterBlank
from rookery.chat.grammar import Grammar

HOT = rookery.Sampling(temperature=1.5, top_p=1)
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "goose"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(12))
def test_json_in_a_talk(seed: int) -> None:
    talk = Session(gosling(), sampling=HOT, seed=seed)
    _ = talk.say("Hello", max_tokens=20).text
    reply = talk.say("Which animal?", schema=SCHEMA, max_tokens=60)
    found = json.loads(reply.text)
    assert reply.stop_reason == "end"
    assert found["animal"] in ("fox", "goose")
    assert found["legs"] in range(10)
    assert set(found) == {"animal", "legs"}
    assert talk.turns[-1].reply == reply.text
    assert talk.say("Good night", max_tokens=10).text


def test_the_blank_before_a_reply_is_the_models_choice() -> None:
    talk = Session(gosling())
    _ = talk.say("Say yes.", regex="(Yes|No)[.]").text
    text = gosling().tokenizer.decode(talk.tokens)
    assert re.fullmatch(r"User: Say yes\.\n\nAssistant: (Yes|No)\.", text)  # greedy, and it has learnt to begin so
    plain = Session(gosling(), "plain")
    assert re.fullmatch("(Yes|No)[.]", plain.say("Say yes.", regex="(Yes|No)[.]").text)


@pytest.mark.parametrize("model", [tiny(), gosling()], ids=["bytes", "gosling"])
def test_with_or_without_a_blank_is_all_that_is_added(model: rookery.Model) -> None:
    tokenizer, vocab = model.tokenizer, model.config.n_vocab
    bare = Grammar.from_regex("ab?| c", tokenizer, vocab)
    with_blank = AfterBlank(bare.copy(), tokenizer)
    (blank,) = tokenizer.encode(" ")
    begins = {tokenizer.token_bytes(int(id)) for id in with_blank.allowed().nonzero()[0]}
    allowed = {b"a", b" ", b" c", b"ab", b" a", b" ab", b"  "}
    assert {b"a", b" "} <= begins <= allowed
    with_blank.accept(blank)  # the grammar's own blank goes before ours
    assert {tokenizer.token_bytes(int(id)) for id in with_blank.allowed().nonzero()[0]} <= {b"c"}
    again = with_blank.copy()
    again.accept(tokenizer.encode("a")[0])
    assert {tokenizer.token_bytes(int(id)) for id in again.allowed().nonzero()[0]} <= {b"b", b""}


def test_a_constrained_reply_that_was_cut_goes_on_within_its_grammar(tmp_path: Path) -> None:
    def talk(store: object = None) -> Session:
        return Session(gosling(), sampling=SAMPLINGS["seeded"], seed=4, store=store, name="talk")  # type: ignore[arg-type]

    whole, cut = talk(), talk(tmp_path / "talks.db")
    text = whole.say("Which?", schema=SCHEMA, max_tokens=60).text
    assert cut.say("Which?", schema=SCHEMA, max_tokens=4).stop_reason is None
    assert cut.turns[-1].stop_reason == "length"
    resumed = Session.resume(tmp_path / "talks.db", "talk", gosling(), sampling=SAMPLINGS["seeded"])
    assert resumed.proceed(60).text == text
    same(resumed, whole)
    assert json.loads(text)


def test_a_wrong_grammar_shows_before_anything_is_said() -> None:
    talk = Session(gosling())
    for limits in ({"schema": "{"}, {"regex": "("}, {"grammar": "start: nothing"}, {"schema": "{}", "regex": "a"}):
        with pytest.raises(errors.InputError):
            talk.say("x", **limits)  # type: ignore[arg-type]
    assert talk.turns == []
