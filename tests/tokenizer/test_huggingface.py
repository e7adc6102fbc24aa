"""Hugging Face's tokenizer.json: the 20B tokenizer against published ids, a small one of our own, and hostile files."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import errors
from rookery.tokenizer import load
from rookery.tokenizer.huggingface import BYTE, MAX_FILE, HuggingFace

pytest.importorskip("tokenizers", reason="needs the extra hf")

WORDS = ["th", "the", "Ġthe", "Ã©", "Ġt"]  # the last is used by no merge that survives
SMALL: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": id, "content": text, "special": special, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for id, text, special in [
            (261, "<|endoftext|>", True), (262, "   ", False), (263, "Ãé", False), (264, "</s>", True)
        ]
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "vocab": BYTE | {word: 256 + i for i, word in enumerate(WORDS)},
        "merges": ["t h", "th e", "Ġ the", "Ã ©", "Ġ t"],
    },
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> HuggingFace:
    return HuggingFace(written(tmp_path, SMALL))


def written(folder: Path, document: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.fixture(scope="module")
def pile(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> HuggingFace:
    path = tmp_path_factory.mktemp("20B") / "20B_tokenizer.json"
    path.write_bytes(gzip.decompress((shared / "fixtures/tokenizer/20B_tokenizer.json.gz").read_bytes()))
    found = load(path)
    assert isinstance(found, HuggingFace)
    return found


def test_shared_set(pile: HuggingFace, shared: Path) -> None:
    with gzip.open(shared / "fixtures/tokenizer/conformance_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = [entry for entry in map(json.loads, file) if "ids_20b" in entry]
    assert len(entries) == 873
    assert (pile.name, pile.vocab_size, pile.end) == ("20B_tokenizer", 50_277, 0)
    for entry in entries:
        ids, text = entry["ids_20b"], unicodedata.normalize("NFC", entry["text"].replace("<|endoftext|>", ""))
        assert pile.encode(entry["text"]) == ids, entry
        assert pile.encode(entry["text"].encode()) == ids, entry
        assert pile.decode_bytes(ids) == text.encode(), entry
        stream, sofar = pile.stream(), ""
        for id in ids:
            sofar += stream.push(id)
            assert text.startswith(sofar), entry  # never half a character
        assert sofar + stream.flush() == text


def test_a_small_one_by_hand(small: HuggingFace) -> None:
    assert (small.name, small.vocab_size, small.end) == ("tokenizer", 265, 261)
    assert small.encode("the the") == [257, 258]
    assert small.encode("e\u0301") == small.encode("é") == [259]  # NFC
    assert small.encode("a<|endoftext|>   Ãé") == [97, 261, 262, 263]
    assert [small.token_bytes(id) for id in (258, 259, 261, 262, 263, 0xFF)] == [
        b" the", "é".encode(), b"", b"   ", "Ãé".encode(), b"\xff"
    ]  # fmt: skip
    stream = small.stream()
    assert [stream.push(id) for id in (0xE2, 0x82, 0xAC, 257)] == ["", "", "€", "the"]


@given(st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])))
def test_text_comes_back_normalised(text: str) -> None:
    small = cached()
    ids = small.encode(text)
    assert small.decode(ids) == unicodedata.normalize("NFC", text)
    stream = small.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == small.decode(ids)


_kept: list[HuggingFace] = []


def cached() -> HuggingFace:
    if not _kept:
        with tempfile.TemporaryDirectory() as folder:
            _kept.append(HuggingFace(written(Path(folder), SMALL)))
    return _kept[0]


@pytest.mark.parametrize("id", [-1, 265, 2**64, 1.0, "a", None])
def test_unknown_ids(small: HuggingFace, id: Any) -> None:
    with pytest.raises(errors.TokenError, match=rf"^{id} is no token of this vocabulary of 265$"):
        small.decode([97, id])


def test_only_text_is_read(small: HuggingFace) -> None:
    with pytest.raises(errors.InputError, match=r"^byte 1 \(0xff\) is not valid UTF-8"):
        small.encode(b"a\xff")
    with pytest.raises(errors.InputError, match=r"U\+DC80"):
        small.encode("\udc80")


@pytest.mark.parametrize(
    ("config", "end"),
    [
        ({"eos_token": "</s>"}, 264),
        ({"eos_token": {"content": "</s>"}}, 264),
        ({"eos_token": "the"}, 257),
        ({"eos_token": "no such token"}, 261),
        ({"eos_token": None}, 261),
        ({"eos_token": [1]}, 261),
        ({}, 261),
    ],
    ids=repr,
)
def test_the_end_that_the_folder_names(tmp_path: Path, config: Any, end: int) -> None:
    written(tmp_path, SMALL)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(tmp_path / "tokenizer.json").end == end
    assert load(tmp_path).end == end


def test_without_any_end(tmp_path: Path) -> None:
    assert load(written(tmp_path, SMALL | {"added_tokens": []})).end is None


def changed(*path: str, to: Any) -> Any:
    document = copy.deepcopy(SMALL)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return document


def without_byte(byte: int) -> Any:
    vocabulary = {letter: id for letter, id in SMALL["model"]["vocab"].items() if id != byte}
    return changed("model", "vocab", to=vocabulary)


ADDED = SMALL["added_tokens"][0]
HOSTILE = {
    "no JSON": ("{", "is not valid JSON"),
    "cut off": (json.dumps(SMALL)[:500], "is not valid JSON"),
    "a long number": ('{"a":' + "1" * 10_000 + "}", "is not valid JSON"),
    "nested": ('{"a":' + "[" * 200_000, "is nested too deeply"),
    "nested steps": ('{"model":{"vocab":{}},"decoder":' + '{"a":[' * 300 + "1" + "]}" * 300 + "}", "wanted one|read"),
    "empty": ("{}", "no model with a vocabulary"),
    "a model's config": ('{"architectures": ["RwkvForCausalLM"]}', "no model with a vocabulary"),
    "WordPiece": (changed("model", "type", to="WordPiece"), "of the kind 'WordPiece'; only byte-level BPE"),
    "Unigram": (changed("model", to={"type": "Unigram", "vocab": [["a", 0.0]]}), "of the kind 'Unigram'"),
    "BPE of letters": (SMALL | {"pre_tokenizer": None, "decoder": None}, "only byte-level BPE is read"),
    "a list of tokens": (changed("model", "vocab", to=["a"]), "its vocabulary must give each token an id"),
    "a negative id": (changed("model", "vocab", "the", to=-1), "its vocabulary must give each token an id"),
    "a large id": (changed("model", "vocab", "the", to=2**32), "its vocabulary must give each token an id"),
    "no number": (changed("model", "vocab", "the", to="1"), "its vocabulary must give each token an id"),
    "true": (changed("model", "vocab", "the", to=True), "its vocabulary must give each token an id"),
    "no byte 97": (without_byte(97), "no token for the single byte 97"),
    "a prefix": (changed("model", "continuing_subword_prefix", to="##the"), "with a prefix or suffix"),
    "no merges": (changed("model", "merges", to=None), "is a damaged tokenizer.json"),
    "a merge of nothing": (changed("model", "merges", to=["x yz"]), "is a damaged tokenizer.json"),
    "added tokens": (SMALL | {"added_tokens": {"a": 1}}, "its added_tokens are no list"),
    "an added id": (SMALL | {"added_tokens": [ADDED | {"id": 2**40}]}, "is a damaged tokenizer.json"),
    "a byte added again": (SMALL | {"added_tokens": [ADDED | {"content": "Ã"}]}, "has the id 195 of a single byte"),
    "an added text": (SMALL | {"added_tokens": [ADDED | {"content": 7}]}, "is a damaged tokenizer.json"),
    "half a character": (SMALL | {"added_tokens": [ADDED | {"content": "\ud800"}]}, "is a damaged tokenizer.json"),
    "a step that panics": (
        SMALL | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled"}]}},
        "'Precompiled'",
    ),
    "a step that panics later": (SMALL | {"normalizer": [""]}, "has the step 'no object'"),
    "steps in steps": (
        SMALL | {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 200 + "]}" * 200)},
        "'too deep'",
    ),
    "a bad pattern": (
        SMALL
        | {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
                    SMALL["pre_tokenizer"],
                ],
            }
        },
        "is a damaged tokenizer.json",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path: Path, name: str) -> None:
    document, message = HOSTILE[name]
    path = written(tmp_path, document)
    with pytest.raises(errors.TokenizerError, match=message) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 500


def test_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(MAX_FILE + 1)
    with pytest.raises(errors.TooLarge, match="at most"):
        load(path)


def test_a_packed_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "20B_tokenizer.json.gz"
    path.write_bytes(gzip.compress(json.dumps(SMALL).encode()))
    with pytest.raises(errors.TokenizerError, match=r"unpack it first \(gunzip\)"):
        load(path)


def test_dropout_truncation_and_padding_are_off(tmp_path: Path) -> None:
    """Training settings left in a file must not make one text give several results."""
    document = changed("model", "dropout", to=0.9)
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = load(written(tmp_path, document))
    assert tokenizer.encode("the the the") == [257, 258, 258]


@given(st.data())
def test_noise_in_a_file_is_a_named_error_or_a_tokenizer(data: st.DataObject) -> None:
    text = json.dumps(SMALL)
    at = data.draw(st.integers(0, len(text)))
    noise = data.draw(st.text('{}[]",:0123456789-.enul\\u ', max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), text[:at] + noise + text[at + data.draw(st.integers(0, 6)) :])
        with contextlib.suppress(errors.TokenizerError, errors.FileError):
            tokenizer = load(path)
            tokenizer.decode_bytes(tokenizer.encode("the cat"))


def test_without_the_library(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from rookery import errors, tokenizer\n"
        f"try: tokenizer.load({str(path)!r})\n"
        "except errors.MissingExtra as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("needs an optional part: pip install 'rookery[hf]'")
