"""Hostile vocabularies: every way to be wrong is one line that names the file and the line; both tries say the same."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import _native, errors
from rookery.tokenizer import World, load
from rookery.tokenizer.trie import Trie
from rookery.tokenizer.world import shipped_vocabulary

GOOD = [b"%d %s 1" % (i + 1, repr(bytes((i,))).encode()) for i in range(256)]
TRIES = [Trie, *([_native.core.Trie] if _native.available() else [])]

LITERAL = "line 258: the token is not a string or bytes literal as Python's repr\\(\\) writes it"
ID = "line 258: the id must be a number from 1 to 1048576"
BAD_LINES = {
    b"": "line 258: wanted `id literal length`",
    b"'a' 1": "line 258: wanted `id literal length`",
    b"0 'ab' 2": ID,
    b"-1 'ab' 2": ID,
    b"+300 'ab' 2": ID,
    b"1048577 'ab' 2": ID,
    b"99999999999999999999999999 'ab' 2": ID,
    b"0x12 'ab' 2": ID,
    b"1_000 'ab' 2": ID,
    b"\xef\xbb\xbf300 'ab' 2": ID,
    "٣٠٠ 'ab' 2".encode(): ID,
    b"300 ab 2": LITERAL,
    b"300 'ab 2": LITERAL,
    b"300 ' 2": LITERAL,
    b"300 'ab\" 2": LITERAL,
    b"300 'a'b' 3": LITERAL,
    b"300 'a' 'b' 2": LITERAL,
    b"300 u'ab' 2": LITERAL,
    b"300 bb'ab' 2": LITERAL,
    b"300 f'{1}' 1": LITERAL,
    b"300 'ab' + 'c' 3": LITERAL,
    b"300 ('ab') 2": LITERAL,
    b"300 12 2": LITERAL,
    b"300 __import__('os') 2": LITERAL,
    b"300  'ab' 2": LITERAL,
    b"300 'a\\' 2": LITERAL,
    b"300 'a\\q' 2": LITERAL,
    b"300 'a\\101' 2": LITERAL,
    b"300 'a\\x4' 2": LITERAL,
    b"300 'a\\x+4' 2": LITERAL,
    b"300 'a\\N{DIGIT ONE}' 2": LITERAL,
    b"300 'a\\ud800' 4": LITERAL,
    b"300 'a\\U00110000' 5": LITERAL,
    b"300 b'a\\u0041' 2": LITERAL,
    b"300 b'a\xc3\xa9' 3": LITERAL,
    b"300 'a\xff' 2": LITERAL,
    b"300 'a\xc0\x80' 3": LITERAL,
    b"300 'a\xe0\x80\x80' 4": LITERAL,
    b"300 'a\xed\xa0\x80' 4": LITERAL,
    b"300 'a\xf4\x90\x80\x80' 5": LITERAL,
    b"300 'a\xf8\x88\x80\x80\x80' 6": LITERAL,
    b"300 'a\xe2\x82' 3": LITERAL,
    b"300 'a\x00' 2": LITERAL,
    b"300 'a\r' 2": LITERAL,
    b"300 '' 0": "line 258: the token is empty",
    b"300 'ab' 3": "line 258: the length is wrong, the token has 2 bytes",
    b"300 '\xc3\xa9' 1": "line 258: the length is wrong, the token has 2 bytes",
    b"300 'ab' -2": "line 258: the length is wrong, the token has 2 bytes",
    b"300 'ab' ": "line 258: the length is wrong, the token has 2 bytes",
    b"300 'ab' 2\r\r": "line 258: the length is wrong, the token has 2 bytes",
    b"257 'ab' 2": "line 258: id 257 was given before",
    b"300 'th' 2": "line 258: the token was given before",
    b"300 b'th' 2": "line 258: the token was given before",
    b"300 '\\x74h' 2": "line 258: the token was given before",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES, ids=repr)
@pytest.mark.parametrize("trie", TRIES, ids=["python", "native"][: len(TRIES)])
def test_bad_line(trie: type[Trie], line: bytes) -> None:
    with pytest.raises(ValueError, match=f"^{BAD_LINES[line]}$"):
        trie(b"\n".join([*GOOD, b"257 'th' 2", line, b"301 'abc' 3"]))


@pytest.mark.parametrize("trie", TRIES, ids=["python", "native"][: len(TRIES)])
def test_good_lines(trie: type[Trie]) -> None:
    lines = [
        b"1048576 'a b' 3", b"300 \"it's\" 4", b"301 'a\"b' 3", b"302 '\\'\"' 2", b"303 b'\\xff\\\\' 2",
        b"304 '\\xff' 2",
        b"305 '\\u20ac' 3", b"306 '\\U0001f600' 4", b"307 '\xf0\x9f\x98\x81' 4", b"308 '\\n\\r\\t' 3",
    ]  # fmt: skip
    found = trie(b"\r\n".join([*GOOD, *lines]))
    tokens = [found.token(id) for id in (1_048_576, *range(300, 309))]
    assert tokens == [
        b"a b", b"it's", b'a"b', b"'\"", b"\xff\\", b"\xc3\xbf", "€".encode(), "😀".encode(), "😁".encode(), b"\n\r\t"
    ]  # fmt: skip
    assert found.largest_id == 1_048_576
    assert found.encode(b"a b it's") == [1_048_576, 33, 300]


@pytest.mark.parametrize("trie", TRIES, ids=["python", "native"][: len(TRIES)])
@pytest.mark.parametrize(
    "text", [b"", b"1 'a' 1\n", b"\n".join(GOOD[:200] + GOOD[201:])], ids=["none", "one", "no 200"]
)
def test_every_byte_needs_a_token(trie: type[Trie], text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^no token for the single byte (0|200): wanted one for each of the 256$"):
        trie(text)


@pytest.mark.parametrize("trie", TRIES, ids=["python", "native"][: len(TRIES)])
@pytest.mark.parametrize("byte", [0, 101, 200, 255])
def test_every_byte_needs_a_token_among_many(trie: type[Trie], byte: int) -> None:
    """A longer token may take the place in the double array at which the missing byte is looked for."""
    longer = [b"300 'ab' 2", b"301 'cd' 2"]  # the first is looked for a free place, and there is one
    with pytest.raises(ValueError, match=f"no token for the single byte {byte}: "):
        trie(b"\n".join([*GOOD[:byte], *GOOD[byte + 1 :], *longer]))


@pytest.mark.skipif(not _native.available(), reason="the native core is not built")
@given(st.lists(st.binary(min_size=2, max_size=6), unique=True, max_size=60), st.lists(st.binary(max_size=9)))
def test_any_vocabulary(tokens: list[bytes], texts: list[bytes]) -> None:
    vocabulary = b"\n".join([*GOOD, *(b"%d %r %d" % (300 + i, t, len(t)) for i, t in enumerate(tokens))])
    native, python = _native.core.Trie(vocabulary), Trie(vocabulary)
    for text in (b"".join(texts), b"".join(tokens)):
        assert native.encode(text) == python.encode(text)


@pytest.mark.skipif(not _native.available(), reason="the native core is not built")
@given(st.binary(max_size=40) | st.text("0123456789 'b\\xu\"ab\n\r", max_size=40).map(str.encode))
def test_both_tries_judge_noise_alike(noise: bytes) -> None:
    verdicts = []
    for trie in TRIES:
        try:
            verdicts.append(trie(b"\n".join([*GOOD, noise])).largest_id)
        except ValueError as error:
            verdicts.append(str(error))  # type: ignore[arg-type]
    assert verdicts[0] == verdicts[1]


def test_a_chain_of_long_tokens_is_built_in_little_memory(world: World) -> None:
    long = [b"%d '%s' %d" % (300 + i, b"x" * n, n) for i, n in enumerate((1_000, 100_000, 500_000))]
    trie = TRIES[-1](b"\n".join([*GOOD, *long]))
    assert trie.encode(b"x" * 601_002) == [302, 301, 300, 121, 121]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("bad.txt", b"1 'a' 2\n", errors.TokenizerError, "bad.txt: line 1: the length is wrong"),
        ("empty.txt", b"", errors.EmptyFile, "empty.txt: has no bytes"),
        ("tokenizer.json", b' {"version": "1.0"}', errors.TokenizerError, "tokenizer.json: is not a tokenizer.json"),
        ("large.txt", b"x" * (2**24 + 1), errors.TooLarge, "large.txt: has 16777217 bytes"),
    ],
)
def test_files(name: str, text: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(error) as caught:
        load(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neither_name_nor_file(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match=r"^wrold: .* wanted bytes, utf16le, world or the path"):
        load("wrold")
    with pytest.raises(errors.NotAFile):
        load(tmp_path)


@pytest.fixture
def shipped() -> bytes:
    return shipped_vocabulary()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that python takes for the distribution with the World vocabulary; running its code is an error."""
    place = tmp_path / "pyrwkv_tokenizer"
    place.mkdir()
    (place / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return place / "rwkv_vocab_v20230424.txt"


def test_shipped_vocabulary_is_not_trusted(stand_in: Path) -> None:
    with pytest.raises(errors.TokenizerError, match=r"cannot be opened.*pip install"):
        World()
    stand_in.write_bytes(b"\n".join(GOOD))
    with pytest.raises(errors.TokenizerError, match=r"is not the World vocabulary.*pip install"):
        World()


def test_shipped_vocabulary_may_have_crlf(shipped: bytes, stand_in: Path) -> None:
    stand_in.write_bytes(shipped.replace(b"\n", b"\r\n"))
    assert World().encode("hello") == [34550]
    assert sys.modules.get("pyrwkv_tokenizer") is None


def test_shipped_vocabulary_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.tokenizer.world.find_spec", lambda name: None)
    with pytest.raises(errors.TokenizerError, match="pyrwkv-tokenizer, which is missing; reinstall it: pip install"):
        World()


@pytest.fixture
def no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "core", None)
    monkeypatch.setattr(_native, "reason", "No module named 'rookery._core'")
    _native.announce_missing.cache_clear()


@pytest.mark.usefixtures("no_core")
def test_missing_core_is_said_once_and_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rookery"):
        assert World().encode("hello") == World().encode("hello") == [34550]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["rookery"]
    assert "NO NATIVE CORE (No module named 'rookery._core')" in caplog.text


@pytest.mark.usefixtures("no_core")
@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("yes", True), ("0", False), ("", False), ("off", False)])
def test_required_core(value: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_REQUIRE_NATIVE", value)
    with pytest.raises(errors.BackendError, match="ROOKERY_REQUIRE_NATIVE") if wanted else contextlib.nullcontext():
        _native.check()
