"""Output held to a grammar: what may be written, when it ends, and grammars that are wrong or too much."""

from __future__ import annotations

import gc
import gzip
import importlib.util
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import tokenizer as tokenizers
from rookery.chat import grammar as room
from rookery.chat.grammar import Grammar, constraint
from rookery.errors import InputError, MissingExtra, TokenError
from rookery.stream import Constraint

FIXTURES = Path(__file__).parents[1] / "fixtures"
_spec = importlib.util.spec_from_file_location("constrained", FIXTURES.parents[1] / "benchmarks" / "constrained.py")
assert _spec
assert _spec.loader
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

BYTES = tokenizers.load("bytes")
AB = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def gosling() -> Any:
    return rookery.load("gosling")


@pytest.fixture(scope="module")
def world() -> Any:
    return tokenizers.load("world")


def taken(made: Constraint, text: str) -> str:
    """What of the text, byte by byte, is taken."""
    fresh = made.copy()
    for n, byte in enumerate(text.encode()):
        if fresh.complete or not fresh.allowed()[byte]:
            return text.encode()[:n].decode()
        fresh.accept(byte)
    return text


def finishes(made: Grammar, text: str) -> bool:
    fresh = made.copy()
    return taken(made, text) == text and (all_of(fresh, text) or fresh.finished)


def all_of(fresh: Grammar, text: str) -> bool:
    for byte in text.encode():
        fresh.accept(byte)
    return fresh.complete


# replies of a model


def test_hot_replies_are_valid(gosling: Any) -> None:
    found = benchmark.replies(gosling, 32)
    assert sum(row["finished"] for row in found.values()) >= 24
    assert all(row["valid"] == row["finished"] for row in found.values())


@pytest.mark.parametrize("version", ["v4", "v5.2", "v6", "v7"])
def test_models_of_bytes_end_when_nothing_more_can_come(version: str) -> None:
    model = rookery.load(FIXTURES / f"{version}.safetensors", tokenizer="bytes")
    made = Grammar.from_schema(benchmark.SCHEMAS["person"], model.tokenizer, model.config.n_vocab)
    stream = model.stream("x", 200, temperature=1.5, top_p=1.0, seed=1, constraint=made)
    text = "".join(stream)
    assert stream.stop_reason == "end"
    assert benchmark.judged(text, benchmark.SCHEMAS["person"])


def test_a_length_that_is_too_short_is_told_apart(gosling: Any) -> None:
    made = Grammar.from_schema(AB, gosling.tokenizer, gosling.config.n_vocab)
    stream = gosling.stream("x", 3, seed=1, constraint=made)
    assert not benchmark.judged("".join(stream), AB)
    assert stream.stop_reason == "length"
    assert not made.finished


WRONG = {
    "no JSON": ("person", '{"name": "x"'),
    "a name missing": ("person", '{"name":"x","age":3}'),
    "one name too many": ("person", '{"name":"x","age":3,"kind":true,"more":1}'),
    "a name twice": ("person", '{"name":"x","name":"x","age":3,"kind":true}'),
    "too short": ("person", '{"name":"","age":3,"kind":true}'),
    "too long": ("person", '{"name":"12345678901234567","age":3,"kind":true}'),
    "out of range": ("person", '{"name":"x","age":121,"kind":true}'),
    "1 for true": ("person", '{"name":"x","age":3,"kind":1}'),
    "true for 1": ("choice", '{"n":true}'),
    "the bound itself": ("choice", '{"n":42}'),
    "not in the enum": ("enum", '{"animal":"hen","mood":"é"}'),
    "not the const": ("enum", '{"animal":"cock","mood":"sad"}'),
    "too many items": ("array", "[1,2,3,4,5,6,7]"),
    "too few items": ("array", "[1]"),
    "a $ref": ("nested", '{"where":{"name":"","at":{"x":1,"y":2}},"tags":[]}'),
    "a wrong pattern": ("pattern", '{"code":"abc-11","part":"c"}'),
    "no multiple": ("number", '{"price":1.1,"share":2}'),
    "an odd number": ("number", '{"price":1,"share":3}'),
    "NaN": ("choice", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), WRONG.values(), ids=WRONG)
def test_the_judge_and_the_grammar_refuse_what_is_wrong(name: str, text: str) -> None:
    assert not benchmark.judged(text, benchmark.SCHEMAS[name])
    assert not finishes(Grammar.from_schema(benchmark.SCHEMAS[name], BYTES, 256), text)


# what may come next


def test_json_is_compact_with_at_most_one_blank() -> None:
    made = Grammar.from_schema(AB, BYTES, 256)
    for text in ('{"a":1,"b":[1,2]}', '{"a": 1, "b": [1, 2]}', '{"a":-7,"b":[]}'):
        assert finishes(made, text)
    assert taken(made, '{"a":  1') == '{"a": '
    assert taken(made, '{ "a"') == "{"
    assert taken(made, '{"a":1,\n"b"') == '{"a":1,'
    assert taken(made, '{"a":1 }') == '{"a":1'


def test_a_schema_cannot_loosen_this() -> None:
    loose = {"type": "array", "items": {"type": "null"}}
    with pytest.raises(InputError, match="unknown keyword 'x-guidance'"):
        Grammar.from_schema({**loose, "x-guidance": {"whitespace_flexible": True}}, BYTES, 256)


FORMS = {
    "regex": ({"regex": "^a+b?$"}, ["a", "aab"], ["", "b", "abb"]),
    "letters of all scripts": ({"regex": r"[\p{Greek}é]{2}"}, ["éλ"], ["ea"]),
    "lark": ({"grammar": 'start: "(" start ")" | N\nN: /[0-9]+/'}, ["7", "((12))"], ["()", "(1"]),
    "gbnf": ({"grammar": 'root ::= "yes" | "no" x\nx ::= "!"{2}'}, ["yes", "no!!"], ["no", "no!"]),
    "gbnf escapes": (
        {"grammar": 'root ::= [\\u0041-\\u0043] "\\u00e9\\U0001F423\\x21" "\\\\u0041"'},
        ["Bé🐣!\\u0041"],
        ["Dé🐣!\\u0041"],
    ),
    "a schema of text": ({"schema": '{"enum": ["é", 1]}'}, ['"é"', "1"], ["é", "2"]),
}  # fmt: skip


@pytest.mark.parametrize(("form", "right", "wrong"), FORMS.values(), ids=FORMS)
def test_forms(form: dict[str, str], right: list[str], wrong: list[str]) -> None:
    made = constraint(BYTES, 256, **form)
    assert all(finishes(made, text) for text in right)
    assert not any(finishes(made, text) for text in wrong)


class Gapped(tokenizers.Bytes):
    def token_bytes(self, id: int) -> bytes:
        if id == 7:
            raise TokenError("7 is a gap")
        return super().token_bytes(id)


def test_only_tokens_with_bytes_are_allowed(world: Any) -> None:
    made = Grammar.from_regex("(?s:.)*", world, 65_540)
    allowed = made.allowed()
    assert allowed.shape == (65_540,)
    assert allowed[0]  # the text may end
    assert not allowed[65_530:].any()  # World's gaps, and rows beyond it
    assert not made.complete
    assert Grammar.from_regex("a", BYTES, 300).allowed().nonzero()[0].tolist() == [ord("a")]
    with pytest.raises(InputError, match="allows no text"):
        Grammar.from_lark("start: <[7]>", Gapped(), 256)


def test_a_hugging_face_vocabulary(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    file = tmp_path / "20B_tokenizer.json"
    file.write_bytes(gzip.decompress((shared / "fixtures/tokenizer/20B_tokenizer.json.gz").read_bytes()))
    tokenizer = tokenizers.load(file)
    made = Grammar.from_schema(AB, tokenizer, 50_277)
    text = '{"a": 12, "b": [345, -6]}'
    for token in tokenizer.encode(text):
        made.accept(token)
    assert made.complete
    assert made.allowed().nonzero()[0].tolist() == [tokenizer.end]


def test_the_end_is_allowed_only_where_the_text_may_end(world: Any) -> None:
    made = Grammar.from_regex("ab?", world, 65_536)
    assert not made.allowed()[0]
    made.accept(world.encode("a")[0])
    assert made.allowed()[0]
    assert made.finished
    assert not made.complete
    made.accept(world.encode("b")[0])
    assert made.complete


def test_an_empty_text_is_complete_at_once(gosling: Any) -> None:
    for of in (gosling.tokenizer, BYTES):
        assert Grammar.from_regex("", of, 4096).complete
    stream = gosling.stream("x", 9, constraint=Grammar.from_regex("", gosling.tokenizer, 4096))
    assert ("".join(stream), stream.stop_reason) == ("", "end")


def test_a_copy_begins_anew() -> None:
    made = Grammar.from_regex("abc", BYTES, 256)
    made.accept(ord("a"))
    other = made.copy()
    assert other.allowed()[ord("a")]
    assert made.allowed()[ord("b")]
    other.accept(ord("a"))
    other.accept(ord("b"))
    assert made.allowed().nonzero()[0].tolist() == [ord("b")]


def test_many_copies_do_not_add_up_to_a_limit(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room.LIMITS, "max_lexer_states", 3000)
    made = Grammar.from_regex("(a|b)*a(a|b){24}c", world, 65_536)
    random = np.random.default_rng(1)
    for _ in range(150):
        fresh = made.copy()
        for _ in range(12):
            fresh.accept(int(random.choice(fresh.allowed().nonzero()[0])))
            if fresh.complete:
                break


@pytest.mark.parametrize("token", [ord("b"), -1, 256, 70_000])
def test_a_token_that_is_not_allowed_is_an_error(token: int) -> None:
    made = Grammar.from_regex("abc", BYTES, 256)
    with pytest.raises(InputError, match=f"does not allow the token {token} here"):
        made.accept(token)
    assert finishes(made, "abc")


def test_a_vocabulary_is_read_once_and_let_go() -> None:
    tokenizer: Any = tokenizers.Bytes()
    first, second = (Grammar.from_regex("a", tokenizer, 256) for _ in range(2))
    assert first._words is second._words
    gone = weakref.ref(tokenizer)
    del tokenizer, first, second
    gc.collect()
    assert gone() is None


# what is refused

BOMB = "((a{1000}){1000}){1000}"


def doubled(name: str, count: int) -> str:
    rules = [f"{name}{i}: {name}{i + 1} {name}{i + 1}" for i in range(count)]
    return "\n".join([f"start: {name}0", *rules, f'{name}{count}: "a"'])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "exactly one of a schema, a regex and a grammar"),
    "two": ({"regex": "a", "schema": {}}, "exactly one"),
    "no JSON": ({"schema": "{"}, "the JSON schema is not valid JSON"),
    "no object": ({"schema": "[1]"}, "wanted an object"),
    "no number": ({"schema": {"const": float("nan")}}, "the JSON schema is not valid JSON"),
    "a misspelt keyword": ({"schema": {"anyOf": [{"minLenght": 3}]}}, "#/anyOf/0: unknown keyword 'minLenght'; 'minL"),
    "a keyword unsupported": ({"schema": {"properties": {"a": {"not": {}}}}}, "#/properties/a: the keyword 'not' is"),
    "an unknown type": ({"schema": {"type": "strin"}}, "Invalid type: strin"),
    "an unknown format": ({"schema": {"type": "string", "format": "roman"}}, "Unknown format: roman"),
    "a remote $ref": ({"schema": {"$ref": "http://localhost:9/x.json"}}, "does not fetch"),
    "a $ref to nowhere": ({"schema": {"$ref": "#/nowhere"}}, "Pointer '/nowhere' does not exist"),
    "a $ref to itself": ({"schema": {"$ref": "#"}}, "allows no text"),
    "a oneOf that overlaps": ({"schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "say anyOf"),
    "no choice": ({"schema": {"enum": []}}, "Unsatisfiable"),
    "an empty range": ({"schema": {"type": "integer", "minimum": 5, "maximum": 4}}, "Unsatisfiable"),
    "deep JSON": ({"schema": '{"items":' * 5000 + "{}" + "}" * 5000}, "nested too deeply"),
    "deep items": ({"schema": '{"items":' * 200 + "{}" + "}" * 200}, "recursion limit"),
    "a long text": ({"regex": "a" * 300_000}, "has 300000 bytes; at most 262144"),
    "half a character": ({"regex": "\ud800"}, "surrogate"),
    "open": ({"regex": "(a"}, "unclosed group"),
    "look-around": ({"regex": "(?=a)b"}, "look-around"),
    "deep groups": ({"regex": "(" * 5000 + "a" + ")" * 5000}, "nested"),
    "no letter": ({"regex": r"[^\s\S]"}, "allows no text"),
    "nothing in common": ({"grammar": "start: T\nT: /a/ & /b/"}, "allows no text"),
    "left recursion without end": ({"grammar": "start: start"}, "allows no text"),
    "a ring": ({"grammar": "start: a\na: b\nb: a"}, "allows no text"),
    "no start": ({"grammar": 'a: "x"'}, "no start"),
    "deep Lark": ({"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000}, "too deeply nested"),
    "terminals doubled": ({"grammar": doubled("T", 40)}, "too big"),
    "no root": ({"grammar": 'a ::= "x"'}, "'root'"),
    "an open class": ({"grammar": "root ::= [a-z"}, "GBNF grammar: Unexpected end"),
    "an open escape": ({"grammar": 'root ::= "\\'}, "GBNF grammar"),
    "deep GBNF": ({"grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000}, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "part"), REFUSED.values(), ids=REFUSED)
def test_refused(form: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as caught:
        constraint(BYTES, 256, **form)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


LATER = {
    "a regex bomb": {"regex": BOMB},
    "a pattern bomb": {"schema": {"type": "string", "pattern": f"^{BOMB}$"}},
    "rules doubled": {"grammar": doubled("r", 60)},
    "many properties": {"schema": {"type": "object", "properties": {f"p{i}": {} for i in range(2500)}}},
}


@pytest.mark.parametrize("form", LATER.values(), ids=LATER)
def test_too_much_work_at_a_token_is_an_error(form: dict[str, Any], gosling: Any) -> None:
    """Never a silent end."""
    with pytest.raises(InputError, match="too much work at one token"):
        for _ in gosling.stream("x", 50, temperature=0, constraint=constraint(gosling.tokenizer, 4096, **form)):
            pass


LADDER = {**{str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(25)}, "25": {"type": "null"}}
HARMLESS = {
    "(a|aa)*": ({"regex": "(a|aa)*b"}, "aaab"),
    "stars in stars": ({"regex": "((a*)*)*b"}, "aab"),
    "many states": ({"regex": "(a|b)*a(a|b){24}c"}, "a" + 24 * "b" + "c"),
    "a huge enum": ({"schema": {"enum": [f"k{i}" for i in range(15_000)]}}, '"k14999"'),
    "a $ref that calls itself": (
        {"schema": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}]}},
        "[[[null]]]",
    ),
    "$refs doubled": ({"schema": {"$ref": "#/$defs/0", "$defs": LADDER}}, "null"),
    "left recursion": ({"grammar": 'start: start "a" | "a"'}, "aaa"),
    "ambiguity": ({"grammar": 'start: start start start | start start | "a" | ""'}, "aaaa"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "text"), HARMLESS.values(), ids=HARMLESS)
def test_what_looks_like_a_bomb_and_is_none(form: dict[str, Any], text: str) -> None:
    assert finishes(constraint(BYTES, 256, **form), text)


@pytest.mark.parametrize(
    ("seconds", "memory", "number"), [(3.0, 8, 99_989), (0.0, 4096, 1_999_993)], ids=["memory", "time"]
)
def test_compiling_is_bounded(monkeypatch: pytest.MonkeyPatch, seconds: float, memory: int, number: int) -> None:
    form: Any = {"schema": {"type": "integer", "multipleOf": number}}
    monkeypatch.setattr(room, "SECONDS", seconds)
    monkeypatch.setattr(room, "MEMORY", memory << 20)
    with pytest.raises(InputError, match=f"takes more than {seconds:g} s or {memory} MB to compile"):
        constraint(BYTES, 256, **form)


def test_large_numbers_compile_where_they_can() -> None:
    assert finishes(constraint(BYTES, 256, schema={"type": "integer", "multipleOf": 99_989}), "199978")


BOUNDED = """
import json, resource, sys
from rookery import tokenizer
from rookery.bench import memory
from rookery.chat.grammar import constraint
from rookery.errors import InputError
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
bytes_only = tokenizer.load("bytes")
for form in json.load(sys.stdin):
    try:
        made = constraint(bytes_only, 256, **form)
        for _ in range(30):
            made.accept(int(made.allowed().argmax()))
    except InputError:
        pass
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(memory.peak() >> 10, children)  # one's own ru_maxrss may be that of the program that started one
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB and RLIMIT_AS are Linux's")
def test_bombs_fit_into_two_gigabytes() -> None:
    forms = [
        *LATER.values(),
        *(form for form, _ in HARMLESS.values()),
        {"schema": {"type": "integer", "multipleOf": 9_999_991}},
    ]
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED], input=json.dumps(forms), capture_output=True, text=True, check=True
    )
    here, there = map(int, done.stdout.split())
    assert here < 1 << 20
    assert there < 1 << 20


# where it cannot work


def test_another_encoding_is_refused() -> None:
    with pytest.raises(InputError, match="utf16le"):
        Grammar.from_regex("a", tokenizers.load("utf16le"), 256)


def test_a_compiler_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho one >&2\necho no library >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(InputError, match="the process that compiles it failed: no library"):
        Grammar.from_regex("never compiled before", BYTES, 256)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"constrained output needs .*rookery\[chat\]"):
        Grammar.from_regex("a", BYTES, 256)


def test_the_library_is_imported_when_needed() -> None:
    program = "import sys, rookery.chat.grammar; print('llguidance' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program]) == b"False\n"
