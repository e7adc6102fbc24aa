"""`rookery chat` without a terminal: what may be typed, what is drawn, how the loop treats a session, and pipes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rich")

from terminal import BYTES, check_mistake

from rookery import Sampling, errors, load
from rookery.cli import chat as command
from rookery.cli import chat_commands as commands
from rookery.cli import chat_look as look
from rookery.cli.chat_commands import Command
from rookery.cli.chat_shelf import Shelf
from rookery.cli.chat_talk import Chat


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where talks are kept in these tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "rookery"


# what may be typed


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("hello", "hello"),
        ("  hello \n", "hello"),
        ("", ""),
        ("/help", Command("help")),
        ("/REWIND  3 ", Command("rewind", "3")),
        ("/rewind", Command("rewind")),
        ("/system You are\na cat.", Command("system", "You are\na cat.")),
        ("/usr/bin/env is what?", "/usr/bin/env is what?"),
        ("/* a comment */", "/* a comment */"),
        ("/", "/"),
        (" /quit", "/quit"),
        ("/save my talk", Command("save", "my talk")),
    ],
)
def test_a_line_is_a_command_or_a_message(line: str, wanted: object) -> None:
    assert commands.parse(line) == wanted


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/tre", "did you mean /tree?"),
        ("/rewnd 2", "did you mean /rewind?"),
        ("/xyzzy", "/help lists them"),
        ("/tree now", "/tree takes no argument"),
        ("/save", "/save NAME"),
        ("/goto ", "/goto ID"),
    ],
)
def test_a_wrong_command_is_one_line(line: str, part: str) -> None:
    with pytest.raises(errors.InputError) as raised:
        commands.parse(line)
    assert part in str(raised.value)
    assert look.printable(str(raised.value)) == str(raised.value)


def test_every_command_has_a_method() -> None:
    assert {name for name in commands.COMMANDS if hasattr(Chat, f"_{name}")} == {*commands.COMMANDS} - {"quit"}


@pytest.mark.parametrize(("typed", "field", "value"), [
    ("temperature 0.5", "temperature", 0.5), ("top-p=0.3", "top_p", 0.3), ("top_k = 7", "top_k", 7),
    ("penalty rapid", "penalty", "rapid"),
])  # fmt: skip
def test_settings_are_read(typed: str, field: str, value: object) -> None:
    assert getattr(commands.changed(Sampling(), *commands.setting(typed)), field) == value


@pytest.mark.parametrize(("typed", "part"), [
    ("temperatur 1", "did you mean temperature?"), ("xyzzy 1", "temperature, top_p"), ("top_p", "wants a value"),
    ("temperature warm", "temperature 'warm': a number"), ("top_k 1.5", "top_k '1.5': a whole number"),
    ("top_p 2", "top_p=2.0: wanted a number from 0 to 1"), ("temperature nan", "temperature=nan: wanted"),
    ("penalty gpt", "wanted one of rwkv, rapid, openai"), ("\x1b[2J 1", r"\x1b[2j"),
])  # fmt: skip
def test_a_setting_that_makes_no_sense_is_one_line(typed: str, part: str) -> None:
    with pytest.raises(errors.InputError, match=r"^[ -~]*$") as raised:
        commands.changed(Sampling(), *commands.setting(typed))
    assert part in str(raised.value)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "x", "9" * 30, "１", "1\n"])
def test_whole_numbers_only(text: str) -> None:
    with pytest.raises(errors.InputError, match="a whole number of 1 or more"):
        commands.whole(text, "/rewind")


OUTSIDE = [
    "../x", "..", ".", ".hidden", "/etc/passwd", "a/b", "a\\b", "C:x", "~root", "a..b", "a\x00b", "a\nb", "\x1b[2J",
    "", "x" * 101, "\u202egpj",
]  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE)
def test_a_name_is_no_path(text: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=r"^talk ") as raised:
        commands.talk_file(str(tmp_path), text)
    assert look.printable(str(raised.value)) == str(raised.value)


@pytest.mark.parametrize("text", ["river", "my talk", "über 漢字", "2026-11-21", "x" * 100])
def test_a_name_is_a_file_in_the_folder(text: str, tmp_path: Path) -> None:
    assert commands.talk_file(str(tmp_path), text) == str(tmp_path / f"{text}.talk")


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "out.talk").symlink_to(tmp_path / "secret")
    (folder / "nowhere.talk").symlink_to(tmp_path / "not there")
    (folder / "in.talk").symlink_to(folder / "other.talk")
    for text in ("out", "nowhere"):
        with pytest.raises(errors.InputError, match="link that leads out"):
            commands.talk_file(str(folder), text)
    commands.talk_file(str(folder), "in")
    (tmp_path / "way").symlink_to(folder)  # a data folder that is a link itself is the person's own business
    commands.talk_file(str(tmp_path / "way"), "x")


# what is drawn


def test_no_control_character_reaches_the_terminal() -> None:
    every = "".join(map(chr, [*range(0x2100), 0x2028, *range(0x2060, 0x2070), 0xD800, 0x1F469, 0x200D, 0x3000]))
    shown = look.harmless(every)
    assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n", "\t"}
    assert not set(shown) & set("\u202e\u2066\ud800")
    assert look.harmless("\x1b[2J\x9b1m\r") == r"\x1b[2J\x9b1m\r"
    for text in ("漢字 👩‍💻 שלום\u3000\n\tx", "e\u0301"):
        assert look.harmless(text) == text


def turns(n: int) -> list[Any]:
    return [SimpleNamespace(id=f"{i:x}" * 32, user=f"q{i}", reply=f"a{i}") for i in range(1, n + 1)]


def test_the_tree_keeps_a_line_in_its_column() -> None:
    t = turns(8)
    before = [None, t[0].id, t[1].id, t[2].id, t[1].id, t[1].id, t[5].id, None]
    heads = {3: ["main"], 6: ["x", "y"]}
    rows = [(before[i], t[i], heads.get(i, []), i == 6) for i in range(8)]
    assert ["".join(parts) for parts in look.tree_lines(rows)] == [
        "  ├─ 1111 q1 → a1",
        "  │  2222 q2 → a2",
        "  │  ├─ 3333 q3 → a3",
        "  │  │  4444 [main] q4 → a4",
        "  │  ├─ 5555 q5 → a5",
        "  │  └─ 6666 q6 → a6",
        "* │     7777 [x, y] q7 → a7",
        "  └─ 8888 q8 → a8",
    ]
    assert look.id_length(["abcde0", "abcde1", "ffff00"]) == 6


def test_a_long_talk_stays_at_the_left() -> None:
    t = [SimpleNamespace(id=f"{i:032x}", user="q", reply="a") for i in range(3000)]
    lines = look.tree_lines([(t[i - 1].id if i else None, t[i], [], False) for i in range(3000)])
    assert {drawn[:2] for drawn, _ in lines} == {"  "}
    assert max(len(drawn) for drawn, _ in lines) < 40


@pytest.mark.parametrize("version", ["v4", "v5.2", "v6", "v7"])
def test_the_states_of_layers_add_up_to_the_whole(version: str) -> None:
    fixtures = Path(__file__).resolve().parents[1] / "fixtures"
    model = load(fixtures / f"{version}.safetensors", tokenizer="bytes")
    one, two = model.forward([1, 2, 3])[1], model.forward([4, 5])[1]
    changes = look.by_layer(two, one)
    assert len(changes) == model.config.n_layer
    assert min(changes) > 0
    if version != "v4":  # whose exponents are no part of it
        assert sum(x * x for x in changes) / len(changes) == pytest.approx(two.delta(one) ** 2)
    assert max(look.by_layer(model.state())) < 1e6


def test_bars_and_amounts() -> None:
    assert [look.bar(share, 4) for share in (0, 0.5, 0.53125, 1, 2)] == ["", "██", "██▏", "████", "████"]
    assert [look.amount(n) for n in (0, 999, 2400, 203_000, 13.4e6, 2e9)] == [
        "0 B", "999 B", "2.4 KB", "203 KB", "13 MB", "2.0 GB"
    ]  # fmt: skip
    assert look.brief("a\n b\x1b[0m" + "c" * 90) == r"a b\x1b[0m" + "c" * 52 + "…"


def test_the_status_line_fits() -> None:
    status = look.Status("gosling", "river/main", 2, 203_000, 1234.0, "greedy")
    assert status.line(80) == " gosling · river/main · 2 turns · 1,234 tokens/s · state 203 KB · greedy"
    assert status.line(40) == " gosling · river/main · 2 turns · greedy"
    for width in range(1, 80):
        assert look.Status("漢字漢字", "x\x1b[0m", 1, 1, None, "").line(width).isprintable()


# the loop


@pytest.fixture(scope="module")
def gosling() -> Any:
    return load("gosling")


@pytest.fixture
def begin(gosling: Any) -> Callable[..., Chat]:
    """`begin("--resume")`: the loop as the command line would begin it, greedy and with short replies."""

    def made(*flags: str) -> Chat:
        args = command.parser().parse_args(["--template", "world"] * ("--resume" not in flags) + [*flags])
        shelf = Shelf(gosling, args, command.warn)
        chat = Chat("gosling", shelf.start(), shelf, look.Screen(), 12)
        chat.session.sampling = Sampling(temperature=0)
        return chat

    return made


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`typed(chat, *lines)`: what the terminal shows for the last of the lines."""

    def run(chat: Chat, *lines: str) -> str:
        for line in lines:
            capsys.readouterr()
            chat.handle(line)
        return capsys.readouterr().out

    return run


def said(chat: Chat) -> list[tuple[str, str]]:
    return [(turn.user, turn.reply) for turn in chat.session.turns]


def test_a_reply_is_shown_and_kept(begin: Any, typed: Any) -> None:
    chat = begin("--name", "river")
    assert chat.status().line(60).startswith(" gosling · river · 0 turns · state 203 KB")
    out = typed(chat, "Tell me a story.")
    assert out == chat.session.turns[0].reply.rstrip() + "\n(cut at 12 tokens; /more goes on)\n"
    assert " · 1 turn · " in chat.status().line(60)
    assert "tokens/s" in chat.status().line(60)
    assert said(begin("--resume")) == said(begin("--resume", "river")) == said(chat)
    assert typed(chat, "/quit") == ""
    assert not chat.handle("/quit")
    assert chat.handle("")
    assert len(chat.session.turns) == 1


def test_more_goes_on_as_if_it_had_not_been_cut(begin: Any, typed: Any) -> None:
    whole = begin()
    whole.max_tokens = 24
    typed(whole, "Tell me a story.")
    cut = begin()
    first = typed(cut, "Tell me a story.").split("\n(cut at")[0]
    rest = typed(cut, "/more").split("\n(cut at")[0]
    assert said(cut) == said(whole)
    assert " ".join((first + rest).split()) == " ".join(said(whole)[0][1].split())
    assert "nothing to go on with" in typed(cut, "/rewind", "/set max_tokens 99", "Hello", "/more")


def test_going_back_and_sideways(begin: Any, typed: Any) -> None:
    chat = begin()
    assert "nothing has been said yet" in typed(chat, "/rewind")
    typed(chat, "Hello", "Tell me a story.", "What happened next?")
    three = said(chat)
    assert "after: Hello" in typed(chat, "/rewind 2")
    assert said(chat) == three[:1]
    typed(chat, "Who are you?")
    id = chat.session.turns[-1].id
    assert "[side] Who are you?" in typed(chat, "/branch side", "/tree").replace("main, ", "")
    typed(chat, "Hello")
    assert chat.status().talk.endswith("/side")
    assert "after: Who are you?" in typed(chat, "/goto main")
    assert (len(chat.session.turns), chat.session.head) == (2, "main")
    typed(chat, "/goto side", f"/goto {id[:8]}")
    assert [turn.user for turn in chat.session.turns] == ["Hello", "Who are you?"]
    assert "no turn of this talk" in typed(chat, "/goto zzz")
    assert "the talk has 2 turns here" in typed(chat, "/rewind 3")
    assert "has a branch 'side' already" in typed(chat, "/branch side")
    assert len(chat.session.tree()) == 5


def test_retry_has_another_reply_and_keeps_the_first(begin: Any, typed: Any) -> None:
    chat = begin()
    assert "nothing has been said yet" in typed(chat, "/retry")
    typed(chat, "/set temperature 3", "/set top_p 1", "Tell me a story.")
    [(asked, first)] = said(chat)
    typed(chat, "/retry")
    [(again, second)] = said(chat)
    assert (again, second == first) == (asked, False)
    assert [turn.reply for _, turn, *_ in chat.session.tree()] == [first, second]


def test_settings_reach_the_sampler(begin: Any, typed: Any) -> None:
    chat = begin()
    assert typed(chat, "/set top-k=7") == "top_k = 7\n"
    typed(chat, "/set max_tokens 3", "Hello")
    assert chat.session.sampling == Sampling(temperature=0, top_k=7)
    assert len(chat.session.tokens) - chat.session.turns[0].tokens == 0
    assert chat.session.turns[0].stop_reason == "length"
    assert "think='on'" in typed(chat, "/set think on")
    assert [line.split() for line in typed(chat, "/set").splitlines()][2] == ["top_k", "7"]
    assert begin("--resume").session.name == chat.session.name


def test_a_resumed_talk_has_its_settings(begin: Any, typed: Any) -> None:
    chat = begin()
    typed(chat, "/set temperature 0.7", "/set penalty rapid", "Hello")
    args = command.parser().parse_args(["--resume", "--top-k", "9"])
    shelf = Shelf(chat.shelf.model, args, command.warn)
    assert shelf.start().sampling == Sampling(temperature=0.7, penalty="rapid", top_k=9)


def test_the_system_text_comes_first(begin: Any, typed: Any) -> None:
    chat = begin("--name", "river")
    assert typed(chat, "/system You are a cat.") == "system: You are a cat.\n"
    assert (chat.session.name, chat.session.sampling) == ("river", Sampling(temperature=0))
    typed(chat, "Hello")
    text = chat.session.model.tokenizer.decode(chat.session.tokens)
    assert text.startswith("System: You are a cat.\n\nUser: Hello\n\nAssistant:")
    assert "before the first turn" in typed(chat, "/system You are a dog.")
    assert "before the first turn" in typed(chat, "/rewind", "/system You are a dog.")


def test_talks_are_saved_and_loaded_by_name(begin: Any, typed: Any, home: Path) -> None:
    chat = begin()
    typed(chat, "Hello", "/branch side", "Tell me a story.", "/save my talk")
    kept = said(chat)
    assert [file.name for file in (home / "talks").iterdir()] == ["my talk.talk"]
    other = begin()
    assert kept[-1][1].splitlines()[0] in typed(other, "/load my talk")
    assert (said(other), other.session.head) == (kept, "side")
    assert "there are: my talk" in typed(other, "/load other")
    for name in ("../x", "/etc/passwd", "..", ".x", "a/../b"):
        for line in (f"/save {name}", f"/load {name}"):
            out = typed(other, line)
            assert "a name is wanted, not a path" in out
            assert out.count("\n") == 1
    assert sorted(file.name for file in home.rglob("*.talk")) == ["my talk.talk"]
    assert [*other.choices("load")] == ["my talk"]
    typed(other, "/resume " + chat.session.name)
    assert said(other) == kept


def test_a_talk_that_is_not_kept_may_be_saved(begin: Any, typed: Any, home: Path) -> None:
    chat = begin("--no-save")
    typed(chat, "Hello")
    assert not home.exists()
    typed(chat, "/save mine", "/rewind", "/load mine")
    assert [turn.user for turn in chat.session.turns] == ["Hello"]
    (home / "talks" / "mine.talk").unlink()
    (home / "talks").rmdir()
    (home / "talks").write_text("")
    assert typed(chat, "/save mine").startswith(f"{home}/talks")


def test_a_model_without_a_chat_format_says_so(gosling: Any, capsys: Any) -> None:
    for flags, said in ((["--template", "plain"], False), ([], True)):
        shelf = Shelf(load(BYTES[1], tokenizer="bytes"), command.parser().parse_args(flags), command.warn)
        Chat("v7", shelf.start(), shelf, look.Screen(), 8).greet()
        assert ("No chat format is known" in capsys.readouterr().out) is said


def test_the_state_is_drawn(begin: Any, typed: Any, gosling: Any) -> None:
    chat = begin()
    assert typed(chat, "/state").splitlines()[-1].split() == [f"{gosling.config.n_layer - 1}", "0.0000", "-"]
    lines = typed(chat, "Hello", "/state").splitlines()
    assert lines[0] == f"{gosling.state_size:,} numbers, 203 KB, whatever the length of the talk"
    for i, (line, rms) in enumerate(zip(lines[2:], look.by_layer(chat.session.state), strict=True)):
        assert line.split()[:2] == [f"{i}", f"{rms:.4f}"]
        assert line.split()[-1] == f"{rms:.4f}"  # what one turn changed since nothing
        assert "█" in line or rms < 1


def press(chat: Chat, monkeypatch: pytest.MonkeyPatch, where: int) -> None:
    """Ctrl-C at the reply's piece of this number."""
    shown = []
    piece = chat.screen.piece

    def pressing(text: str) -> None:
        piece(text)
        shown.append(text)
        if len(shown) == where:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat.screen, "piece", pressing)


def test_ctrl_c_ends_the_reply_and_the_talk_goes_on(begin: Any, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chat, handler = begin(), begin(), signal.getsignal(signal.SIGINT)
    typed(whole, "Tell me a story.")
    press(chat, monkeypatch, 4)
    assert "(stopped; /more goes on)" in typed(chat, "Tell me a story.")
    monkeypatch.undo()
    [turn] = chat.session.turns
    assert turn.stop_reason == "cancelled"
    assert 0 < len(turn.reply) < len(said(whole)[0][1])
    assert signal.getsignal(signal.SIGINT) == handler
    chat.max_tokens = 12 - (turn.tokens - whole.session.turns[0].tokens + 12)
    typed(chat, "/more")
    assert said(chat) == said(whole)
    typed(chat, "Hello")
    assert len(chat.session.turns) == 2


def test_ctrl_c_while_the_message_is_read(begin: Any, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = begin()
    typed(chat, "Hello")
    before = said(chat)
    forward = chat.session.model._forward

    def pressed(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return forward(*args)

    with monkeypatch.context() as patched:
        patched.setattr(chat.session.model, "_forward", pressed)
        assert "the talk is as it was" in typed(chat, "Tell me a story.")
        assert "the talk is as it was" in typed(chat, "/retry")
    assert said(chat) == before
    typed(chat, "Tell me a story.")
    fresh = begin()
    typed(fresh, "Hello", "Tell me a story.")
    assert said(chat) == said(fresh)


def test_a_lost_store_is_said_once_and_the_talk_goes_on(
    begin: Any, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = begin("--name", "river")
    typed(chat, "Hello")

    def full(*_: Any) -> bool:
        raise errors.CannotWrite("talks.db", "no space left on the device")

    with monkeypatch.context() as patched:
        patched.setattr(chat.shelf.store, "add", full)
        out = typed(chat, "Tell me a story.")
        assert out.count("talks.db: no space left on the device; the talk goes on in memory") == 1
        assert "talks.db" not in typed(chat, "What happened next?")
        assert len(begin("--resume").session.turns) == 1
    typed(chat, "Who are you?")
    assert len(said(chat)) == 4
    assert said(begin("--resume")) == said(chat)


def test_a_terminal_gets_no_codes_from_a_reply_or_a_mistake(begin: Any, typed: Any, capsys: Any) -> None:
    chat = begin()
    assert "\x1b" not in typed(chat, "/\x1b[2J", "/save \x1b]0;x\x07", "/set \x1b 1", "/goto \x1b[2J")
    capsys.readouterr()
    for piece in ("a\x1b", "[2J", "\r\x07 b\n", "\n\n"):
        chat.screen.piece(piece)
    chat.screen.end()
    assert capsys.readouterr().out == "a\\x1b[2J\\r\\x07 b\n"


# pipes

PIPED = ["chat", *BYTES, "--template", "world", "-n", "8"]


def test_every_line_of_a_pipe_is_a_turn(rookery: Any) -> None:
    code, out, err = rookery(
        *PIPED, "--name", "river", "--temperature", 0, stdin="Hello\n\n/quit\nTell \u00e4\n".encode()
    )
    assert code == 0
    assert [line.partition(" tokens")[0] for line in err.splitlines()] == [
        f"rookery: prompt {n}" for n in (23, 25, 27)
    ]  # fmt: skip
    model = load(BYTES[1], tokenizer="bytes")
    from rookery.session import Session

    talk = Session.resume(os.path.join(os.environ["XDG_DATA_HOME"], "rookery", "talks.db"), "river", model)
    assert [turn.user for turn in talk.turns] == ["Hello", "/quit", "Tell ä"]
    assert out == "".join(turn.reply + "\n" * (not turn.reply.endswith("\n")) for turn in talk.turns)


def test_json_is_one_object_a_reply(rookery: Any, home: Path) -> None:
    code, out, err = rookery(*PIPED, "--json", "--seed", 3, "--name", "river", stdin=b"Hello\nagain\n")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert {*first} == {"text", "stop_reason", "tokens", "prompt_tokens", "seconds", "talk", "turn"}
    assert (first["talk"], first["stop_reason"], len(first["tokens"])) == ("river", "length", 8)
    more = json.loads(rookery("chat", *BYTES, "--json", "-n", 8, "--resume", stdin=b"more\n").out)
    assert more["talk"] == "river"
    again = rookery(*PIPED, "--json", "--seed", 3, "--no-save", stdin=b"Hello\nagain\nmore\n").out
    assert [json.loads(line)["tokens"] for line in again.splitlines()] == [
        first["tokens"], second["tokens"], more["tokens"]
    ]  # fmt: skip


def test_nothing_is_kept_when_asked(rookery: Any, home: Path) -> None:
    assert rookery(*PIPED, "--no-save", stdin=b"Hello\n").code == 0
    assert not home.exists()


def test_what_is_kept_is_private(rookery: Any, home: Path) -> None:
    rookery(*PIPED, stdin=b"Hello\n")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (home, home / "talks", home / "talks.db")}
    assert modes == {"rookery": "0o700", "talks": "0o700", "talks.db": "0o600"}


BAD = {
    "an unknown profile": ((*PIPED, "--profile", "x"), "no profile 'x'; choose from g1"),
    "a path as a name": ((*PIPED, "--name", "../x"), "a name is wanted, not a path"),
    "no talk yet": (("chat", *BYTES, "--resume"), "no talk of this model is kept yet"),
    "no such talk": (("chat", *BYTES, "--resume", "river"), "'river'"),
    "keeping nothing and going on": (("chat", *BYTES, "--resume", "--no-save"), "--no-save keeps nothing"),
    "a new system for an old talk": (("chat", *BYTES, "--resume", "--system", "x"), "--system is for a new talk"),
    "a temperature below 0": ((*PIPED, "--temperature", "-1"), "temperature=-1.0: wanted"),
    "thoughts without a form": ((*PIPED, "--think", "on"), "think='on'"),
    "an unknown template": (("chat", *BYTES, "--template", "x"), "template"),
    "a store that is none": ((*PIPED, "--store", __file__), __file__),
}


@pytest.mark.parametrize(("args", "part"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line(rookery: Any, args: tuple[object, ...], part: str) -> None:
    check_mistake(rookery(*args, stdin=b"Hello\n"), part)


def test_a_line_that_is_not_utf8_is_named(rookery: Any) -> None:
    code, _, err = rookery(*PIPED, stdin=b"Hello\nab\xff\n")
    assert code == 2
    assert err.splitlines()[-1] == "rookery: stdin, line 2: byte 2 (0xff) is not valid UTF-8"


def test_the_talk_of_another_model_is_refused(rookery: Any, begin: Any, typed: Any) -> None:
    typed(begin("--name", "river"), "Hello")
    check_mistake(rookery("chat", *BYTES, "--resume", "river", stdin=b"x\n"), "river", "another model")
    check_mistake(rookery("chat", *BYTES, "--resume", stdin=b"x\n"), "no talk of this model is kept yet")


@pytest.mark.parametrize("spoil", [
    lambda home: (home / "talks.db").write_bytes(b"no database at all, but text" * 99),
    lambda home: (home / "talks.db").mkdir(),
], ids=["damaged", "a folder"])  # fmt: skip
def test_without_its_usual_store_a_talk_is_in_memory(rookery: Any, home: Path, spoil: Any) -> None:
    home.mkdir(parents=True)
    spoil(home)
    code, out, err = rookery(*PIPED, stdin=b"Hello\n")
    assert (code, len(out) > 0) == (0, True)
    first, second = err.splitlines()
    assert first.startswith(f"rookery: {home}/talks.db: ")
    assert first.endswith("; this talk is kept in memory only")
    assert second.startswith("rookery: prompt ")
    check_mistake(rookery("chat", *BYTES, "--resume", stdin=b"x\n"), "talks.db")


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from rookery.cli.chat_shelf import data_folder

    monkeypatch.setenv("HOME", "/home/x")
    for value in ("relative", ""):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert data_folder() == "/home/x/.local/share/rookery"


@pytest.mark.parametrize("absent", ["rich", "prompt_toolkit"])
def test_a_missing_extra_is_said_before_the_model_is_read(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == absent else name)
    args = command.parser().parse_args(["-m", "/no/such/model"])
    with pytest.raises(errors.MissingExtra, match=r"pip install 'rookery\[chat\]'"):
        command._check(args, terminal=True)
    command._check(args, terminal=False)
