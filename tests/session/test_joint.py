"""Where a reply ends and the next words begin: the tokens are those of the whole text, and stop texts span tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted
from talks import gosling

import rookery
from rookery import Session, tokenizer
from rookery.chat.roles import THINK
from rookery.stream import Stream

GREEDY = rookery.Sampling(temperature=0)


@lru_cache
def vocabulary(name: str) -> Any:
    return gosling().tokenizer if name == "gosling" else tokenizer.load(name)


def alone(name: str, parts: tuple[str, ...]) -> list[int]:
    """Tokens of parts that are encoded each by itself, as a model may draw them."""
    return [token for part in parts for token in vocabulary(name).encode(part)]


STOPPED = [  # what is drawn, stop texts, what is shown
    ((" Yes.", "\n", "\n", "U", "ser", ":"), ["\n\nUser:"], " Yes."),
    ((" Yes", ".\n\n"), ["\n\n"], " Yes."),
    ((" a\n", "\nUse", "less", "\n\nUser:"), ["\n\nUser:"], " a\n\nUseless"),
    (("\n\nUser:",), ["\n\nUser:"], ""),
    ((" x", "ab", "c"), ["abd", "bc"], " xa"),
    ((" é", "\n", "\n\n", "User:"), ["\n\nUser:"], " é\n"),
]


@pytest.mark.parametrize("name", ["world", "gosling", "bytes"])
@pytest.mark.parametrize(("parts", "stop", "shown"), STOPPED)
def test_a_stop_text_is_found_across_tokens(name: str, parts: tuple[str, ...], stop: list[str], shown: str) -> None:
    model: Any = Scripted(vocabulary(name), [alone(name, (*parts, " and more"))])
    prompt = model.tokenizer.encode("Assistant:")
    stream = Stream(model, prompt, 50, model.sampler(GREEDY), stop=stop)
    seen = ""
    for piece in stream:
        seen += piece
        assert shown.startswith(seen)  # nothing that is taken back
    assert seen == shown
    assert stream.stop_reason == "stop"
    kept = stream.tokens[: stream.kept]
    assert model.tokenizer.decode_bytes(kept) + stream.tail == shown.encode()
    found = stream.at_kept()
    assert found is not None
    assert list(model.history(found[1])) == [*prompt, *kept]
    assert len(stream._points) <= len(stop[0])


def test_what_may_be_a_stop_text_and_is_none_is_shown() -> None:
    model: Any = Scripted(vocabulary("world"), [alone("world", (" a", "\n\n", "User", " error"))])
    stream = Stream(model, model.tokenizer.encode("Assistant:"), 50, model.sampler(GREEDY), stop=["\n\nUser:"])
    assert "".join(stream) == " a\n\nUser error"
    assert stream.stop_reason == "end"


def test_a_stop_text_behind_a_gap_between_two_calls() -> None:
    model: Any = Scripted(vocabulary("bytes"), [list(b" yes\n\nUser: no")])
    talk = Session(model, "world")
    assert talk.say("x", max_tokens=6).text == "yes\n\n"
    whole = talk.proceed(20)
    assert whole.text == "yes"
    assert whole.stop_reason == "stop"


LINES = st.text(st.sampled_from("ab.!?\n 。é,🙂User:"), min_size=1, max_size=12)


@pytest.mark.parametrize("name", ["world", "gosling", "bytes"])
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(LINES.filter(str.strip), LINES.filter(lambda t: "\n\nUser:" not in t)), min_size=1, max_size=4)
)
def test_what_is_said_turn_by_turn_is_encoded_as_the_whole(name: str, turns: list[tuple[str, str]]) -> None:
    """For replies that are written as the tokenizer writes them, and with joints before replies alone."""
    tokens = vocabulary(name)
    replies = [tokens.encode(" " + reply) for _, reply in turns]
    model: Any = Scripted(tokens, replies, tokens.encode("\n\nUser:"))
    talk = Session(model, "world")
    for asked, _ in turns:
        _ = talk.say(asked, max_tokens=60).text
    text = tokens.decode_bytes(talk.tokens)
    parts = text.split(b"Assistant:")
    if len(parts) != len(turns) + 1:
        return  # a user wrote "Assistant:" himself
    whole = [token for part in parts[:-1] for token in tokens.encode(part + b"Assistant:")]
    assert talk.tokens == whole + tokens.encode(parts[-1])
    said = (text + talk._tree.nodes[str(talk.at)].tail).decode()
    rendered = talk.template.render(talk._messages(talk.at), reply=False)
    assert "".join(said.split()) == "".join(rendered.split())


def test_a_token_across_the_joint_is_written_as_one() -> None:
    """World has a token "。\n" hidden in no other: a reply that ends with 。 and the blank line after it."""
    world = vocabulary("world")
    model: Any = Scripted(world, [world.encode(" 好") + world.encode("。")] * 2)  # and then the end of text
    talk = Session(model, "world")
    _ = talk.say("x").text
    assert talk.turns[0].stop_reason == "end"
    _ = talk.say("y").text
    text = world.decode_bytes(talk.tokens)
    assert "。\n\nUser: y" in text.decode()
    assert talk.tokens == world.encode(text)
    assert world.encode("。\n")[0] in talk.tokens
    assert len(world.encode("。\n")) == 1


def test_a_reply_that_no_tokenizer_would_write_stays_as_it_was_drawn() -> None:
    world = vocabulary("world")
    drawn = [world.encode(letter)[0] for letter in " Hello"]
    model: Any = Scripted(world, [drawn] * 2)
    talk = Session(model, "world")
    _ = talk.say("x").text
    _ = talk.say("y").text
    begin = len(world.encode("User: x\n\nAssistant:"))
    assert talk.tokens[begin : begin + len(drawn)] == drawn


@pytest.mark.parametrize("think", ["on", "short", "long"])
def test_old_thoughts_are_left_out_and_little_is_read_again(think: str) -> None:
    """The history is then another text than was read: only the last exchange is read anew, however long the talk."""
    world = vocabulary("world")
    thought = world.encode(" <think") + world.encode(">\nhm, hm</think>\nYes, number")
    model: Any = Scripted(world, [[*thought, *world.encode(f" {n}.")] for n in range(6)], world.encode("\n\nUser:"))
    talk = Session(model, "g1", think=think)
    for n in range(6):
        reply = talk.say(f"Question {n}, with some words in it?", max_tokens=50)
        assert reply.text == f"<think>\nhm, hm</think>\nYes, number {n}."
        assert len(talk.tokens) > reply.read_tokens < 50
    text = world.decode(talk.tokens)
    assert text.count("hm, hm") == 1
    answers = [f"User: Question {n}, with some words in it?\n\nAssistant: Yes, number {n}.\n\n" for n in range(5)]
    last = f"User: Question 5, with some words in it?{THINK[think][0]}\n\nAssistant: <think>\nhm, hm</think>\n"
    assert text == "".join(answers) + last + "Yes, number 5."
    assert sum(len(node.tokens) for node in talk._tree.nodes.values()) < 6 * 70
    resumed = talk.branch()
    resumed._tree._live.clear()
    assert model.history(resumed.state) == tuple(talk.tokens)


def test_a_thought_that_was_cut_goes_on() -> None:
    world = vocabulary("world")
    model: Any = Scripted(
        world, [world.encode(" <think") + world.encode(">\nhm, hm</think>\nYes.")], world.encode("\n\nUser:")
    )
    talk = Session(model, "g1", think="on")
    cut = talk.say("x", max_tokens=3).text
    assert "<think>\nhm".startswith(cut)
    assert talk.proceed(50).text == "<think>\nhm, hm</think>\nYes."
    assert len(talk.turns) == 1
