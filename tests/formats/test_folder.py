"""Hugging Face folders as bytes: whole, in shards, and every way in which one can lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rookery import errors, formats
from rookery.formats import Tensor, folder

TENSORS = {f"t{i}": Tensor.of(np.arange(6, dtype=np.float32).reshape(2, 3) + i) for i in range(4)}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def put(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def part(*names: str) -> dict[str, Tensor]:
    return {name: TENSORS[name] for name in names}


def sharded(path: Path, suffix: str = ".safetensors", index: str = INDEX) -> Path:
    path.mkdir()
    put(path / "config.json", {"model_type": "x"})
    where = {}
    for number, names in enumerate((("t0", "t1"), ("t2", "t3")), 1):
        shard = f"model-{number:05}-of-00002{suffix}"
        formats.write(path / shard, part(*names), format="pth" if suffix == ".bin" else None)
        where |= dict.fromkeys(names, shard)
    put(path / index, {"metadata": {"total_size": 96}, "weight_map": where})
    return path


def whole(path: Path, file: str = folder.SINGLE) -> Path:
    path.mkdir()
    put(path / "config.json", {"model_type": "x", "n": [1, {"deep": None}]})
    formats.write(path / file, TENSORS, {"a": "b"}, format="pth" if file.endswith(".bin") else None)
    return path


def check_tensors(file: formats.File) -> None:
    assert file.format == "hf"
    assert list(file.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(file.tensors[name].array(), tensor.array(), strict=True)


# -- what opens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_whole(file: str, tmp_path: Path) -> None:
    path = whole(tmp_path / "m", file)
    found = formats.read(path)
    check_tensors(found)
    assert found.metadata == {"a": "b", "hf.config": {"model_type": "x", "n": [1, {"deep": None}]}}
    assert formats.detect(path) == "hf"
    assert formats.size(path) == sum(f.stat().st_size for f in path.iterdir())


@pytest.mark.parametrize(("suffix", "index"), [(".safetensors", INDEX), (".bin", "pytorch_model.bin.index.json")])
def test_shards(suffix: str, index: str, tmp_path: Path) -> None:
    check_tensors(formats.read(str(sharded(tmp_path / "m", suffix, index)) + os.sep))


def test_the_tokenizer_is_a_name(tmp_path: Path) -> None:
    path = whole(tmp_path / "m")
    put(path / "tokenizer_config.json", {"rookery_tokenizer": "bytes"})
    assert formats.read(path).metadata["rookery.tokenizer"] == "bytes"
    put(path / "tokenizer_config.json", {"rookery_tokenizer": ["/etc/passwd"]})
    assert "rookery.tokenizer" not in formats.read(path).metadata


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path: Path) -> None:
    made = sharded(tmp_path / "made")
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in made.iterdir():
        file.rename(blobs / f"{file.name}.hash")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{file.name}.hash"))
    check_tensors(formats.read(snapshot))


# -- what does not -----------------------------------------------------------------------------------------------------


def relist(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    put(path / INDEX, index)


def link(path: Path, name: str, target: str | Path) -> None:
    (path / name).unlink()
    (path / name).symlink_to(target)


def outside(path: Path, name: str) -> None:
    """The file moves beside the folder; a link is left."""
    (path / name).rename(path.parent / name)
    (path / name).symlink_to(Path("..", name))


def twice(path: Path) -> None:
    """The second shard is the first under another name."""
    link(path, SECOND, FIRST)


HOSTILE: dict[str, tuple[Callable[[Path], object], type[errors.FileError], str]] = {
    "up": (lambda p: relist(p, lambda m: m.update(t2=f"../{p.name}/{SECOND}")), errors.BadOffset, "bare name"),
    "absolute": (lambda p: relist(p, lambda m: m.update(t2="/etc/passwd")), errors.BadOffset, "bare name"),
    "windows": (lambda p: relist(p, lambda m: m.update(t2="C:x")), errors.BadOffset, "bare name"),
    "dots": (lambda p: relist(p, lambda m: m.update(t2="..")), errors.BadOffset, "bare name"),
    "nothing": (lambda p: relist(p, lambda m: m.update(t2="")), errors.BadOffset, "bare name"),
    "nul": (lambda p: relist(p, lambda m: m.update(t2="a\0b")), errors.BadOffset, "bare name"),
    "shard links out": (lambda p: outside(p, SECOND), errors.BadOffset, "leads out"),
    "config links out": (lambda p: outside(p, "config.json"), errors.BadOffset, "leads out"),
    "index links out": (lambda p: outside(p, INDEX), errors.BadOffset, "leads out"),
    "missing shard": (lambda p: (p / SECOND).unlink(), errors.MissingShard, "lacks its file"),
    "shard is the index": (lambda p: relist(p, lambda m: m.update(t2=INDEX)), errors.BadHeader, "as a shard"),
    "shard links to itself": (lambda p: link(p, SECOND, SECOND), errors.FileError, "cannot be opened"),
    "shard links to the index": (lambda p: link(p, SECOND, INDEX), errors.UnknownFormat, "looks like"),
    "shard is the folder": (lambda p: link(p, SECOND, "."), errors.BadOffset, "leads out"),
    "one shard twice": (twice, errors.OverlappingTensors, "two shards"),
    "not in its shard": (lambda p: relist(p, lambda m: m.update(t9=SECOND)), errors.BadHeader, "'t9' is not in"),
    "in another shard": (lambda p: relist(p, lambda m: m.update(t2=FIRST)), errors.BadHeader, "not in"),
    "not listed": (lambda p: relist(p, lambda m: m.pop("t3")), errors.BadHeader, "not listed"),
    "empty map": (lambda p: relist(p, lambda m: m.clear()), errors.BadHeader, "weight_map"),
    "map of numbers": (lambda p: relist(p, lambda m: m.update(t2=1)), errors.BadHeader, "weight_map"),
    "no map": (lambda p: put(p / INDEX, {"weight_map": [1]}), errors.BadHeader, "weight_map"),
    "many shards": (
        lambda p: put(p / INDEX, {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(5000)}}),
        errors.TooLarge,
        "5000 shards",
    ),
    "giant index": (lambda p: (p / INDEX).write_bytes(b"{" + b" " * 2**24 + b"}"), errors.TooLarge, "bytes"),
    "giant config": (lambda p: (p / "config.json").write_bytes(b"{" + b" " * 2**20 + b"}"), errors.TooLarge, "bytes"),
    "nested": (lambda p: put(p / "config.json", json.loads('{"a":' * 40 + "1" + "}" * 40)), errors.BadHeader, "nested"),
    "very nested": (
        lambda p: (p / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        errors.BadHeader,
        "config.json",
    ),
    "config no object": (lambda p: put(p / "config.json", [1]), errors.BadHeader, "not a JSON object"),
    "config no JSON": (lambda p: (p / "config.json").write_text("{'a': 1}"), errors.BadHeader, "not valid JSON"),
    "config twice the key": (lambda p: (p / "config.json").write_text('{"a":1,"a":2}'), errors.BadHeader, "twice"),
    "config a folder": (
        lambda p: ((p / "config.json").unlink(), (p / "config.json").mkdir()),
        errors.NotAFile,
        "is a folder",
    ),
    "config empty": (lambda p: (p / "config.json").write_bytes(b""), errors.EmptyFile, "no bytes"),
    "no config": (lambda p: (p / "config.json").unlink(), errors.NotAFile, "without config.json; give the file in it"),
    "no weights": (lambda p: (p / INDEX).unlink(), errors.MissingShard, "no weights"),
    "shard is a damaged ggmf": (lambda p: (p / SECOND).write_bytes(b"fmgg" + b"\0" * 64), errors.BadHeader, "version"),
    "shard cut": (lambda p: os.truncate(p / SECOND, 40), errors.TruncatedFile, "ends inside"),
    "tokenizer no object": (lambda p: put(p / "tokenizer_config.json", [1]), errors.BadHeader, "not a JSON object"),
}


@pytest.mark.parametrize(("harm", "error", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile(harm: Callable[[Path], object], error: type[errors.FileError], words: str, tmp_path: Path) -> None:
    path = sharded(tmp_path / "m")
    check_tensors(formats.read(path))
    harm(path)
    with pytest.raises(error, match=words) as caught:
        formats.read(path)
    assert "\n" not in str(caught.value)


def test_an_adapter_says_what_to_do(tmp_path: Path) -> None:
    put(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    put(tmp_path / "config.json", {})
    formats.write(tmp_path / "adapter_model.safetensors", TENSORS)
    for ask in (formats.read, formats.detect):
        with pytest.raises(errors.UnknownFormat, match=r"an adapter .* merge it"):
            ask(tmp_path)


def test_a_folder_of_anything(tmp_path: Path) -> None:
    with pytest.raises(errors.NotAFile, match=r"is a folder without config\.json; wanted"):
        formats.read(tmp_path)
    with pytest.raises(errors.NotAFile, match=r"is a folder without config\.json; wanted"):
        formats.detect(tmp_path)


def test_a_folder_that_may_not_be_read(unprivileged: Path) -> None:
    path = whole(unprivileged / "m")
    path.chmod(0)
    with pytest.raises(errors.NoPermission):
        formats.read(path)
    path.chmod(0o700)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_write_new_and_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o750)
    for name in ("new", "empty"):
        folder.write(str(tmp_path / name), TENSORS, {"a": "b"}, {"config.json": {"x": 1}, "v.txt": b"1\n"})
        check_tensors(formats.read(tmp_path / name))
        assert formats.read(tmp_path / name).metadata == {"format": "pt", "a": "b", "hf.config": {"x": 1}}
        assert (tmp_path / name / "v.txt").read_bytes() == b"1\n"
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750
    assert sorted(f.name for f in tmp_path.iterdir()) == ["empty", "new"]


@pytest.mark.parametrize("taken", ["folder", "file", "link"])
def test_what_is_there_stays(taken: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.CannotWrite, match="a new or an empty folder"):
        folder.write(str(tmp_path / taken), TENSORS, {}, {"config.json": {}})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "empty").mkdir()
    for step in ("rename", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            for name in ("new", "empty"):
                with pytest.raises(errors.CannotWrite, match="No space left") as caught:
                    folder.write(str(tmp_path / name), TENSORS, {}, {"config.json": {}})
                assert caught.value.path == str(tmp_path / name)
    assert [f.name for f in tmp_path.rglob("*")] == ["empty"]
    with pytest.raises(errors.CannotWrite, match="No such file"):
        folder.write(str(tmp_path / "no" / "such"), TENSORS, {}, {})
