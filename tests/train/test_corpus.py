"""Texts to tokens: documents, their ends and their order, with one process and with several; bad input by line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import errors, tokenizer
from rookery.tokenizer.simple import Bytes
from rookery.train import binidx, corpus, texts

VOCABULARY = "\n".join(
    f"{id} {token!r} {len(token)}"
    for id, token in enumerate([*(bytes((byte,)) for byte in range(256)), b"one ", b"\n\n", b" fox", b"on"], 1)
)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "small.txt"
    path.write_text(VOCABULARY)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "t"


def items(prefix: Path) -> list[list[int]]:
    file = binidx.read(prefix)
    return [file.item(i).tolist() for i in range(len(file))]


def jsonl(path: Path, *documents: str) -> Path:
    data = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_each_document_ends_with_token_0(tmp_path: Path, target: Path, vocabulary: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", "one fox\n\n", "on", "é")
    built = corpus.build([source], target, vocabulary)
    assert items(target) == [[257, *b"fox".translate(bytes(range(1, 256)) + b"\0"), 258, 0], [260, 0], [196, 170, 0]]
    assert built == corpus.Built(documents=3, tokens=11, empty=0, text_bytes=13, text_tokens=11)


def test_a_byte_tokenizer_joins_documents_by_nothing(tmp_path: Path, target: Path) -> None:
    corpus.build([jsonl(tmp_path / "a.jsonl", "ab", "c")], target, "bytes")
    assert binidx.read(target).tokens.tolist() == [*b"abc"]
    assert items(target) == [[*b"ab"], [*b"c"]]
    corpus.build([jsonl(tmp_path / "a.jsonl", "ab")], target, "utf16le")
    assert items(target) == [[97, 0, 98, 0]]


def test_every_kind_of_source_in_its_order(tmp_path: Path, target: Path, vocabulary: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"B\r\n\r\nB")
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"A"))
    jsonl(folder / "deeper" / "c.jsonl.gz", "C1", "C2")
    (folder / "README.md").write_text("not data")
    with binidx.writing(folder / "d", 261) as writer:  # not read with the folder: who knows by which tokenizer
        writer.add([5, 6])
        writer.add([7, 0])
    last = tmp_path / "last"  # a name without a suffix is a text
    last.write_text("L")
    tok = tokenizer.load(vocabulary)
    built = corpus.build([folder, last, folder / "d.bin"], target, vocabulary)
    written = [[*tok.encode(text), 0] for text in ("A", "B\r\n\r\nB")]
    written += [[*tok.encode(text), 0] for text in ("C1", "C2", "L")]
    assert items(target) == [*written, [5, 6], [7, 0]]
    assert (built.documents, built.text_bytes) == (7, 12)


def test_several_processes_write_what_one_does(
    tmp_path: Path, target: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BATCH", 100)
    text = tmp_path / "a.txt"
    text.write_bytes(b"one fox on one\n" * 400)
    monkeypatch.setattr(texts, "BLOCK", 1000)
    lines = jsonl(tmp_path / "b.jsonl", *(f"{i} one fox" * (i % 7) for i in range(60)))
    seen: list[tuple[int, int]] = []
    one = corpus.build([text, lines], target, vocabulary, workers=1, progress=lambda *at: seen.append(at))
    expected = [path.read_bytes() for path in binidx.paths(target)]
    several = corpus.build([text, lines], target, vocabulary, workers=2)
    assert one == several
    assert [path.read_bytes() for path in binidx.paths(target)] == expected
    assert one.empty == 9
    assert one.documents == 52
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {text.stat().st_size + lines.stat().st_size}
    assert 0 < seen[0][0] <= seen[-1][0] <= seen[-1][1]


def test_an_error_in_another_process_comes_back_as_it_is(tmp_path: Path, target: Path, vocabulary: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "x"}\n{"text": 3}\n')
    with pytest.raises(errors.DamagedFile, match=r"a\.jsonl: line 2 is of another form") as caught:
        corpus.build([source], target, vocabulary, workers=2)
    assert caught.value.path == str(source)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
    "content", [b"\n\n\na\n\n\nb" * 50 + b"\n\n\n", b"\xe2\x82\xac" * 3000, b"\n" * 9000, b"a\n" * 900]
)
def test_pieces_are_the_text_whatever_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(texts, "BLOCK", 64)
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    pieces = [piece for piece, _ in texts.read(path)]
    assert b"".join(piece.data for piece in pieces) == content
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for before, piece in pairwise(pieces):
        assert piece.line == before.line + before.data.count(b"\n")
        assert not piece.data.startswith(b"\n") or not content.strip()
        texts.text_of(before)
        texts.text_of(piece)
    assert len(pieces) > 1 or content.count(b"\n") == len(content)


def test_repeat_shuffles_anew_each_time(tmp_path: Path, target: Path) -> None:
    documents = [chr(33 + i) for i in range(40)]
    source = jsonl(tmp_path / "a.jsonl", *documents)

    def order(**options: Any) -> str:
        built = corpus.build([source], target, "bytes", **options)
        assert built.documents == built.tokens == len(binidx.read(target).tokens)
        assert sorted(path.name for path in target.parent.iterdir()) == ["t.bin", "t.idx"]
        return bytes(binidx.read(target).tokens.tolist()).decode()

    plain, three = order(), order(repeat=3, seed=7)
    assert plain == "".join(documents)
    times = [three[:40], three[40:80], three[80:]]
    assert len({plain, *times}) == 4
    assert all(sorted(time) == documents for time in times)
    assert order(repeat=3, seed=7) == three
    assert order(seed=7) == times[0]
    assert order(repeat=3) == order(repeat=3, seed=0) != three


BAD = {
    "nul.txt": (b"fine\nnot\0fine", errors.DamagedFile, "line 2 has a NUL byte, so this is binary data"),
    "latin1.txt": (b"caf\xe9", errors.DamagedFile, "line 1 is not UTF-8 (byte 0xe9)"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", errors.DamagedFile, "line 1 is not UTF-8 (byte 0x89)"),
    "empty.txt": (b"", errors.EmptyFile, "has no bytes"),
    "empty.txt.gz": (gzip.compress(b""), errors.EmptyFile, "has no text in it"),
    "blank.jsonl": (b"\n\n", errors.EmptyFile, "has no text in it"),
    "cut.txt.gz": (gzip.compress(b"a" * 999)[:-12], errors.TruncatedFile, "ends within its gzip data"),
    "not.txt.gz": (b"not gzip", errors.DamagedFile, "cannot be read"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', errors.DamagedFile, "line 2 is not JSON"),
    "deep.jsonl": (b"[" * 100_000, errors.DamagedFile, "line 1 is not JSON"),
    "missing.jsonl": (b'\n{"txt": "a"}\n', errors.DamagedFile, 'line 2 has no "text"'),
    "list.jsonl": (b'["a"]\n', errors.DamagedFile, "line 1 is of another form"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', errors.DamagedFile, "line 1: character 0 of the text is half a surrogate"),
    "utf16.jsonl": ('{"text": "a"}\n'.encode("utf-16"), errors.DamagedFile, "line 1 is not UTF-8 (byte 0xff)"),
    "nothing.jsonl": (b'{"text": ""}\n' * 2, errors.InputError, "no text: 2 empty documents"),
    "alone.idx": (b"MMIDIDX", errors.MissingFile, "alone.bin"),
    "alone.bin": (b"MMIDIDX", errors.MissingFile, "alone.idx"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, target: Path, name: str) -> None:
    content, error, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        corpus.build([tmp_path / name], target, "bytes")
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir())


def test_bad_sources(tmp_path: Path, target: Path) -> None:
    with pytest.raises(errors.MissingFile, match="none"):
        corpus.build([tmp_path / "none"], target, "bytes")
    with pytest.raises(errors.InputError, match="no data"):
        corpus.build([], target, "bytes")
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.InputError, match=r"holds no \.txt"):
        corpus.build([tmp_path / "folder"], target, "bytes")


def test_an_endless_line(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LONGEST_LINE", 100)
    with pytest.raises(errors.TooLarge, match="line 2 has over 100 bytes"):
        corpus.build([jsonl(tmp_path / "a.jsonl", "a", "b" * 100)], target, "bytes")


class Lossy(Bytes):
    name = "lossy"
    vocab_size = 100

    def encode(self, text: str | bytes) -> list[int]:
        return super().encode(text.upper())

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids)


def test_a_tokenizer_that_loses_text_is_found_out(tmp_path: Path, target: Path) -> None:
    with pytest.raises(errors.DamagedFile, match="line 2: the tokenizer lossy does not give the text back"):
        corpus.build([jsonl(tmp_path / "a.jsonl", "UP", "down")], target, Lossy())


def test_a_token_beyond_the_vocabulary(tmp_path: Path, target: Path) -> None:
    with binidx.writing(tmp_path / "wide", 70_000) as writer:
        writer.add([65_536])
    with pytest.raises(errors.TokenError, match="token 65536 of document 0 is none of 65536 ids"):
        corpus.build([tmp_path / "wide"], target, "world")


GOSLING = Path(__file__).resolve().parents[2] / "examples" / "gosling" / "vocabulary.txt"


@given(st.binary(max_size=60))
def test_goslings_vocabulary_cuts_any_bytes(data: bytes) -> None:
    assert gosling().decode_bytes(gosling().encode(data)) == data


@cache
def gosling() -> tokenizer.Tokenizer:
    return tokenizer.load(GOSLING)


def test_goslings_vocabulary() -> None:
    tok = gosling()
    assert (tok.vocab_size, tok.end) == (4096, 0)
    tokens = [tok.token_bytes(id) for id in range(1, 4096)]
    assert sorted(token for token in tokens if set(token) & set(b"0123456789")) == [b"%d" % i for i in range(10)]
    assert [token for token in tokens if b"\n" in token and len(token) > 1] == [b"\n\n"]
    chat = [tok.token_bytes(id) for id in tok.encode("User: Hello.\n\nAssistant: Yes.\n\n")]
    assert chat == [b"User:", b" Hello", b".", b"\n\n", b"Assistant:", b" Yes", b".", b"\n\n"]


def test_goslings_vocabulary_fits_books_it_was_not_made_from(shared: Path) -> None:
    size = tokens = 0
    for book in ("lang_orange_fairy_book", "nesbit_railway_children"):
        text = gzip.decompress((shared / "data" / "stories" / f"{book}.txt.gz").read_bytes())
        size, tokens = size + len(text), tokens + len(gosling().encode(text))
    assert size / tokens > 3.75


@pytest.mark.parametrize(("name", "content"), [("a.txt", "\ufeffAlice"), ("a.jsonl", '\ufeff{"text": "Alice"}')])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert [texts.text_of(piece) for piece, _ in texts.read(tmp_path / name)] == ["Alice"]
