"""GGUF: a file byte by byte, gguf-py as the oracle both ways, and every fixture there and back."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest

import rookery
from rookery import errors, formats, weights
from rookery.formats.gguf import Strings
from rookery.formats.tensor import Tensor
from rookery.weights.load import of_file
from rookery.weights.names import gguf as names

OWN = sorted((Path(__file__).parents[1] / "fixtures").glob("*.safetensors"))
RESCALE = "rwkv6.rescale_every_n_layers"
TOKENS = [1, 5, 200, 7, 0, 31]


def test_a_file_by_hand() -> None:
    file = forge.parse(forge.valid()["gguf"])
    assert [(name, t.dtype, t.shape) for name, t in file.tensors.items()] == [
        ("a", "f32", (2, 4)),  # dims lie fastest first
        ("q", "q4_0", (1, 32)),
        ("h", "f16", (3,)),
    ]
    np.testing.assert_array_equal(file.tensors["a"].array(), np.arange(8, dtype=np.float32).reshape(2, 4))
    texts, ints, bools, empty = (file.metadata.pop(key) for key in ("texts", "ints", "bools", "empty"))
    assert file.metadata == {
        "general.architecture": "rwkv7",
        **{"u8": 255, "i8": -1, "u16": 2**16 - 1, "i16": -1, "u32": 2**32 - 1, "i32": -1, "f32": 0.5, "yes": True},
        **{"u64": 2**64 - 1, "i64": -1, "f64": 0.1},
    }
    assert [*texts] == texts[:] == ["x", "é\ufffd"]
    assert texts.bytes(1) == "é".encode() + b"\xff"
    assert texts[-1] == texts[1]
    assert ints.tolist() == [-1, 7]
    assert bools.tolist() == [False, True]
    assert len(empty) == 0


def test_version_2_and_another_alignment() -> None:
    tensors = [(b"a", (1,), 24, 0), (b"b", (1,), 24, 128)]
    alignment = [(b"general.alignment", 4, b"\x80\0\0\0")]
    file = forge.parse(forge.gguf(alignment, tensors, bytes([7, *bytes(127), 9]), version=2, alignment=128))
    assert [int(t.array()[0]) for t in file.tensors.values()] == [7, 9]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    held = {name: t for name, t in forge.sample().items() if t.dtype not in ("u8", "bool")}
    source = forge.parse(forge.valid()["gguf"])
    metadata: dict[str, Any] = {
        **source.metadata, "name": "é", "list": ["a", b"\xff"], "n": 2**32, "minus": [-1, 3], "halves": [0.5, 1],
        "flags": [True, False], "exact": np.float64(0.1), "far": 1e300, "small": np.int8(-3), "general.alignment": 4096,
    }  # fmt: skip
    for path in (tmp_path / "a.gguf", tmp_path / "b.gguf"):
        formats.write(path, held | source.tensors, metadata)
    assert path.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    file = formats.read(path)
    assert file.format == "gguf"
    assert forge.equal(file.tensors, held | source.tensors)
    del metadata["general.alignment"]
    assert list(file.metadata) == list(metadata)
    for key, wanted in metadata.items():
        got = file.metadata[key]
        if isinstance(got, Strings):
            raws = [wanted.bytes(i) for i in range(len(wanted))] if isinstance(wanted, Strings) else [b"a", b"\xff"]
            assert [got.bytes(i) for i in range(len(got))] == raws
        else:
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        ({"a": Tensor.of([True])}, {}, errors.UnsupportedType),
        ({"a": Tensor.of(np.zeros((1,) * 5))}, {}, errors.CannotWrite),
        ({"a" * 64: Tensor.of(np.zeros(1))}, {}, errors.CannotWrite),
        ({}, {"a": object()}, errors.CannotWrite),
        ({}, {"a": None}, errors.CannotWrite),
        ({}, {"a": [1, "b"]}, errors.CannotWrite),
        ({}, {"a": []}, None),
        ({}, {"a": {"b": 1}}, errors.CannotWrite),
        ({}, {"a": 2**64}, errors.CannotWrite),
        ({}, {"a": "\ud800"}, errors.CannotWrite),
        ({}, {"a": np.zeros((2, 2))}, errors.CannotWrite),
    ],
)
def test_what_a_gguf_cannot_hold(tmp_path: Path, tensors: Any, metadata: Any, error: Any) -> None:
    path = tmp_path / "x.gguf"
    if error is None:
        formats.write(path, tensors, metadata)
        assert len(formats.read(path).metadata["a"]) == 0
        return
    with pytest.raises(error) as caught:
        formats.write(path, tensors, metadata)
    forge.one_line(caught.value)
    assert not path.exists()


def test_gguf_py_reads_ours(tmp_path: Path) -> None:
    theirs = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    held = {name: t for name, t in forge.sample().items() if t.dtype not in ("u8", "bool") and t.size and t.shape}
    held["q"] = Tensor("q4_k", (2, 512), rng.integers(0, 255, 4 * 144).astype(np.uint8))
    path = tmp_path / "x.gguf"
    formats.write(path, held, {"general.architecture": "rwkv7", "n": 7, "t": ["a", "b"], "f": 0.25, "yes": True})
    reader = theirs.GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(held)
    for t in reader.tensors:
        assert tuple(int(n) for n in t.shape[::-1]) == held[t.name].shape
        assert t.tensor_type.name.lower() == held[t.name].dtype
        assert t.data.tobytes() == held[t.name].data.tobytes()
    said = {key: field.contents() for key, field in reader.fields.items() if "GGUF." not in key}
    assert said == {"general.architecture": "rwkv7", "n": 7, "t": ["a", "b"], "f": 0.25, "yes": True}


def test_ours_reads_gguf_py(tmp_path: Path) -> None:
    theirs = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    values = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    writer = theirs.GGUFWriter(path, "rwkv7")
    writer.add_array("texts", ["a", "bc"])
    writer.add_bool("yes", True)
    writer.add_tensor("a", values)
    writer.add_tensor("h", values.astype(np.float16))
    blocks = theirs.quants.quantize(values, theirs.GGMLQuantizationType.Q5_1)
    writer.add_tensor("q", blocks, raw_dtype=theirs.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = formats.read(path)
    assert (file.metadata["general.architecture"], [*file.metadata["texts"]]) == ("rwkv7", ["a", "bc"])
    assert file.metadata["yes"] is True
    np.testing.assert_array_equal(file.tensors["a"].array(), values)
    np.testing.assert_array_equal(file.tensors["h"].array(), values.astype(np.float16))
    decoded = theirs.quants.dequantize(blocks, theirs.GGMLQuantizationType.Q5_1)
    np.testing.assert_array_equal(file.tensors["q"].array(), decoded)


# --- models


def there_and_back(source: Path, folder: Path) -> None:
    """Equal tensors and bit-equal logits in the GGUF, and in the .pth made of it."""
    weights.convert(source, folder / "x.gguf")
    weights.convert(folder / "x.gguf", folder / "x.pth")
    before = weights.load(source)
    logits = rookery.load(source, backend="reference").forward(TOKENS)[0]
    for path in (folder / "x.gguf", folder / "x.pth"):
        after = weights.load(path)
        assert (after.config, after.lineage) == (before.config, before.lineage)
        unused = {name for name in before.tensors if before.config.version == "7" and name.startswith(UNUSED)}
        assert before.tensors.keys() - unused <= after.tensors.keys() <= before.tensors.keys()
        for name, tensor in after.tensors.items():
            assert tensor.shape == before.tensors[name].shape, name
            np.testing.assert_array_equal(tensor.float32(), before.tensors[name].float32(), name)
        np.testing.assert_array_equal(rookery.load(path, backend="reference").forward(TOKENS)[0], logits)


UNUSED = ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")


@pytest.mark.parametrize("source", OWN, ids=lambda path: path.stem)
def test_our_fixtures_there_and_back(source: Path, tmp_path: Path) -> None:
    there_and_back(source, tmp_path)


def test_shared_fixtures_there_and_back(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "fixtures" / "models").iterdir())
    assert len(paths) == 18
    for path in paths:
        if "660K" in path.stem or "synth" in path.stem or path.suffix == ".bin":
            (tmp_path / path.name).mkdir()
            there_and_back(path, tmp_path / path.name)


def fixture(version: str) -> weights.Weights:
    return weights.load(next(path for path in OWN if path.stem == version))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_v6_is_rescaled_as_its_file_was(tmp_path: Path, dtype: str) -> None:
    tensors = {"blocks.6.att.output.weight": Tensor.of(np.full((32, 32), 3.0, np.float32))}
    tensors["blocks.12.ffn.value.weight"] = tensors["blocks.6.att.output.weight"]
    if dtype == "q8_0":
        raw = np.zeros((32, 34), np.uint8)
        raw[:, 1], raw[:, 2:] = 0x3C, 3  # a scale of 1.0, codes of 3
        tensors = {name: Tensor("q8_0", (32, 32), raw.reshape(-1)) for name in tensors}
    else:
        tensors = {name: Tensor.of(t.array(), dtype) for name, t in tensors.items()}
    file, metadata = names.from_blinkdl(tensors, fixture("v6").config, {RESCALE: 6})
    assert metadata[RESCALE] == 6
    assert {t.dtype for t in file.values()} == {dtype}
    assert set(file["blk.6.time_mix_output.weight"].float32().flat) == {1.5}
    assert set(file["blk.12.channel_mix_value.weight"].float32().flat) == {0.75}
    formats.write(tmp_path / "x.gguf", file, metadata)
    back = formats.read(tmp_path / "x.gguf")
    assert forge.equal(names.to_blinkdl("x", back.tensors, back.metadata), tensors)


def test_v6_is_not_rescaled_unasked_or_where_that_loses_bits() -> None:
    for value, asked in ((2.0**-24, 6), (1.0, 0)):
        tensor = Tensor.of(np.full((32, 32), value), "f16")
        said = {RESCALE: asked} if asked else {}
        file, metadata = names.from_blinkdl({"blocks.6.att.output.weight": tensor}, fixture("v6").config, said)
        assert metadata[RESCALE] == 0
        assert forge.equal(file, {"blk.6.time_mix_output.weight": tensor})


@pytest.mark.parametrize("version", ["v6", "v7"])
def test_what_llama_cpp_wants(version: str) -> None:
    """Its names and dims; float32 for vectors and the tensors that it does not convert; nothing else touched."""
    file = fixture(version)
    halves = {name: Tensor.of(t.float32(), "f16") for name, t in file.tensors.items()}
    tensors, metadata = names.from_blinkdl(halves, file.config, {"rookery.tokenizer": "bytes"})
    n, mixes = file.config.n_embd, 5 if version == "v6" else 6
    assert tensors["blk.1.time_mix_lerp_fused.weight"].shape == (mixes, 1, 1, n)
    assert metadata["general.architecture"] == f"rwkv{version[1]}"
    assert metadata["general.file_type"] == 1
    wide = {name for name, t in tensors.items() if t.dtype == "f32"}
    assert {"output_norm.bias", "blk.0.time_mix_lerp_fused.weight", "blk.1.time_mix_w2.weight"} <= wide
    assert not any(name.endswith(("key.weight", "_g1.weight", "embd.weight", "output.weight")) for name in wide)
    for name, tensor in tensors.items():
        assert tensor.dtype in ("f16", "f32")
        assert tensor.array().shape == tensor.shape, name
    if version == "v7":
        assert tensors["blk.1.time_mix_r_k.weight"].shape == (n,)
        for i in "012":  # not in the model, but llama.cpp wants them
            a, v = (tensors[f"blk.0.time_mix_{x}{i}.weight"] for x in "av")
            np.testing.assert_array_equal(v.array(), a.array())


def test_the_first_layers_own_v_is_kept(tmp_path: Path) -> None:
    file = fixture("v7")
    for i in "012":
        twin = file.tensors[f"blocks.0.att.a{i}"]
        file.tensors[f"blocks.0.att.v{i}"] = Tensor.of(twin.array() * 2)
    tensors, metadata = names.from_blinkdl(file.tensors, file.config, file.metadata)
    formats.write(tmp_path / "x.gguf", tensors, metadata)
    after = weights.load(tmp_path / "x.gguf")
    np.testing.assert_array_equal(after.tensors["blocks.0.att.v1"].array(), file.tensors["blocks.0.att.v1"].array())


# --- vocabularies


def test_the_vocabulary_of_a_byte_model(tmp_path: Path) -> None:
    model = weights.load(Path(__file__).parents[1] / "fixtures" / "v7.safetensors")
    formats.write(tmp_path / "x.safetensors", model.tensors, {"rookery.tokenizer": "bytes"})
    weights.convert(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    file = formats.read(tmp_path / "x.gguf")
    assert file.metadata["tokenizer.ggml.model"] == "rwkv"
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[0], tokens[10], tokens[65], tokens[92]) == (256, r"\x00", r"\n", "A", r"\\")
    model = rookery.load(tmp_path / "x.gguf")
    assert model.tokenizer.encode("añ") == [97, 195, 177]
    assert file.metadata["rookery.tokenizer"] == "bytes"


def test_the_world_vocabulary_and_what_others_said(tmp_path: Path) -> None:
    given = names.gguf_vocabulary.entries({}, 65536)
    tokens, kinds = given["tokenizer.ggml.tokens"], given["tokenizer.ggml.token_type"]
    assert (len(tokens), tokens[0], tokens[-1], tokens[65530]) == (65536, b"<s>", b"[PAD65535]", b"[PAD65530]")
    assert (kinds[0], kinds[1], kinds[65529], kinds[65530]) == (3, 1, 1, 5)
    assert len(set(tokens)) == 65536  # llama.cpp asks for that
    assert tokens[261] == rb"\n\n"
    assert names.gguf_vocabulary.entries({}, 300) == {"tokenizer.ggml.model": "no_vocab"}
    assert names.gguf_vocabulary.entries({"tokenizer.ggml.model": "gpt2"}, 65536) == {}


def test_name_and_chat_template_go_along(tmp_path: Path) -> None:
    file = fixture("v7")
    said = {
        "general.name": "Mine",
        "tokenizer.chat_template": "{{ x }}",
        "general.alignment": 64,
        "rwkv7.block_count": 9,
    }
    formats.write(tmp_path / "a.gguf", *names.from_blinkdl(file.tensors, file.config, file.metadata | said))
    weights.convert(tmp_path / "a.gguf", tmp_path / "b.pth")
    weights.convert(tmp_path / "b.pth", tmp_path / "c.gguf")
    for path in ("a.gguf", "b.pth", "c.gguf"):
        metadata = formats.read(tmp_path / path).metadata
        assert (metadata["general.name"], metadata["tokenizer.chat_template"]) == ("Mine", "{{ x }}")
    assert metadata["rwkv7.block_count"] == file.config.n_layer


# --- what is no model of ours


@pytest.mark.parametrize(
    ("metadata", "error", "says"),
    [
        ({"general.architecture": "llama"}, errors.UnknownArchitecture, "architecture 'llama', which is no RWKV"),
        ({"general.architecture": "arwkv7"}, errors.UnknownArchitecture, "ARWKV-7 hybrid.*does not run"),
        ({"general.architecture": "rwkv6qwen2"}, errors.UnknownArchitecture, "QRWKV-6 hybrid.*does not run"),
        ({"general.architecture": "rwkv7", "general.type": "adapter"}, errors.UnknownArchitecture, "merge it"),
        ({"general.architecture": "rwkv7", "split.count": 3}, errors.MissingTensor, "one of 3 parts.*--merge"),
        ({"general.architecture": 7}, errors.BadHeader, "lacks the metadata 'general.architecture'"),
        ({}, errors.BadHeader, "lacks the metadata 'general.architecture'"),
        ({"general.architecture": "rwkv7", "rookery.lineage": 3}, errors.BadHeader, "'rookery.lineage' is not text"),
        ({"general.architecture": "rwkv6", "rwkv6.rescale_every_n_layers": -1}, errors.BadHeader, "a whole number"),
        ({"general.architecture": "rwkv7", "rwkv7.wkv.head_size": "64"}, errors.BadHeader, "a whole number"),
        ({"general.architecture": "rwkv7", "rwkv7.wkv.head_size": 0}, errors.WrongShape, "no heads of 0"),
        ({"general.architecture": "rwkv7", "rwkv7.wkv.head_size": 7}, errors.WrongShape, "no heads of 7"),
    ],
)
def test_other_models_and_wrong_metadata(metadata: dict[str, Any], error: Any, says: str) -> None:
    tensors = {"blk.0.time_mix_r_k.weight": Tensor.of(np.zeros(64))}
    with pytest.raises(error, match=says) as caught:
        of_file(formats.File("x.gguf", "gguf", tensors, metadata))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "error"),
    [
        ("blk.0.time_mix_w1.weight", (4,), errors.WrongShape),
        ("blk.0.time_mix_lerp_fused.weight", (5, 1, 1, 4), errors.WrongShape),
        ("blk.0.time_mix_lerp_fused.weight", (), errors.WrongShape),
        ("blk.00.time_mix_w1.weight", (4, 4), errors.UnknownArchitecture),
        ("blk.0.ffn_gate.weight", (4, 4), errors.UnknownArchitecture),
        ("emb.weight", (4, 4), errors.UnknownArchitecture),
    ],
)
def test_wrong_tensors(name: str, shape: tuple[int, ...], error: Any) -> None:
    with pytest.raises(error):
        names.to_blinkdl("x", {name: Tensor.of(np.zeros(shape))}, {"general.architecture": "rwkv7"})


# --- memory


def test_a_conversion_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """And neither opening nor renaming touches one: most of this v6 is rescaled, and all of it transposed."""
    matrix = Tensor.of(np.zeros((2**9, 2**11), np.float32))
    tensors = {f"blocks.{i}.ffn.value.weight": matrix for i in range(6, 26)}
    tensors |= {f"blocks.{i}.att.time_maa_w1": matrix for i in range(6, 26)}
    with forge.memory_below(4 * matrix.nbytes):
        file, metadata = names.from_blinkdl(tensors, fixture("v6").config, {RESCALE: 6})
        formats.write(tmp_path / "x.gguf", file, metadata)
    with forge.memory_below(2**18):
        back = formats.read(tmp_path / "x.gguf")
        assert len(names.to_blinkdl("x", back.tensors, back.metadata)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["rwkv6", "rwkv7"])
def test_files_made_without_our_code(shared: Path, tmp_path: Path, architecture: str) -> None:
    """gguf-py writes llama.cpp's names and shapes in F16; the same model as a .pth in bf16 says the same."""
    for package in ("torch", "gguf", "rwkv"):
        if find_spec(package) is None:
            pytest.skip(f"make_models.py needs {package}")
    tool = shared / "tools" / "make_models.py"
    subprocess.run([sys.executable, tool, architecture, "--size", "tiny", "--out", tmp_path], check=True, timeout=300)
    (gguf,), (pth,) = tmp_path.glob("*.gguf"), tmp_path.glob("*.pth")
    model = rookery.load(gguf, backend="reference")
    assert model.tokenizer.encode("Hello, Ann") == rookery.load(pth).tokenizer.encode("Hello, Ann")
    assert model.weights.tensors["blocks.1.att.key.weight"].dtype == "f16"
    theirs, _ = rookery.load(pth, backend="reference").forward(TOKENS, every=True)
    np.testing.assert_allclose(model.forward(TOKENS, every=True)[0], theirs, rtol=0, atol=1e-3)
