"""Perplexity: the figures by hand on a scorer that is told what to say, and of models the ways of reading compared."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import DamagedFile, InputError
from rookery.evaluate import Local, Passage, Read, make, run, tree
from rookery.evaluate.requests import Answer, Request
from rookery.evaluate.tasks import perplexity
from rookery.tokenizer import Bytes
from tolerances import BITS_CHUNKED

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


class Told:
    """Log-probabilities by a rule of the id and of how many ids stand before it in what is read."""

    coder, about = Bytes(), {"architecture": "told"}

    def __init__(self, rule: Callable[[int, int], float], prefix: tuple[int, ...] = (0,)) -> None:
        self.rule, self.prefix = rule, prefix
        self.read: list[tuple[int, ...]] = []

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        assert all(isinstance(request, Passage) for request in requests)
        self.read += [request.text for request in requests]
        return [self._read(request.text) for request in requests]

    def _read(self, text: tuple[int, ...]) -> Read:
        logprobs = [self.rule(id, at) for at, id in enumerate(text)]
        return Read(np.asarray(text), np.asarray(logprobs if self.prefix else [math.nan, *logprobs[1:]]))


def figures(scorer: Any, path: Path, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = run(scorer, [make("perplexity", settings, path)])["results"]["perplexity"]
    return found


def written(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_words_bytes_and_bits_as_lm_eval_has_them(tmp_path: Path) -> None:
    """Sums over all documents, over their words (what stands between blanks) and UTF-8 bytes."""
    path = written(tmp_path / "p.jsonl", "ab cd", "é\n f ")
    found = figures(Told(lambda id, at: -1.0 if id < 128 else -2.0), path)
    lost = np.asarray([5.0, 2 * 2.0 + 4])
    tokens, words = np.asarray([5, 6]), np.asarray([2, 3])  # "é", "f" and, as lm-eval counts, the nothing at the end
    assert found["perplexity"] == pytest.approx(math.exp(lost.sum() / 11))
    assert found["byte_perplexity"] == pytest.approx(math.exp(lost.sum() / 11))
    assert found["word_perplexity"] == pytest.approx(math.exp(lost.sum() / 5))
    assert found["bits_per_byte"] == pytest.approx(lost.sum() / 11 / math.log(2))
    assert found["compression"] == pytest.approx(100 * found["bits_per_byte"] / 8)
    assert (found["n"], found["tokens"], found["words"], found["bytes"]) == (2, 11, 5, 11)
    # the ratio's error: deviations from the common rate
    by_token = math.sqrt(2 * ((lost - lost.sum() / 11 * tokens) ** 2).sum()) / 11
    by_word = math.sqrt(2 * ((lost - lost.sum() / 5 * words) ** 2).sum()) / 5
    assert found["perplexity_stderr"] == pytest.approx(found["perplexity"] * by_token)
    assert found["word_perplexity_stderr"] == pytest.approx(found["word_perplexity"] * by_word)
    assert found["bits_per_byte_stderr"] == pytest.approx(by_token / math.log(2))


def test_a_single_document_s_error_is_over_its_stretches(tmp_path: Path) -> None:
    text = "a" * 64 + "b" * 64 + "c" * 64
    path = written(tmp_path / "p.jsonl", text)
    found = figures(Told(lambda id, at: 96.0 - id), path)  # 1, 2, 3 nats a token
    assert found["bits_per_byte"] == pytest.approx(2 / math.log(2))
    assert found["bits_per_byte_stderr"] == pytest.approx(math.sqrt(3 / 2 * 2 * 64**2) / 192 / math.log(2))
    short = figures(Told(lambda id, at: -1.0), written(tmp_path / "s.jsonl", "abc"))
    assert math.isnan(short["perplexity_stderr"]), "of one stretch none is known"


def test_without_a_prefix_the_first_token_is_not_counted(tmp_path: Path) -> None:
    found = figures(Told(lambda id, at: -1.0, prefix=()), written(tmp_path / "p.jsonl", "abcd"))
    assert (found["tokens"], found["bytes"], found["words"]) == (3, 3, 3 / 4)
    assert found["perplexity"] == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("stride", "read", "before"),
    [
        (0, [b"abcd", b"cdef", b"efg"], [0, 1, 2, 3, 2, 3, 2]),
        (3, [b"abcd", b"defg"], [0, 1, 2, 3, 1, 2, 3]),
        (4, [b"abcd", b"efg"], [0, 1, 2, 3, 0, 1, 2]),
    ],
)
def test_a_window_slides_and_each_token_counts_once(
    tmp_path: Path, stride: int, read: list[bytes], before: list[int]
) -> None:
    scorer = Told(lambda id, at: -float(at))
    found = figures(scorer, written(tmp_path / "p.jsonl", "abcdefg"), mode="sliding", window=4, stride=stride)
    assert [bytes(text) for text in scorer.read] == read
    assert math.log(found["perplexity"]) == pytest.approx(sum(before) / 7)
    assert found["tables"][0]["rows"][-1][:3] == [2, 3, sum(n > 1 for n in before)]


def test_chunks_begin_anew(tmp_path: Path) -> None:
    scorer = Told(lambda id, at: -float(at), prefix=())
    found = figures(scorer, written(tmp_path / "p.jsonl", "abcdefgh", "i"), mode="chunks", window=4)
    assert [bytes(text) for text in scorer.read] == [b"abcd", b"efgh", b"i"]
    assert (found["tokens"], found["bytes"]) == (6, 6)
    assert math.log(found["perplexity"]) == pytest.approx(2 * (1 + 2 + 3) / 6)


def test_the_loss_by_position(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", "abcdefghi", "ab")
    (table,) = figures(Told(lambda id, at: -float(at)), path)["tables"]
    rows = [row[:4] for row in table["rows"]]
    assert rows == [[0, 0, 2, 0.0], [1, 1, 2, 1.0], [2, 3, 2, 2.5], [4, 7, 4, 5.5], [8, 15, 1, 8.0]]
    errors = [row[4] for row in table["rows"]]
    assert errors[2:4] == pytest.approx([math.sqrt(0.5 / 2), math.sqrt(5 / 3 / 4)])
    assert math.isnan(errors[4])


def test_at_most_so_many_tokens(tmp_path: Path) -> None:
    scorer = Told(lambda id, at: -1.0)
    found = figures(scorer, written(tmp_path / "p.jsonl", "ab cd ef", "x"), tokens=4)
    assert [bytes(text) for text in scorer.read] == [b"ab c", b"x"]
    assert (found["tokens"], found["words"], found["bytes"]) == (5, 3, 5)
    cut = figures(scorer, written(tmp_path / "cut.jsonl", "日本"), tokens=4)  # in the middle of a character
    assert (cut["tokens"], cut["bytes"]) == (4, 4)


def test_what_a_file_holds(tmp_path: Path) -> None:
    text = "One line,\r\nanother.\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps([text, {"text": "b"}]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode() + b"\n\n"))
    for name in ("a.txt", "a.txt.gz", "a.jsonl.gz"):
        assert list(perplexity.documents(tmp_path / name)) == [(1, text)]
    assert list(perplexity.documents(tmp_path / "a.json")) == [(1, text), (2, "b")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: no field 'text', wanted a text; it has 'txt'"),
        ("a.txt", b"abc\xff", "is no UTF-8 .byte 3."),
        ("a.json", b'{"text": "a"}', "is no list"),
        ("a.json", b'["a", 5]', "entry 2: is neither a text nor an object with 'text'"),
        ("a.json", b'["a", {}]', "no field 'text'"),
        ("a.json", b'["a"', "is no JSON"),
        ("a.json", b'["\\ud800"]', "half a surrogate pair"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=said):
        list(perplexity.documents(tmp_path / name))


def test_a_text_that_unpacks_to_more_than_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "LARGEST", 1 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(DamagedFile, match="over 1 MB of text in one document; split it"):
        list(perplexity.documents(tmp_path / "a.txt.gz"))


@pytest.mark.parametrize(
    "settings", [{"mode": "slide"}, {"window": 1}, {"stride": -1}, {"stride": 2048}, {"tokens": -1}, {"windows": 2}]
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="perplexity"):
        make("perplexity", settings, written(tmp_path / "p.jsonl", "a"))


def test_any_text_does_and_one_is_needed() -> None:
    with pytest.raises(InputError, match=r"perplexity needs its data: give --data FILE .*any text will do"):
        make("perplexity")


@pytest.mark.parametrize("backend", ["native", "reference", "torch"])
@pytest.mark.parametrize("name", ["v4", "v5.2", "v6", "v7"])
def test_read_in_other_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, backend: str) -> None:
    """The figures do not hang on how many tokens are read at a time: to the bit where rows keep their law."""
    if backend == "torch":
        pytest.importorskip("torch")
    path = written(tmp_path / "p.jsonl", "The quick brown fox jumps over the lazy dog. " * 8, "Or so. " * 20)
    model = rookery.load(FIXTURES / f"{name}.safetensors", backend, tokenizer="bytes")
    whole = figures(Local(model, (0,)), path)
    monkeypatch.setattr(tree, "PIECE", 37)
    parts = figures(Local(model, (0,)), path)
    if backend == "torch":
        assert parts["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], abs=BITS_CHUNKED)
    else:
        assert parts == whole


def test_a_window_over_all_is_the_carried_state(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", "The quick brown fox. " * 4, "Or so.")
    scorer = Local(rookery.load(FIXTURES / "v7.safetensors", tokenizer="bytes"), (0,))
    carried = figures(scorer, path)
    assert carried == figures(scorer, path, mode="sliding") == figures(scorer, path, mode="chunks")
    assert carried["bits_per_byte"] != figures(scorer, path, mode="chunks", window=16)["bits_per_byte"]


@pytest.mark.parametrize("name", ["v4", "v7"])
def test_alone_or_together_to_the_bit(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "p.jsonl", *("The quick brown fox."[:n] + " jumps" * n for n in range(1, 9)))
    scorer = Local(rookery.load(FIXTURES / f"{name}.safetensors", tokenizer="bytes"), (0,))
    together, alone = (run(scorer, [make("perplexity", {}, path)], batch=batch)["results"] for batch in (8, 1))
    assert together == alone
