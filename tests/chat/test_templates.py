"""The builtin templates: their exact texts, and that a talk grown turn by turn is the talk as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rookery
from rookery import chat, errors
from rookery.chat.roles import BUILTIN, THINK
from rookery.chat.template import Message, Template
from rookery.formats.folder import JINJA

NAMES = tuple(BUILTIN)
SPOKEN = ("raven", "world", "g1")  # those whose history is what was read
# What a person says: line ends of all kinds, blank lines, indentation, colons, other scripts, a role's name.
WORDS = st.text(st.sampled_from("ab Z.:0\n\r\t。é🦜`>") | st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["User: x\n\nAssistant:", "def f():\n    return 1\n\n\n    # end", "。\n\n\n", "\r\n\r\n", "x\n \t\nAssistant: y"]
)
# What a model writes after "Assistant:": a space, then anything that does not end in space; blank lines within.
REPLIES = WORDS.map(lambda text: " " + text.strip()).filter(str.strip).filter(lambda text: "</think>" not in text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


TALK = [system("Be brief."), user("Hi"), assistant(" Hello.\n\nYes?"), user("2 + 2?")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raven", "Be brief.\n\nBob: Hi\n\nAlice: Hello.\n\nYes?\n\nBob: 2 + 2?\n\nAlice:"),
        ("world", "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nYes?\n\nUser: 2 + 2?\n\nAssistant:"),
        ("g1", "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nYes?\n\nUser: 2 + 2?\n\nAssistant:"),
        (
            "coder",
            "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nYes?\n\nUser: 2 + 2?\n\n"
            "Assistant: <think>\n</think>\n```python",
        ),
        ("plain", "Be brief.Hi Hello.\n\nYes?2 + 2?"),
    ],
)
def test_the_text_of_a_talk(name: str, text: str) -> None:
    template = chat.load(name)
    assert template.name == name
    assert template.render(TALK) == text
    assert template.render(TALK[:1]).startswith(text.split("\n")[0].split("Hi")[0])


def test_without_a_reply_the_talk_ends_with_its_last_words() -> None:
    assert chat.load("world").render(TALK[:3], reply=False).endswith("Assistant: Hello.\n\nYes?")
    assert chat.load("world").render([user("")]) == "User:\n\nAssistant:"
    assert chat.load("world").render([user("a"), assistant(" "), user("b")]).startswith("User: a\n\nAssistant:\n\nUser")


@pytest.mark.parametrize(
    ("think", "end"),
    [
        (None, "User: q\n\nAssistant:"),
        ("off", "User: q\n\nAssistant:"),
        ("fake", "User: q\n\nAssistant: <think>\n</think"),
        ("on", "User: q\n\nAssistant: <think"),
        ("short", "User: q (think a bit)\n\nAssistant: <think"),
        ("medium", "User: q (think)\n\nAssistant: <think"),
        ("long", "User: q (think a lot)\n\nAssistant: <think"),
    ],
)
def test_think_modes_of_g1(think: str | None, end: str) -> None:
    g1 = chat.load("g1")
    assert g1.render([user("first"), assistant(" yes"), user("q")], think=think) == (
        f"User: first\n\nAssistant: yes\n\n{end}"
    )
    assert end.endswith("Assistant:" + g1.begun(think=think))
    assert g1.render([user("q")], think=think, reply=False) == "User: q"


@pytest.mark.parametrize("think", [mode for mode, (_, begun) in THINK.items() if begun])
def test_old_thoughts_are_left_out_and_so_nothing_follows_them(think: str) -> None:
    g1 = chat.load("g1")
    written = ">\nHm.</think>\nFour." if think != "fake" else ">\nFour."
    for content in (written, g1.begun(think=think) + written):
        talk = [user("2 + 2?"), assistant(content), user("Sure?")]
        assert g1.render(talk) == "User: 2 + 2?\n\nAssistant: Four.\n\nUser: Sure?\n\nAssistant:"
        assert g1.follow(talk, think=think) is None
        assert g1.follow(talk) is None


@pytest.mark.parametrize("think", ["fake", "on", "short"])
def test_after_another_think_mode_nothing_follows(think: str) -> None:
    assert chat.load("g1").follow([user("a"), assistant(" b"), user("c")], think=think) is None


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (" Four.", "Four."),
        ("  Four. ", " Four. "),
        (">\nHm.</think>\nFour.", "<think>\nHm.</think>\nFour."),
        (" <think>\nHm.</think>\nFour.", "<think>\nHm.</think>\nFour."),
        (">\nFour.", "Four."),
        (" <think>\n</think>\nFour.", "Four."),
        ("", ""),
    ],
)
def test_a_reply_as_shown(reply: str, shown: str) -> None:
    assert chat.load("g1").shown(reply) == shown


def test_a_reply_that_is_quoted_is_no_thought_where_there_is_no_thinking() -> None:
    world = chat.load("world")
    assert world.shown(">\na</think>b") == ">\na</think>b"
    assert world.render([user("q"), assistant(" a</think>b")], reply=False) == "User: q\n\nAssistant: a</think>b"


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "of a city", "parameters": SCHEMA}
LISTED = (
    'System: Tools:\n[\n{"name":"weather","description":"of a city","arguments":{"city":{"type":"string"}}}\n]\n'
    "Return only a JSON function call.\n\n"
)


@pytest.mark.parametrize("tool", [WEATHER, {"type": "function", "function": WEATHER}])
def test_tools_of_g1(tool: dict[str, Any]) -> None:
    g1 = chat.load("g1")
    call = '\n{"name":"weather","arguments":{"city":"Bonn"}}\n```'
    talk = [user("Weather in Bonn?"), assistant(call), Message(role="tool", content='{"sky":\r\n\r\n"blue"}')]
    whole = (
        f"{LISTED}User: Weather in Bonn?\n\nAssistant: ```json{call}\n\n"
        'User: Function output:\n{"sky":\n"blue"}\n\nAssistant: ```json'
    )
    assert g1.render(talk, tools=[tool]) == whole
    assert g1.opening(talk, tools=[tool]) == LISTED
    first = g1.render(talk[:1], tools=[tool])
    assert first + call + (g1.follow(talk, tools=[tool]) or "") == whole
    given = [talk[0], assistant(g1.begun(tools=[tool]) + call), talk[2]]
    assert g1.render(given, tools=[tool]) == whole
    assert g1.render(talk[:1], tools=[tool], think="off").endswith("Assistant:")
    assert g1.render(talk[:1], tools=[tool], think="on").endswith("Assistant: <think")


def test_tools_as_signatures_and_beside_a_system_message() -> None:
    text = chat.load("g1").render([system("Be brief."), user("q")], tools=["now() -> time", "sum(a: int, b: int)"])
    assert text == (
        "System: Be brief.\nTools:\n- now() -> time\n- sum(a: int, b: int)\nReturn only a JSON function call.\n\n"
        "User: q\n\nAssistant: ```json"
    )


def test_code_stays_a_block_in_the_history() -> None:
    coder = chat.load("coder")
    code = "\ndef f():\n    return 1\n```"
    whole = "User: f\n\nAssistant: ```python\ndef f():\n    return 1\n```\n\nUser: g\n\nAssistant:" + coder.begun()
    for content in (code, coder.begun() + code):
        assert coder.render([user("f"), assistant(content), user("g")]) == whole
    assert coder.shown(coder.begun() + code) == "```python" + code


def wrong(talk: Any, name: str = "g1", **asked: Any) -> str:
    with pytest.raises(errors.InputError) as caught:
        chat.load(name).render(talk, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_makes_no_sense_is_one_line() -> None:
    assert "at least one message" in wrong([])
    assert "at least one message" in wrong([], "plain")
    assert "message 2: the template raven has no role 'tool'" in wrong(
        [user("a"), Message(role="tool", content="")], "raven"
    )
    assert "no role 'critic'" in wrong([{"role": "critic", "content": "x"}], "plain")
    assert "no role" in wrong([{"role": "a\nb", "content": "x"}])
    assert "content that is text" in wrong([{"role": "user", "content": None}])
    assert "content that is text" in wrong(["hello"])
    assert "world; it does not think" in wrong([user("a")], "world", think="on")
    assert "choose from off, fake, on" in wrong([user("a")], think="deep")
    assert "plain has no form for it" in wrong([user("a")], "plain", think="on")
    assert "plain has no form for it" in wrong([user("a")], "plain", tools=[WEATHER])
    assert "raven has no form for tools" in wrong([user("a")], "raven", tools=[WEATHER])
    assert "have a name" in wrong([user("a")], tools=[{"nome": "x"}])
    assert "have a name" in wrong([user("a")], tools=[WEATHER, 5])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("talk", [[user("a")], [user("a"), user("b")], [assistant(" a"), assistant(" b")]])
def test_only_a_reply_can_be_followed(name: str, talk: list[Message]) -> None:
    with pytest.raises(errors.InputError, match="a reply of the assistant"):
        chat.load(name).follow(talk)


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("reply", ["x", "  x", " x ", " x\n", "\nx", " "])
def test_a_reply_that_the_history_would_trim_is_not_followed(name: str, reply: str) -> None:
    assert chat.load(name).follow([user("a"), assistant(reply), user("b")]) is None


def test_a_reply_to_nobody_is_not_followed() -> None:
    assert chat.load("world").follow([assistant(" a"), user("b")]) is None


def grown(template: Template, said: Sequence[str], replies: Sequence[str], head: Sequence[Message]) -> list[str]:
    """What is read, piece by piece: up to the first opening, then each reply with what follows it."""
    talk = [*head, user(said[0])]
    pieces = [template.render(talk)]
    for words, reply in zip(said[1:], replies, strict=True):
        talk += [assistant(reply), user(words)]
        follow = template.follow(talk)
        assert follow is not None
        assert follow.startswith(template.follows_reply())
        pieces.append(reply + follow)
    assert "".join(pieces) == template.render(talk)
    assert template.render(talk).startswith(template.opening(talk))
    return pieces


TURNS = st.integers(1, 3).flatmap(
    lambda n: st.tuples(st.lists(WORDS, min_size=n + 1, max_size=n + 1), st.lists(REPLIES, min_size=n, max_size=n))
)
HEAD = st.just([]) | WORDS.map(lambda text: [system(text)])


@pytest.mark.parametrize("name", [*SPOKEN, "plain"])
@given(turns=TURNS, head=HEAD)
@example(turns=(["a", "b"], [" > x"]), head=[])
def test_turn_by_turn_is_the_same_text_as_the_whole(
    name: str, turns: tuple[list[str], list[str]], head: list[Message]
) -> None:
    grown(chat.load(name), *turns, head)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {"world": rookery.tokenizer.load("world"), "gosling": rookery.load("gosling").tokenizer}


@pytest.mark.parametrize("vocabulary", ["world", "gosling"])
@pytest.mark.parametrize("name", SPOKEN)
@settings(deadline=None)
@given(turns=TURNS, head=HEAD)
def test_turn_by_turn_is_the_same_tokens_as_the_whole(
    tokenizers: dict[str, Any], vocabulary: str, name: str, turns: tuple[list[str], list[str]], head: list[Message]
) -> None:
    encode, template = tokenizers[vocabulary].encode, chat.load(name)
    pieces = grown(template, *turns, head)
    opening = template.opening([*head, user(turns[0][0])])
    pieces[:1] = [opening, pieces[0].removeprefix(opening)]
    assert [id for piece in pieces for id in encode(piece)] == encode("".join(pieces))


def test_a_blank_line_hides_in_34_world_tokens(tokenizers: dict[str, Any]) -> None:
    """Which is why a reply is ended by text, and why no token that holds one goes on with a speaker's name."""
    world = tokenizers["world"]
    tokens = [world.token_bytes(id) for id in range(1, 65530)]
    blank = [token for token in tokens if b"\n\n" in token]
    assert len(blank) == 34
    assert not any(token.strip() for token in blank)


@given(WORDS)
def test_clean(text: str) -> None:
    cleaned = chat.clean(text)
    assert "\n\n" not in cleaned
    assert "\r\n" not in cleaned
    assert cleaned == cleaned.strip() == chat.clean(cleaned)
    assert "".join(cleaned.split()) == "".join(text.split())


def test_clean_keeps_indentation() -> None:
    assert (
        chat.clean("\r\n def f():\r\n\r\n\r\n    return 1\r\n \t\n\n    # b  \n") == "def f():\n    return 1\n    # b"
    )


@pytest.mark.parametrize("prompt", ["Assistant: ", "User: hi\n\nAssistant:  ", "x\nAlice: ", "Bot: "])
def test_a_trailing_space_after_a_speaker(prompt: str) -> None:
    assert chat.trailing_space(prompt)


@pytest.mark.parametrize(
    "prompt", ["Assistant:", "The answer is: ", "", " ", "Assistant: x ", "a\nb: c: ", "Assistant:\n"]
)
def test_no_trailing_space_after_a_speaker(prompt: str) -> None:
    assert not chat.trailing_space(prompt)


@pytest.mark.parametrize("name", NAMES)
def test_stops_are_never_a_blank_line_alone(name: str) -> None:
    template = chat.load(name)
    assert all(stop.strip() for stop in template.stops)
    for stop in template.stops:
        assert stop[2:] in template.render([*TALK, assistant(" x"), user("y")]), stop


@pytest.mark.parametrize(
    ("name", "profile"), [("raven", "raven"), ("world", "demo"), ("g1", "g1"), ("coder", "careful"), ("plain", None)]
)
def test_each_recommends_its_profile(name: str, profile: str | None) -> None:
    assert chat.load(name).sampling == (chat.PROFILES[profile] if profile else None)


def test_profiles_are_those_of_their_sources() -> None:
    """T, top_p, presence, frequency, decay: rwkv.cn (g1 ...), API_DEMO_CHAT.py, v2/chat.py, PIPELINE_ARGS."""
    rows = {
        name: (s.temperature, s.top_p, s.presence, s.frequency, s.decay if s.frequency else None)
        for name, s in chat.PROFILES.items()
    }
    assert rows == {
        "g1": (1.0, 0.5, 2.0, 0.1, 0.99),
        "g1-creative": (0.6, 0.7, 2.0, 0.2, 0.99),
        "careful": (0.3, 0.3, 0.0, 0.0, None),
        "exact": (0.0, 0.0, 0.0, 0.0, None),
        "demo": (1.0, 0.3, 0.5, 0.5, 0.996),
        "demo-state": (1.0, 0.2, 0.3, 0.3, 0.996),
        "raven": (1.2, 0.5, 0.4, 0.4, 0.996),
        "pip": (1.0, 0.85, 0.2, 0.2, 0.996),
        "runner": (1.0, 0.3, 0.0, 1.0, 0.996),
        "lightning": (1.0, 0.6, 1.0, 0.1, 0.996),
    }
    assert chat.PROFILES["exact"].greedy


# What a model says of itself.


def test_a_model_names_its_template() -> None:
    assert chat.load(None).name == "plain"
    assert chat.load(None, {"rookery.template": "raven", "tokenizer.chat_template": "rwkv-world"}).name == "raven"
    assert chat.load(None, {"tokenizer.chat_template": "rwkv-world"}).name == "world"
    assert chat.load(None, {"tokenizer.chat_template": "chatml"}).name == "plain"
    assert chat.load("g1", {"rookery.template": "raven"}).name == "g1"


def test_a_single_paragraph_model_stops_at_a_blank_line_too() -> None:
    world = chat.load(None, {"rookery.template": "world", "rookery.stop": "\n\n"})
    assert world.stops == ("\n\n", *chat.load("world").stops)
    assert world.render(TALK) == chat.load("world").render(TALK)
    for bad in ("", "x" * 101, 5):
        with pytest.raises(errors.TemplateError, match=r"rookery\.stop"):
            chat.load(None, {"rookery.template": "world", "rookery.stop": bad})


def test_a_model_names_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jinja"
    path.write_text("{{ messages[0].content }}")
    for said in ({"rookery.template": str(path)}, {"tokenizer.chat_template": str(path)}, {"rookery.template": 5}):
        assert chat.load(None, said).name == "plain"


def test_an_object_is_taken_as_it_is() -> None:
    world = chat.load("world")
    assert chat.load(world, {"rookery.template": "raven"}) is world


def test_a_folder_without_a_template_is_plain(tmp_path: Path) -> None:
    assert chat.load(None, {}, str(tmp_path)).name == "plain"
    assert chat.load(None, {}, str(tmp_path / "absent")).name == "plain"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert chat.load(None, {}, str(tmp_path)).name == "plain"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "rwkv-world"}))
    assert chat.load(None, {}, str(tmp_path)).name == "world"


def test_a_folder_leads_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{{ 1 }}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / JINJA).symlink_to(secret)
    with pytest.raises(errors.BadOffset, match="leads out"):
        chat.load(None, {}, str(folder))


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="neither a template nor a file; wanted raven, world"):
        chat.load("wrold")
    large, binary = tmp_path / "large.jinja", tmp_path / "binary.jinja"
    large.write_bytes(b"{{ 1 }}" + b" " * (1 << 20))
    binary.write_bytes(b"{{ \xff }}")
    with pytest.raises(errors.TooLarge, match="at most"):
        chat.load(str(large))
    with pytest.raises(errors.TemplateError, match="UTF-8"):
        chat.load(binary)


def test_a_builtin_needs_no_jinja2() -> None:
    """As gosling does: its GGUF names a builtin."""
    code = (
        "import sys; sys.modules['jinja2'] = sys.modules['llguidance'] = None\n"
        "from rookery import chat\n"
        "t = chat.load(None, {'rookery.template': 'world', 'tokenizer.chat_template': '{{ 1 }}'})\n"
        "print(repr(t.render([{'role': 'user', 'content': 'q'}])), chat.PROFILES['raven'].top_p)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "'User: q\\n\\nAssistant:' 0.5\n"
