"""Files that are well formed and make no model, and calls that make no sense: each a named error, no text lost."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rookery
from oracle import read_safetensors
from rookery import State, errors, formats

FIXTURES = Path(__file__).parent / "fixtures"
V7 = FIXTURES / "v7.safetensors"


def changed(name: str, target: Path, **arrays: tuple[int, ...]) -> Path:
    """The fixture with these attention tensors of every layer in other shapes, all ones."""
    tensors = dict(read_safetensors(FIXTURES / f"{name}.safetensors"))
    for key in list(tensors):
        if (leaf := key.rsplit(".", 1)[-1]) in arrays:
            tensors[key] = np.ones(arrays[leaf], np.float32)
    save_file(tensors, target)
    return target


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("v5.0", {"time_decay": (5,), "time_first": (5,)}),
        ("v5.2", {"time_decay": (5, 2), "time_faaaa": (5, 2)}),
        ("v6", {"time_faaaa": (5, 2)}),
        ("v7", {"r_k": (5, 2)}),
        ("v7", {"r_k": (0, 0)}),
    ],
)
def test_heads_that_do_not_divide_the_width(name: str, arrays: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    with pytest.raises(errors.WrongShape, match="head"):
        rookery.load(changed(name, tmp_path / "x.safetensors", **arrays))


@pytest.mark.parametrize(
    ("key", "shape"), [("blocks.0.att.x_rwkvag", (7,)), ("blocks.0.att.w1", (5,)), ("blocks.0.att.x_rwkvag", (0,))]
)
def test_a_ggmf_tensor_that_cannot_be_turned_back(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    names = ("emb.weight", "head.weight", "blocks.0.att.key.weight", "blocks.0.att.r_k")
    with (tmp_path / "x.bin").open("wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 101, 4, 4, 1, 0))
        for name, dims in [*((name, (4, 4)) for name in names), (key, shape)]:
            file.write(struct.pack(f"<{3 + len(dims)}i", len(dims), len(name), 0, *dims[::-1]))
            file.write(name.encode() + bytes(4 * int(np.prod(dims))))
    with pytest.raises(errors.ModelError, match=r"x\.bin"):
        rookery.load(tmp_path / "x.bin")


@pytest.mark.parametrize("config", ["[" * 100_000, '{"n_embd": 12.0}', '{"n_layer": 3.0}'])
def test_the_config_of_a_state_file_is_not_believed(config: str, tmp_path: Path) -> None:
    state = rookery.load(V7).state()
    state.save(tmp_path / "s.safetensors")
    good = formats.read(tmp_path / "s.safetensors")
    said = config
    if config.startswith("{"):
        said = json.dumps(json.loads(good.metadata["rookery.config"]) | json.loads(config))
    formats.write(tmp_path / "bad.safetensors", good.tensors, good.metadata | {"rookery.config": said})
    with pytest.raises(errors.StateError, match="damaged"):
        State.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("name", ["v4", "v5.2", "v6", "v7"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e300])
def test_weights_that_are_no_numbers_give_one_error_and_no_warnings(name: str, value: float, tmp_path: Path) -> None:
    tensors = {k: v.astype(np.float64) for k, v in read_safetensors(FIXTURES / f"{name}.safetensors").items()}
    tensors["head.weight"] = np.full_like(tensors["head.weight"], value)
    for key in tensors:
        if key.endswith("att.key.weight"):
            tensors[key] = np.full_like(tensors[key], value)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(errors.BackendError, match="damaged"):
        rookery.load(tmp_path / "x.safetensors", tokenizer="bytes").generate("abc", 3)


def test_asking_for_the_state_first_loses_no_text() -> None:
    model = rookery.load(V7, tokenizer="bytes")
    wanted = model.generate("abc", 5, seed=1)
    stream = model.stream("abc", 5, seed=1)
    assert np.array_equal(stream.state.vector(), model.forward(list(b"abc"))[1].vector())
    assert "".join(stream) == wanted


def test_ragged_tokens() -> None:
    with pytest.raises(errors.InputError, match="whole numbers"):
        rookery.load(V7).forward([[1], [2, 3]])  # type: ignore[list-item]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_that_make_no_sense(backend: str, threads: object) -> None:
    with pytest.raises(errors.RookeryError, match="threads"):
        rookery.load(V7, backend=backend, threads=threads)  # type: ignore[arg-type]


def test_a_vocabulary_may_be_given_as_a_path(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile):
        rookery.load(V7, tokenizer=tmp_path / "absent.txt")  # type: ignore[arg-type]
