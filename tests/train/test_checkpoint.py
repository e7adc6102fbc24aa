"""Checkpoints: what is written is what is read, damage is seen and passed over, nothing half written is taken up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rookery import formats
from rookery.errors import BadHeader, DamagedFile, FileError, InputError
from rookery.formats.tensor import Tensor as Stored
from rookery.train import checkpoint
from rookery.train.parallel import Parallel

SETTINGS = {"data": {"train": ["a"], "ctx_len": 8}}


def state(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.a": torch.randn(5, 3, generator=generator),
        "adam.a.exp_avg": torch.randn(5, 3, generator=generator),
        "adam.a.step": torch.tensor(7.0 + seed),
    }


def three(out: Path) -> list[Path]:
    return [checkpoint.write(out, step, SETTINGS, state(step), keep=3) for step in (9, 100, 20)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random = torch.get_rng_state()
    path = checkpoint.write(tmp_path, 12, SETTINGS, state(), keep=1)
    torch.manual_seed(6)
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found == checkpoint.Checkpoint(path, 12, SETTINGS)
    into = {name: torch.zeros_like(t) for name, t in state().items()}
    found.fill(into, Parallel("cpu"))
    for name, t in state().items():
        assert torch.equal(into[name], t), name
    assert torch.equal(torch.get_rng_state(), random)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 20, 99_999_999, 100_000_000):
        checkpoint.write(tmp_path, step, SETTINGS, state(), keep=3)
    steps = [checkpoint.read(path).step for path in checkpoint.found(tmp_path)]
    assert steps == [20, 99_999_999, 100_000_000]


def test_a_damaged_one_does_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (3, 6):
        checkpoint.write(tmp_path, step, SETTINGS, state(), keep=2)
    checkpoint.found(tmp_path)[-1].write_bytes(b"")
    checkpoint.write(tmp_path, 4, SETTINGS, state(), keep=1)
    found = checkpoint.newest(tmp_path, lambda _: None)
    assert found is not None
    assert found.step == 4


def cut(data: bytes) -> bytes:
    return data[:-10]


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def flip_middle(data: bytes) -> bytes:
    begin = 8 + int.from_bytes(data[:8], "little") + 20
    return data[:begin] + bytes([data[begin] ^ 64]) + data[begin + 1 :]


def no_step(data: bytes) -> bytes:
    return data.replace(b"rookery.step", b"rookery.stop")


def wrong_step(data: bytes) -> bytes:
    return data.replace(b'"rookery.step":"100"', b'"rookery.step":"1x0"')


def wrong_settings(data: bytes) -> bytes:
    return data.replace(b"ctx_len", b"ctx\\u00l")


def nothing(data: bytes) -> bytes:
    return b""


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize(
    "damage", [cut, flip_last, flip_middle, no_step, wrong_step, wrong_settings, nothing, zeros]
)  # fmt: skip
def test_damage_is_passed_over(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    _, newest, before = three(tmp_path)
    data = newest.read_bytes()
    newest.write_bytes(damage(data))
    assert newest.read_bytes() != data
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found.path == before
    assert len(said) == 1
    assert said[0].startswith(f"passed over a damaged checkpoint: {newest}: ")
    assert "\n" not in said[0]


def test_all_damaged_is_not_a_beginning(tmp_path: Path) -> None:
    for path in three(tmp_path):
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(InputError, match="all checkpoints are damaged; remove the folder to begin anew"):
        checkpoint.newest(tmp_path, lambda _: None)


def test_none_is_a_beginning(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, pytest.fail) is None


def test_of_before_checksums(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 3, SETTINGS, state(), 1)
    file = formats.read(path)
    tensors = {name: Stored(t.dtype, t.shape, np.array(t.data)) for name, t in file.tensors.items()}
    formats.write(path, tensors, {k: v for k, v in file.metadata.items() if k != checkpoint.CHECKSUM})
    assert checkpoint.read(path).step == 3


def change(**other: torch.Tensor | None) -> dict[str, torch.Tensor]:
    both = {**state(), **{name.replace("__", "."): t for name, t in other.items()}}
    return {name: t for name, t in both.items() if t is not None}


@pytest.mark.parametrize(
    ("into", "said"),
    [
        (change(model__b=torch.zeros(2)), "it has no model.b"),
        (change(model__a=torch.zeros(5, 4)), r"model.a is \[5, 3\] there and \[5, 4\] here"),
        (change(model__a=None), "model.a has no place in this run's model"),
    ],
)
def test_of_another_model(tmp_path: Path, into: dict[str, torch.Tensor], said: str) -> None:
    found = checkpoint.read(checkpoint.write(tmp_path, 1, SETTINGS, state(), 1))
    before = {name: t.clone() for name, t in into.items()}
    with pytest.raises(InputError, match=f"of another model: {said}; name another folder"):
        found.fill(into, Parallel("cpu"))
    assert all(torch.equal(into[name], before[name]) for name in into)


def folder(out: Path, step: int = 4) -> Path:
    return checkpoint.write_folder(out, step, SETTINGS, state(step), 3, Parallel("cpu"))


def test_a_folder_is_read_too(tmp_path: Path) -> None:
    folder(tmp_path)
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found is not None
    assert (found.step, found.settings) == (4, SETTINGS)
    into = {name: torch.zeros_like(t) for name, t in state().items()}
    found.fill(into, Parallel("cpu"))
    for name, t in state(4).items():
        assert torch.equal(into[name], t), name


def test_folders_of_another_model(tmp_path: Path) -> None:
    found = checkpoint.read(folder(tmp_path))
    with pytest.raises(InputError, match=r"model.a is \[5, 3\] there"):
        found.fill(change(model__a=torch.zeros(5, 4)), Parallel("cpu"))


@pytest.mark.parametrize("name", ["run.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["remove", "cut", "garbage"])
def test_a_damaged_folder_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    before, newest = folder(tmp_path, 4), folder(tmp_path, 5)
    one = newest / name
    if damage == "remove":
        one.unlink()
    else:
        one.write_bytes(one.read_bytes()[:-9] if damage == "cut" else b"\x80garbage")
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found.path == before
    assert len(said) == 1


def test_files_and_folders_in_one_order(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    checkpoint.write(tmp_path, 5, SETTINGS, state(), 3)
    folder(tmp_path, 6)
    assert [p.name for p in checkpoint.found(tmp_path)] == [
        "step-00000004",
        "step-00000005.safetensors",
        "step-00000006",
    ]


def test_what_was_left_half_written_goes(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, SETTINGS, state(), 1)
    file, half = path.with_name(".step-00000002.safetensors.77-1.tmp"), path.with_name(".step-00000003.tmp")
    file.write_bytes(b"half")
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    with checkpoint.folder_of_one(tmp_path):
        assert list(path.parent.iterdir()) == [path]


def test_errors_are_told_apart(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, SETTINGS, state(), 1)
    data = path.read_bytes()
    for damage, kind in ((flip_last, DamagedFile), (no_step, BadHeader), (nothing, FileError)):
        path.write_bytes(damage(data))
        with pytest.raises(kind):
            checkpoint.read(path)
