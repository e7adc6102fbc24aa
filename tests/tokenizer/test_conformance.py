"""World against the published ids: the whole shared set, and a small one of our own that every clone has."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rookery.tokenizer import World, load

OWN = Path(__file__).with_name("conformance.jsonl")


def check(tokenizer: World, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        data = entry["text"].encode() if "text" in entry else bytes.fromhex(entry["hex"])
        assert tokenizer.decode_bytes(entry["ids"]) == data, entry
        if entry["kind"] != "decode":
            assert tokenizer.encode(data) == entry["ids"], entry
        if "text" in entry:
            assert tokenizer.encode(entry["text"]) == entry["ids"], entry
            assert tokenizer.decode(entry["ids"]) == entry["text"], entry


def test_own_set(world: World) -> None:
    entries = [json.loads(line) for line in OWN.read_text("utf-8").splitlines()]
    assert len(entries) > 40
    check(world, entries)


def test_shared_set(world: World, shared: Path) -> None:
    with gzip.open(shared / "fixtures/tokenizer/conformance_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    assert len(entries) == 1093
    check(world, entries)


@pytest.mark.parametrize("ends", ["lf", "crlf", "no last newline"])
def test_vocabulary_file(ends: str, shared: Path, tmp_path: Path) -> None:
    text = (shared / "fixtures/tokenizer/rwkv_vocab_v20230424.txt").read_bytes()
    copy = tmp_path / "copy.txt"
    copy.write_bytes({"lf": text, "crlf": text.replace(b"\n", b"\r\n"), "no last newline": text[:-1]}[ends])
    shipped, loaded = World(), load(copy)
    assert loaded.name == "copy"
    assert loaded.vocab_size == 65_530
    assert all(loaded.token_bytes(id) == shipped.token_bytes(id) for id in range(65_530))
