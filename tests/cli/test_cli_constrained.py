"""`rookery generate` with --schema, --regex, --grammar and --stop."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from terminal import BYTES, check_mistake, finish, start

HOT = ["generate", "-n", "200", "--temperature", "1.5", "--top-p", "1", "--seed", "1"]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"enum": [7, 8, 9]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def check_person(text: str) -> None:
    found = json.loads(text)
    assert list(found) == ["name", "age"]
    assert len(found["name"]) <= 9
    assert found["age"] in (7, 8, 9)


@pytest.mark.parametrize("model", [[], BYTES], ids=["gosling", "bytes"])
def test_all_of_stdout_is_json_that_the_schema_allows(rookery: Any, tmp_path: Path, model: list[str]) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    for schema in (file, json.dumps(PERSON)):
        code, out, err = rookery(*HOT, *model, "--schema", schema, "Who?")
        assert code == 0
        check_person(out)
        assert err.startswith("rookery: prompt ")
    check_person(finish(start(*HOT, *model, "--schema", file, stdin=subprocess.PIPE), b"Who?").out)


def test_the_report_says_why_it_ended(rookery: Any) -> None:
    schema = json.dumps(PERSON)
    whole = json.loads(rookery(*HOT, "--schema", schema, "--json", "Who?").out)
    assert whole["stop_reason"] == "end"
    check_person(whole["text"])
    assert json.loads(rookery(*HOT, "-n", "2", "--schema", schema, "--json", "Who?").out)["stop_reason"] == "length"


def test_an_unfinished_text_is_told(rookery: Any) -> None:
    said = "rookery: the text is unfinished: -n allows no more tokens\n"
    assert rookery(*HOT, "-n", "2", "--schema", json.dumps(PERSON), "Who?").err.startswith(said)
    assert said not in rookery(*HOT, *BYTES, "-n", "2", "--regex", "[ab]*", "Who?").err  # it could have ended here


def test_a_regex(rookery: Any) -> None:
    out = rookery(*HOT, "--regex", "[a-c]{3}-[0-9]{2}", "Who?").out
    assert re.fullmatch("[a-c]{3}-[0-9]{2}\n", out)


def test_grammars_of_both_kinds(rookery: Any, tmp_path: Path) -> None:
    for name, text in (("x.gbnf", 'root ::= "yes" | "no" x\nx ::= "!"{2}'), ("x.lark", 'start: "yes" | "no" "!!"')):
        file = tmp_path / name
        file.write_text(text)
        assert rookery(*HOT, "--grammar", file, "Is it?").out in ("yes\n", "no!!\n")


def test_stop_texts_are_not_printed(rookery: Any) -> None:
    plain = json.loads(rookery("generate", "-n", "60", "--seed", "1", "--json", "Once upon a time").out)["text"]
    first, second = plain[20:25], plain[10:14]
    cut = ["generate", "-n", "60", "--seed", "1", "--stop", first, "--stop", second, "Once upon a time"]
    at = min(plain.index(first), plain.index(second))
    reply = json.loads(rookery(*cut, "--json").out)
    assert (reply["text"], reply["stop_reason"]) == (plain[:at], "stop")
    assert rookery(*cut).out == plain[:at] + "\n" * (not plain[:at].endswith("\n"))


def test_a_space_after_the_colon_is_one_warning(rookery: Any) -> None:
    said = "rookery: the prompt ends in a colon and a space; leave the space out, the reply begins with it\n"
    prompt = "User: Who?\n\nAssistant:"
    assert rookery(*HOT, "-n", "0", prompt + " ").err.count(said) == 1
    assert said not in rookery(*HOT, "-n", "0", prompt).err


BAD = {
    "two at once": (["--regex", "a", "--schema", "/no/such"], "--schema and --regex: a text can follow only one"),
    "no schema file": (["--schema", "/no/such"], "/no/such: no such file; wanted a JSON schema"),
    "no grammar file": (["--grammar", "/no/such"], "/no/such: no such file; wanted a grammar in Lark or GBNF"),
    "no JSON": (["--schema", "{"], "the JSON schema is not valid JSON"),
    "an unknown keyword": (["--schema", '{"minLenght": 3}'], "unknown keyword 'minLenght'"),
    "a regex that is wrong": (["--regex", "(a"], "the regular expression: at 1(8)"),
    "no text at all": (["--regex", r"[^\s\S]"], "the regular expression allows no text"),
    "an empty stop text": (["--stop", ""], "stop"),
}


@pytest.mark.parametrize(("args", "part"), BAD.values(), ids=BAD)
def test_bad_forms_are_one_line(rookery: Any, args: list[str], part: str) -> None:
    check_mistake(rookery("generate", *BYTES, *args, "x"), part)


def test_another_encoding_is_refused(rookery: Any) -> None:
    check_mistake(rookery("generate", *BYTES[:2], "--tokenizer", "utf16le", "--regex", "a", "x"), "UTF-8")
