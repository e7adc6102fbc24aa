"""Replies taken apart while they come: the same pieces wherever the text was cut."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from rookery.engine import Ended, Score, Wrote
from rookery.server.choices import Choice
from rookery.server.parts import Arguments, Call, Parts, Plain, Thought, Words
from rookery.tokenizer import Bytes

CALL = '{"name": "f", "arguments": {"a": "}\\"{", "b": [1, {}]}}'


def taken_apart(text: str, cuts: list[int], **how: Any) -> tuple[str, str, list[tuple[str, str]]]:
    """Thoughts, words, and the calls with their arguments."""
    parts, found, before = Parts(**how), [], 0
    for cut in [*cuts, len(text)]:
        found += parts.push(text[before:cut])
        before = cut
    found += parts.end()
    calls = {part.index: [part.name, ""] for part in found if isinstance(part, Call)}
    for part in found:
        if isinstance(part, Arguments):
            calls[part.index][1] += part.text
    thoughts, words = ("".join(p.text for p in found if isinstance(p, kind)) for kind in (Thought, Words))
    return thoughts, words, [(name, arguments) for name, arguments in calls.values()]


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        (" Hello  there", {}, ("", "Hello  there", [])),
        (" Hello", {"blank": False}, ("", " Hello", [])),
        (" <think>\nHm, <b> so </thing\n</think>\n\nYes.\n", {}, ("Hm, <b> so </thing", "Yes.\n", [])),
        (">\nHm\n</think>\nYes", {"begun": " <think"}, ("Hm", "Yes", [])),
        (">\n\nYes", {"begun": " <think>\n</think"}, ("", "Yes", [])),
        ("def f():", {"begun": " <think>\n</think>\n```python\n"}, ("", "```python\ndef f():", [])),
        (" I <think> so </think>", {}, ("", "I <think> so </think>", [])),
        (" <thi", {}, ("", "<thi", [])),
        (" <think>abc\n", {}, ("abc", "", [])),
        (f"\n{CALL}\n```", {"begun": " ```json", "calls": True}, ("", "", [("f", '{"a": "}\\"{", "b": [1, {}]}')])),
        (" ```json\n" + CALL[:-9], {"calls": True}, ("", "", [("f", '{"a": "}\\"{", "b": ')])),
        (
            ' ```json\n[{"name":"f","arguments":{}}, {"name":"g","arguments":{"x":1}}]\n```',
            {"calls": True},
            ("", "", [("f", "{}"), ("g", '{"x":1}')]),
        ),
        (' <think>Hm</think>\n```json\n{"name":"f","arguments":{}}\n```', {"calls": True}, ("Hm", "", [("f", "{}")])),
        (' ```json\n{"x": 1}\n```', {"calls": True}, ("", '```json\n{"x": 1}\n```', [])),
        (f" ```json\n{CALL}\n```", {}, ("", f"```json\n{CALL}\n```", [])),
        (" ``", {"calls": True}, ("", "``", [])),
        (" ```json" + " x" * 3000, {"calls": True}, ("", "```json" + " x" * 3000, [])),
    ],
)
def test_pieces_do_not_depend_on_the_cuts(text: str, how: dict[str, Any], expected: Any) -> None:
    assert taken_apart(text, [], **how) == expected
    assert taken_apart(text, list(range(len(text))), **how) == expected
    dice = random.Random(7)
    for _ in range(50):
        cuts = sorted(dice.sample(range(len(text) + 1), min(4, len(text))))
        assert taken_apart(text, cuts, **how) == expected


def test_words_are_given_on_at_once() -> None:
    parts = Parts()
    assert parts.push(" I") == [Words("I")]
    assert parts.push(" see") == [Words(" see")]


def test_arguments_are_given_on_as_they_come() -> None:
    parts = Parts(" ```json", calls=True)
    [call, first] = parts.push('\n{"name": "f", "arguments": {"a"')
    assert isinstance(call, Call)
    assert (call.name, first) == ("f", Arguments(0, '{"a"'))
    assert parts.push(": 1}}\n") == [Arguments(0, ": 1}")]
    assert parts.push("```") == parts.end() == []


def test_a_token_that_may_begin_a_stop_text_is_not_told_before_its_text() -> None:
    """Two events of one batch: the second token's text is held back, and then turns out to end in a stop text."""

    def wrote(token: int, text: str) -> Wrote:
        return Wrote(0, text, token, Score(token, -1.0, ()), None)

    choice = Choice(0, Bytes(), Plain())
    choice.wrote(wrote(1, "h"))
    choice.wrote(wrote(2, ""))
    assert [score.token for score in choice.scores()] == [1]
    choice.ended(Ended(0, SimpleNamespace(tokens=[1, 2], kept=0, tail="h", stop_reason="stop"), "", None, None))  # type: ignore[arg-type]
    assert choice.scores() == []
    choice = Choice(0, Bytes(), Plain())
    choice.wrote(wrote(1, "h"))
    choice.wrote(wrote(2, ""))
    choice.wrote(wrote(3, "ow"))
    assert [score.token for score in choice.scores()] == [1, 2, 3]
