"""Vocabularies that come with the weights: in a GGUF's metadata or a folder; hostile ones, and who is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import _native, errors, formats, weights
from rookery.model import Model
from rookery.model import load as load_model
from rookery.tokenizer import World, load
from rookery.tokenizer.stored import find, of_folder, of_gguf, where

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v7.safetensors"
SINGLES = [bytes((i,)) for i in range(256)]
NATIVE = [False, *([True] if _native.available() else [])]


def escaped(token: bytes) -> str:
    return repr(token)[2:-1]


def gguf(tokens: list[str], **more: Any) -> dict[str, Any]:
    return {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": tokens} | {
        f"tokenizer.ggml.{key}": value for key, value in more.items()
    }


BYTES_ONLY = gguf([escaped(token) for token in SINGLES], token_type=np.ones(256, "<i4"))


def test_world_as_llama_cpp_writes_it(world: World) -> None:
    """<s> and the padding are names, not texts: "<s>" and "[PAD65530]" stay ordinary text."""
    tokens = ["<s>", *(escaped(world.token_bytes(id)) for id in range(1, 65_530)), "[PAD65530]", "[PAD65531]"]
    found = of_gguf(gguf(tokens, token_type=[3] + [1] * 65_529 + [5] * 2, eos_token_id=0), "x.gguf")
    assert found is not None
    assert (found.name, found.vocab_size, found.end) == ("rwkv", 65_530, 0)
    assert all(found.token_bytes(id) == world.token_bytes(id) for id in range(65_530))
    for text in ("Hi <s> [PAD65530] 白嘴鸦\r\n\t\\x41 it's \"", b"\xff\0\\"):
        assert found.encode(text) == world.encode(text)


def test_a_vocabulary_whose_id_0_is_a_byte() -> None:
    found = of_gguf(BYTES_ONLY, "x.gguf")
    assert found is not None
    assert (found.vocab_size, found.end) == (256, None)
    assert found.encode("\0hé") == [0, 104, 195, 169]
    assert found.decode([0, 104]) == "\0h"
    for id in (-1, 256, 1.0, None):
        with pytest.raises(errors.TokenError, match=f"^{id} is no token of this vocabulary of 256$"):
            found.decode([1, id])  # type: ignore[list-item]
    stream = found.stream()
    assert [stream.push(id) for id in (0xC3, 0xA9, 0)] == ["", "é", "\0"]


@given(st.lists(st.binary(min_size=2, max_size=5), unique=True, max_size=30), st.lists(st.binary(max_size=6)))
def test_any_tokens_come_back(tokens: list[bytes], texts: list[bytes]) -> None:
    every = [*SINGLES, *tokens]
    for shift in (0, 1):
        listed = [b""] * shift + every
        for native in NATIVE:
            made = World.from_tokens(listed, "x", None, "x.gguf", native=native)
            assert [made.token_bytes(id) for id in range(shift, len(listed))] == every
            assert made.decode_bytes(made.encode(b"".join(texts))) == b"".join(texts)
        read = of_gguf(gguf([escaped(token) for token in listed], token_type=[5] * shift + [1] * len(every)), "x")
        assert read is not None
        assert [read.token_bytes(id) for id in range(shift, len(listed))] == every


HOSTILE: dict[str, tuple[Mapping[str, Any], str]] = {
    "no bytes": (gguf(["a", "b"]), "its vocabulary is damaged: no token for the single byte 0"),
    "nothing": (gguf([]), "no token for the single byte 0"),
    "one byte short": (gguf([escaped(t) for t in SINGLES if t != b"\x80"]), "no token for the single byte 128"),
    "twice": (gguf([*map(escaped, SINGLES), "\\x61"]), "tokens 97 and 256 of its vocabulary are the same"),
    "half an escape": (gguf([*map(escaped, SINGLES), "\\x4"]), "token 256 of its vocabulary is not escaped"),
    "a lone backslash": (gguf([*map(escaped, SINGLES), "ab\\"]), "token 256 of its vocabulary is not escaped"),
    "too few types": (BYTES_ONLY | {"tokenizer.ggml.token_type": [1]}, "has 256 tokens but 1 token types"),
    "an end outside": (BYTES_ONLY | {"tokenizer.ggml.eos_token_id": 256}, "that ends a text, 256, is none"),
    "an end of text": (BYTES_ONLY | {"tokenizer.ggml.eos_token_id": "/etc"}, "that ends a text, /etc, is none"),
    "text for a list": (BYTES_ONLY | {"tokenizer.ggml.tokens": "abc"}, "its vocabulary is no list"),
    "a number": (BYTES_ONLY | {"tokenizer.ggml.tokens": 7}, "its vocabulary is no list"),
    "too many": (gguf(["a"] * (2**20 + 1)), "its vocabulary is no list of at most 1048576 tokens"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    metadata, message = HOSTILE[name]
    with pytest.raises(errors.TokenizerError, match=message) as caught:
        of_gguf(metadata, "x.gguf")
    assert str(caught.value).startswith("x.gguf: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata", [{}, {"tokenizer.ggml.model": "no_vocab"}, BYTES_ONLY | {"tokenizer.ggml.model": "gpt2"}]
)
def test_other_kinds_are_none(metadata: Mapping[str, Any]) -> None:
    assert of_gguf(metadata, "x.gguf") is None


def model(format: str, path: str = str(FIXTURE), **metadata: Any) -> Model:
    of = weights.load(FIXTURE)
    of.format, of.path, of.metadata = format, path, metadata
    return Model(of, None)  # type: ignore[arg-type]


def test_who_is_believed() -> None:
    assert model("gguf", **BYTES_ONLY).tokenizer.name == "rwkv"
    assert model("gguf", **BYTES_ONLY, **{"rookery.tokenizer": "utf16le"}).tokenizer.name == "utf16le"
    given = Model(model("gguf", **BYTES_ONLY).weights, None, load("bytes"))  # type: ignore[arg-type]
    assert given.tokenizer.name == "bytes"
    with pytest.raises(errors.TokenizerError, match="says nothing of its tokenizer"):
        _ = model("safetensors", **BYTES_ONLY).tokenizer  # only a GGUF's keys mean this
    with pytest.raises(errors.TokenizerError, match="names an unknown tokenizer '/etc/passwd'"):
        _ = model("gguf", **BYTES_ONLY, **{"rookery.tokenizer": "/etc/passwd"}).tokenizer
    with pytest.raises(errors.TokenizerError, match="has 257 tokens, the model"):
        _ = model("gguf", **gguf([*map(escaped, SINGLES), "ab"])).tokenizer


def vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rwkv_vocab_v20230424.txt"
    path.write_bytes(b"\n".join(b"%d %r 1" % (i, SINGLES[i]) for i in range(1, 256)) + b"\n256 b'\\x00' 1")
    return path


def test_a_folder(tmp_path: Path) -> None:
    assert of_folder(str(tmp_path)) is None
    vocabulary(tmp_path)
    found = load(tmp_path)
    assert found.encode("a") == [97]
    with pytest.raises(errors.TokenizerError, match="has 257 tokens"):  # found, and checked against the model
        _ = model("hf", str(tmp_path)).tokenizer


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = vocabulary(tmp_path / "elsewhere")
    inside = tmp_path / "model"
    inside.mkdir()
    for name in ("rwkv_vocab_v20230424.txt", "tokenizer.json"):
        (inside / name).symlink_to(outside)
        with pytest.raises(errors.FileError, match="leads out of the folder"):
            of_folder(str(inside))
        os.unlink(inside / name)


def test_the_cache_of_the_hub_is_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blob = vocabulary(tmp_path / "models--a--b" / "blobs")
    (snapshot / blob.name).symlink_to(os.path.join("..", "..", "blobs", blob.name))
    assert load(snapshot).vocab_size == 257


def test_a_config_that_links_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(json.dumps({"eos_token": "secret"}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(errors.FileError, match="leads out of the folder"):
        load(folder / "tokenizer.json")


def test_a_gguf_from_end_to_end(tmp_path: Path) -> None:
    """Written by `convert`, without the name that Rookery notes: what any other program's GGUF is."""
    formats.write(tmp_path / "x.safetensors", weights.load(FIXTURE).tensors, {"rookery.tokenizer": "bytes"})
    weights.convert(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    of = weights.load(tmp_path / "x.gguf")
    assert of.metadata.pop("rookery.tokenizer") == "bytes"
    tokenizer = Model(of, None).tokenizer  # type: ignore[arg-type]
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.end) == ("rwkv", 256, None)
    assert tokenizer.decode(tokenizer.encode("Two households")) == "Two households"
    of.metadata["tokenizer.ggml.tokens"] = [*of.metadata["tokenizer.ggml.tokens"][:255], "ab"]
    with pytest.raises(errors.TokenizerError, match="no token for the single byte 255"):
        _ = Model(of, None).tokenizer  # type: ignore[arg-type]


def test_a_folder_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    from rookery.tokenizer.huggingface import BYTE

    folder = tmp_path / "model"
    weights.convert(FIXTURE.with_name("v4.safetensors"), folder, to="hf")
    (folder / "tokenizer.json").write_text(
        json.dumps({"decoder": {"type": "ByteLevel"} | dict.fromkeys(("add_prefix_space", "trim_offsets"), True)}
        | {"model": {"type": "BPE", "vocab": BYTE, "merges": []}})
    )  # fmt: skip
    opened = load_model(str(folder))
    assert opened.tokenizer.name == "tokenizer"
    assert opened.weights.format == "hf"
    assert len(opened.generate("hé", max_tokens=3, seed=1)) > 0


def test_a_vocabulary_goes_along_from_file_to_file(tmp_path: Path) -> None:
    """A text format carries it as text, a GGUF as tokens, and both tokenise alike."""
    lines = [f"{i + 1} {bytes((i,))!r} 1" for i in range(256)] + ["257 'once upon' 9", "260 'Ein Ei' 6"]
    words = World.from_text("\n".join(lines).encode(), "words", "x")
    model = weights.load(FIXTURE)
    metadata = dict(model.metadata) | {"rookery.vocabulary": words.text()}
    metadata.pop("rookery.tokenizer", None)
    first = tmp_path / "first.safetensors"
    tensors = dict(model.tensors)
    for name in ("emb.weight", "head.weight"):  # 256 rows are too few for these words
        wide = np.zeros((300, model.config.n_embd), np.float32)
        tensors[name] = formats.Tensor("f32", wide.shape, wide.reshape(-1).view(np.uint8))
    formats.write(first, tensors, metadata)
    weights.convert(first, tmp_path / "second.gguf")
    weights.convert(tmp_path / "second.gguf", tmp_path / "third.safetensors")
    assert "rookery.vocabulary" not in formats.read(tmp_path / "second.gguf").metadata
    for name in ("first.safetensors", "second.gguf", "third.safetensors"):
        tokenizer = load_model(tmp_path / name).tokenizer
        assert tokenizer.encode("once upon Ein Ei") == [257, 33, 260], name
        assert tokenizer.end == 0
    for form, told in (("safetensors", "rwkv, 259 tokens"), ("gguf", None)):  # in a GGUF `find` does not read it
        assert where("x", form, metadata) == told
        assert (find("x", form, metadata) is None) == (told is None)
    hurt = metadata | {"rookery.vocabulary": "1 'a' 1\n1 'b' 1"}
    formats.write(first, tensors, hurt)
    with pytest.raises(errors.TokenizerError, match="its vocabulary is damaged"):
        _ = load_model(first).tokenizer
