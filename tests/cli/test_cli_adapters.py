"""--adapter, --alpha and --state of generate, chat and serve: what runs, what is refused, and in which words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terminal import BYTES, MODEL, check_mistake

from adapters_made import adapter
from rookery import State, formats, load, weights
from rookery.formats import Tensor
from rookery.weights import adapters
from rookery.weights.adapters import LowRank, file

SHORT = ["generate", *BYTES, "-n", "12", "--temperature", "0", "--json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files: one, two (adapters), others (a .pth without its alpha), of_v6; state (of the model), both (with one)."""
    folder, of = tmp_path_factory.mktemp("adapters"), weights.load(MODEL)
    paths = {name: folder / f"{name}.safetensors" for name in ("one", "two", "torn", "of_v6", "state", "both")}
    one = adapter(of, seed=0)
    file.write(paths["one"], one)
    file.write(paths["two"], adapter(of, seed=1))
    file.write(paths["of_v6"], adapter(weights.load(MODEL.replace("v7", "v6"))))
    name, part = next(iter(one.parts.items()))
    assert isinstance(part, LowRank)
    file.write(paths["torn"], replace(one, parts=one.parts | {name: replace(part, b=part.b[:, 1:])}))
    paths["others"] = folder / "others.pth"
    formats.write(
        paths["others"],
        {
            f"{name.removesuffix('.weight')}.lora_{side.upper()}": Tensor.of(getattr(part, side))
            for name, part in one.parts.items()
            for side in "ab"
        },
    )
    model = load(MODEL, tokenizer="bytes")
    state = model.state()
    state.flat[:] = 3.0  # more than the tiny model can forget at once
    state.save(paths["state"])
    State(model.config, state.flat, model.adapted(paths["one"]).weights).save(paths["both"])
    return SimpleNamespace(**paths)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where talks are kept in these tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "rookery"


def written(rookery: Any, *args: object) -> Any:
    code, out, err = rookery(*SHORT, *args, "Once upon")
    assert (code, err) == (0, "")
    return json.loads(out)


def expected(*given: Path, state: Path | None = None) -> str:
    model = load(MODEL, tokenizer="bytes", adapter=list(given))
    begin = None if state is None else State.load(state, model)
    return model.generate("Once upon", 12, temperature=0, state=begin)


def test_generate_runs_adapters_and_states(rookery: Any, made: Any) -> None:
    one, two, state, both = made.one, made.two, made.state, made.both
    cases = [
        ([], expected()),
        (["--adapter", one], expected(one)),
        (["--adapter", one, "--adapter", two], expected(one, two)),
        (["--state", state], expected(state=state)),
        (["--adapter", one, "--state", both], expected(one, state=both)),
    ]
    assert len({text for _, text in cases}) == len(cases)
    for args, text in cases:
        report = written(rookery, *args)
        assert report["text"] == text
        assert report.get("adapter", []) == [str(a) for a in args if a in (one, two)]
        assert report.get("state") == next((str(a) for a in args if a in (state, both)), None)


def test_others_files_need_their_alpha(rookery: Any, made: Any) -> None:
    check_mistake(rookery(*SHORT, "--adapter", made.others, "x"), "others.pth", "alpha")
    wanted = adapters.load(made.others, alpha=0.3)
    model = load(MODEL, tokenizer="bytes", adapter=wanted)
    report = written(rookery, "--adapter", made.others, "--alpha", "0.3")
    assert report["text"] == model.generate("Once upon", 12, temperature=0) != expected()


MISTAKES = [
    (["--adapter", "of_v6"], "made for another model"),
    (["--adapter", "torn"], "whose ranks do not meet"),
    (["--adapter", "state"], "not an adapter"),
    (["--adapter", "nowhere"], "check the path"),
    (["--adapter", "one", "--alpha", "2"], "--alpha"),
    (["--state", "nowhere"], "check the path"),
]
LATE = [
    (["--state", "one"], "not a state file"),
    (["--state", "both"], "another model"),
    (["--adapter", "one", "--state", "state"], "leave the adapter out"),
]


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
@pytest.mark.parametrize(("args", "part"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_packed(
    command: str, args: list[str], part: str, rookery: Any, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "serve":
        pytest.importorskip("fastapi")
    monkeypatch.setattr("rookery.model.runner", lambda *_, **__: pytest.fail("a back end was made"))
    check_mistake(rookery(command, *BYTES, *more(command, args, made)), part)


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
@pytest.mark.parametrize(("args", "part"), LATE)
def test_a_state_of_another_model_is_one_line(
    command: str, args: list[str], part: str, rookery: Any, made: Any
) -> None:
    if command == "serve":
        pytest.importorskip("fastapi")
    check_mistake(rookery(command, *BYTES, *more(command, args, made)), part)


def more(command: str, args: list[str], made: Any) -> list[str]:
    found = [str(getattr(made, arg, arg)) for arg in args]
    return found + {"generate": ["x"], "chat": [], "serve": ["--port", "0", "--log-level", "error"]}[command]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--adapter", "mine=nowhere"], "nowhere"),
        (["--adapter", "mine=OF_V6"], "made for another model"),
        (["--adapter", "v7=ONE"], "two models cannot both be called 'v7'"),
        (["--state", "STATE", "--state", "STATE"], "cannot begin with two states"),
        (["--state", "a=STATE", "--state", "a=STATE"], "a cannot begin with two states"),
        (["--state", "a=nowhere"], "nowhere"),
        (["--state", "a=BOTH"], "another model"),
    ],
)
def test_mistakes_with_names(args: list[str], part: str, rookery: Any, made: Any) -> None:
    pytest.importorskip("fastapi")
    filled = [
        arg.replace("OF_V6", str(made.of_v6))
        .replace("ONE", str(made.one))
        .replace("STATE", str(made.state))
        .replace("BOTH", str(made.both))
        for arg in args
    ]
    check_mistake(rookery("serve", *BYTES, "--port", "0", "--log-level", "error", *filled), part)


def test_names_and_paths_with_an_equals_sign(tmp_path: Path) -> None:
    from rookery.cli import serve

    (tmp_path / "a=b").touch()
    odd = str(tmp_path / "a=b")
    plain, named = serve._ids(["x.pth", "n=one", "m=a=b", "n=two", odd, "./c=d"])
    assert plain == ["x.pth", odd, "./c=d"]
    assert named == {"n": ["one", "two"], "m": ["a=b"]}


# chat


CHAT = ["chat", *BYTES, "-n", "5", "--temperature", "0", "--json"]


def replies(rookery: Any, *args: object, stdin: bytes) -> list[Any]:
    code, out, _ = rookery(*CHAT, *args, stdin=stdin)
    assert code == 0
    return [json.loads(line)["text"] for line in out.splitlines()]


def test_a_talk_that_began_with_a_state_goes_on_without_naming_it(rookery: Any, made: Any) -> None:
    whole = replies(rookery, "--state", made.state, "--no-save", stdin=b"one\ntwo\n")
    assert whole != replies(rookery, "--no-save", stdin=b"one\ntwo\n")
    first = replies(rookery, "--state", made.state, "--name", "mine", stdin=b"one\n")
    second = replies(rookery, "--resume", "mine", stdin=b"two\n")
    assert first + second == whole
    check_mistake(rookery(*CHAT, "--resume", "mine", "--state", made.state), "--state is for a new talk")


def test_a_talk_belongs_to_its_adapter(rookery: Any, made: Any) -> None:
    whole = replies(rookery, "--adapter", made.one, "--no-save", stdin=b"one\ntwo\n")
    first = replies(rookery, "--adapter", made.one, "--name", "mine", stdin=b"one\n")
    for other in ([], ["--adapter", made.two]):
        check_mistake(rookery(*CHAT, *other, "--resume", "mine"), "'mine'", "another model")
    assert first + replies(rookery, "--adapter", made.one, "--resume", stdin=b"two\n") == whole


def test_the_terminal_says_what_is_beside_the_model() -> None:
    from rookery.cli import options

    args = SimpleNamespace(
        model="models/base.gguf", adapter=["a/story.safetensors", "tone/adapter.safetensors", "peft/"]
    )
    assert options.model_name(args) == "base + story + tone + peft"  # type: ignore[arg-type]
