"""Rows as tokens: all known forms, what is trained, and that a session would have read and written the same."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import rookery
from rookery import Session, chat, tokenizer
from rookery.errors import InputError
from rookery.sampling import Sampler
from rookery.tokenizer import Bytes
from rookery.tune.examples import Example, Writer
from rookery.tune.rows import Row, rows

FIXTURES = Path(__file__).parents[1] / "fixtures"
BYTES, WORLD = tokenizer.load("bytes"), tokenizer.load("world")
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
CHATML += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SIMPLE = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}\n\n{% endfor %}"
SIMPLE += "{% if add_generation_prompt %}Assistant:{% endif %}"

TALK = ("Hi there.\n\nWho are you?", "I am é,\nyour friend.", "And what is 2+2?", "4", "Bye!", "Good bye. ")


def talk(*said: str, system: str = "") -> tuple[Any, ...]:
    """Messages of user and assistant in turn."""
    first = ({"role": "system", "content": system},) if system else ()
    return (*first, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)))


def runs(example: Example) -> list[tuple[bool, list[int]]]:
    pairs = groupby(zip(example.trained, example.ids, strict=True), key=lambda pair: pair[0])
    return [(mark, [id for _, id in some]) for mark, some in pairs]


def read(example: Example, known: Any = BYTES) -> str:
    """The text, what is trained in «», the end of text as <end>."""
    out = []
    for mark, ids in runs(example):
        text = known.decode([id for id in ids if id != known.end]) + "<end>" * ids.count(known.end)
        out.append(f"«{text}»" if mark else text)
    return "".join(out)


def marked(template: str, messages: Sequence[Any], mask: str = "reply", known: Any = BYTES, **more: Any) -> list[str]:
    return [read(example, known) for example in Writer(known, chat.load(template), mask).talk(messages, **more)]


# what a session reads and writes


@pytest.fixture(scope="module")
def models() -> dict[str, rookery.Model]:
    return {
        "gosling": rookery.load("gosling"),
        "bytes": rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes"),
    }


@pytest.mark.parametrize("template", ["own", "world", "g1", "raven", "coder", "plain", SIMPLE, CHATML])
@pytest.mark.parametrize("name", ["gosling", "bytes"])
@pytest.mark.parametrize(
    "messages",
    [
        talk(*TALK),
        talk(*TALK[:4], system="Be brief."),
        talk("Why?", "<think>\nHm.\n</think>\nSo.", "And?", "<think>Hm</think> Thus.", "Hm", "Yes."),
        talk("Print 1", "```python\nprint(1)\n```", "And 2", "```python\nprint(2)\n```"),
    ],
    ids=["three", "system", "thoughts", "code"],
)
def test_a_session_reads_and_writes_the_same(
    models: dict[str, rookery.Model], name: str, template: str, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that writes what was trained says the replies, and has read what the document has before them."""
    if template in (SIMPLE, CHATML):
        pytest.importorskip("jinja2")
    if template == "coder" and "print" not in str(messages):
        return  # it opens a block of code before every reply
    model = models[name]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    session = Session(model, None if template == "own" else template, system=system)
    documents = Writer(model.tokenizer, session.template).talk(messages)
    end = [id for id in [model.tokenizer.end] if id is not None]
    written = [(document, ids) for document in documents for mark, ids in runs(document) if mark and ids != end]
    turns = [message["content"] for message in messages if message["role"] != "system"]
    assert len(written) == len(turns) // 2
    for user, answer, (document, script) in zip(turns[::2], turns[1::2], written, strict=True):
        drawn = iter(script)
        monkeypatch.setattr(Sampler, "sample", lambda self, logits, drawn=drawn: next(drawn))
        reply = session.say(user, max_tokens=len(script))
        shown = reply.text
        assert [*drawn] in ([], end)  # a stop text ends it before the end of text does
        assert shown.strip() in (answer.strip(), answer.strip().removeprefix("```python"))
        ended = reply.stop_reason in ("stop", "end")
        assert ended or session.template.name == "plain"  # where nothing says that it is over
        assert session.tokens == document.ids[: len(session.tokens)]
        assert model.tokenizer.decode(session.tokens).rpartition(user.splitlines()[-1])[2].count(shown.strip()) == 1


def test_what_a_template_leaves_out_begins_anew() -> None:
    """g1 writes no old thoughts, so a session reads the talk again without them; the reply is learnt with its own."""
    messages = talk("Why?", "<think>Hm</think> So.", "And?", "<think>Oh</think> Thus.", "Well", "Yes.")
    first, second, third = marked("g1", messages, known=WORLD)
    assert first == "User: Why?\n\nAssistant:« <think>Hm</think> So.<end>»"
    assert second == "User: Why?\n\nAssistant: So.\n\nUser: And?\n\nAssistant:« <think>Oh</think> Thus.<end>»"
    before = "User: Why?\n\nAssistant: So.\n\nUser: And?\n\nAssistant: Thus.\n\nUser: Well\n\nAssistant:"
    assert third == f"{before}« Yes.<end>»"
    assert marked("g1", messages, "last", WORLD) == [third]
    assert len(marked("world", messages, known=WORLD)) == 1


# masks


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ("reply", "User: a\n\nAssistant:« b\n\nUser:» c\n\nAssistant:« d\n\nUser:»"),
        ("last", "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant:« d\n\nUser:»"),
        ("all", "«User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d\n\nUser:»"),
    ],
)
def test_masks(mask: str, wanted: str) -> None:
    assert marked("world", talk("a", "b", "c", "d"), mask) == [wanted]
    assert marked("world", talk("a", "b", "c", "d", "nobody answers this"), mask) == [wanted]
    ended = wanted.removesuffix("\n\nUser:»") + "<end>»"
    assert marked("world", talk("a", "b", "c", "d"), mask, WORLD) == [ended]


def test_a_stop_that_is_a_blank_line_is_written_and_then_the_end() -> None:
    model = rookery.load("gosling", backend="reference")
    writer = Writer(model.tokenizer, Session(model).template)
    assert "\n\n" in writer.template.stops
    (example,) = writer.talk(talk("a", "b", "c", "d"))
    wanted = "User: a\n\nAssistant:« b\n\n»User: c\n\nAssistant:« d\n\n<end>»"
    assert read(example, model.tokenizer) == wanted


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("plain", "a«b»1«d<end>»"),
        ("raven", "Bob: a\n\nAlice:« b\n\nBob:» 1\n\nAlice:« d<end>»"),
        (
            CHATML,
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n<|im_start|>user\n1<|im_end|>\n"
            "<|im_start|>assistant\n«d<|im_end|>»\n«<end>»",
        ),
        (SIMPLE, "User: a\n\nAssistant:« b\n\nUser:» 1\n\nAssistant:« d\n\n<end>»"),
    ],
)
def test_templates(template: str, wanted: str) -> None:
    if "{" in template:
        pytest.importorskip("jinja2")
    assert marked(template, talk("a", "b", "1", "d"), known=WORLD) == [wanted]


def test_a_code_block_that_the_template_opens_is_not_written_again() -> None:
    (text,) = marked("coder", talk("Print 1", "```python\nprint(1)\n```"), known=WORLD)
    assert text == "User: Print 1\n\nAssistant: <think>\n</think>\n```python«\nprint(1)\n```<end>»"
    (text,) = marked("coder", talk("Hello", "n"), known=WORLD)
    assert text == "User: Hello\n\nAssistant:« n<end>»"


def test_a_greeting_answers_nobody() -> None:
    greeting = ({"role": "assistant", "content": "Welcome!"}, *talk("a", "b"))
    assert marked("world", greeting) == ["Assistant: Welcome!\n\nUser: a\n\nAssistant:« b\n\nUser:»"]


def test_a_token_is_trained_that_begins_in_a_reply() -> None:
    """A token that reaches out of a reply is what the model writes there; a reply's first is never part of another."""
    messages = talk("He waited", " un", "til noon", " x")
    (example,) = Writer(WORLD, chat.load("plain")).talk(messages)
    spelt = [WORLD.decode([id]) for mark, ids in runs(example) if mark for id in ids if id]
    assert spelt == [" until", " x"]


def test_spans_are_of_characters() -> None:
    assert marked("world", talk("é", "日本\né")) == ["User: é\n\nAssistant:« 日本\né\n\nUser:»"]


class Composed(Bytes):
    """Like the 20B tokenizer it brings text into Unicode's NFC, so bytes of tokens and of text are not the same."""

    def encode(self, text: str | bytes) -> list[int]:
        return super().encode(unicodedata.normalize("NFC", text if isinstance(text, str) else text.decode()))


def test_spans_where_a_tokenizer_changes_the_text() -> None:
    (text,) = marked("world", talk("e\u0301", "o\u0301o\u0301", "u\u0301", "a\u0301"), known=Composed())
    assert text == "User: é\n\nAssistant:« óó\n\nUser:» ú\n\nAssistant:« á\n\nUser:»"


def test_tools() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {}}}}}
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    given = [
        {"role": "user", "content": "Add 1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "x"},
        {"role": "assistant", "content": "It is 2."},
    ]
    (row,) = rows({"messages": given, "tools": [tool]})
    (text,) = marked("g1", row.messages, tools=row.tools)
    system = 'System: Tools:\n[\n{"name":"add","arguments":{"a":{}}}\n]\nReturn only a JSON function call.\n\n'
    written = '\n{"name": "add", "arguments": {"a": 1}}\n```'
    call, answer = f"Assistant: ```json«{written}\n\nUser:»", "Assistant:« It is 2.\n\nUser:»"
    assert text == f"{system}User: Add 1\n\n{call} Function output:\n2\n\n{answer}"


# forms


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b", "text": "c"}, ("a", "b")),
        ({"question": "a", "answer": "b"}, ("a", "b")),
        ({"query": "a", "response": "b", "id": 3}, ("a", "b")),
        ({"instruction": "a", "output": "b"}, ("a", "b")),
        ({"instruction": "a", "input": None, "output": "b"}, ("a", "b")),
        ({"instruction": "a", "input": "x", "output": "b"}, ("a\nx", "b")),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ("a", "b")),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ("a", "b")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, ("a",)),
    ],
)
def test_forms(row: dict[str, Any], said: tuple[str, ...]) -> None:
    assert rows(row) == [Row(messages=talk(*said))]
    if "messages" not in row:
        assert rows(row | {"system": "s"}) == [Row(messages=talk(*said, system="s"))]


def test_self_instruct_has_a_row_an_instance() -> None:
    found = rows({"instruction": "a", "instances": [{"input": "", "output": "b"}, {"input": "x", "output": "c"}]})
    assert found == [Row(messages=talk("a", "b")), Row(messages=talk("a\nx", "c"))]


def test_columns_of_ones_own() -> None:
    row = {"ctx": "c", "ask": "a", "reply": "b", "text": "t"}
    assert rows(row, ("ctx", "ask", "reply")) == [Row(messages=talk("c\na", "b"))]
    assert rows(row) == [Row(text="t")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": [{"role": "asistant", "content": "a"}]},
            "message 1 has the unknown role 'asistant'; the nearest ",
        ),
        ({"messages": [{"content": "a"}]}, 'message 1 has no "role"'),
        ({"messages": [{"role": "user"}]}, "message 1: its content is null; wanted text"),
        ({"messages": [{"role": "user", "content": [1]}]}, "message 1: its content is a list"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "message 1: a call of a tool is"),
        ({"messages": ["a"]}, "message 1 is text; wanted a role and a content"),
        ({"messages": []}, '"messages": wanted a list of messages'),
        ({"messages": "a"}, '"messages": wanted a list of messages, not text'),
        ({"messages": [{"role": "user", "content": "a"}], "tools": "x"}, '"tools" is text; wanted a list'),
        ({"messages": [{"role": "user", "content": "a"}]}, "has no assistant turn that answers something"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "has no assistant turn that answers something"),
        ({"messages": [*talk("a", " \n")]}, "message 2: the reply is empty"),
        ({"messages": [*talk("a", "b"), {"role": "tool", "content": "c"}, *talk("a", "b")]}, "no role 'tool'"),
        ({"prompt": "a", "completion": ""}, '"completion" is empty'),
        ({"prompt": ["a"], "completion": "b"}, '"prompt" is a list; wanted text'),
        ({"prompt": "a", "completion": 3}, '"completion" is a number; wanted text'),
        ({"text": " "}, '"text" is empty'),
        ({"instruction": "a", "instances": []}, '"instances": wanted a list'),
        ({"a": 1, "b": 2}, "has the columns a, b; wanted .*data.fields"),
        ([1], "is a list; wanted an object"),
    ],
)
def test_rows_that_will_not_do(row: Any, said: str) -> None:
    writer = Writer(BYTES, chat.load("world"))
    with pytest.raises(InputError, match=said) as caught:
        [*map(writer.examples, rows(json.loads(json.dumps(row))))]
    assert "\n" not in str(caught.value)


def test_a_template_without_an_assistant_turn_is_refused() -> None:
    template = chat.load(
        "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n\n{% endif %}{% endfor %}"
    )
    with pytest.raises(InputError, match="has no assistant turn; wanted one that has"):
        Writer(BYTES, template).talk(talk("a", "b"))


def test_settings_that_will_not_do() -> None:
    with pytest.raises(InputError, match=r"data\.mask = 'replies': reply, last or all is wanted"):
        Writer(BYTES, chat.load("world"), "replies")
    with pytest.raises(InputError, match=r"data\.fields = \['a'\]: wanted the columns"):
        rows({"a": "x"}, ("a",))
    with pytest.raises(InputError, match='has no "b"; its columns are a'):
        rows({"a": "x"}, ("a", "b"))
