"""`rookery quantize`: what it says, and what it leaves behind when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminal import MODEL, check_mistake, finish, start

from rookery import _native, formats, weights
from rookery.cli.quantize import TYPES
from rookery.formats import Tensor
from rookery.weights import quantise

SMALL = ["--type", "q8_0"]


def test_quantize(rookery: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    code, said, err = rookery("quantize", "gosling", out, "--type", "Q5_1", "--head", "q8_0", "--threads", "2")
    assert code == 0
    assert err == "" or not _native.available()
    assert said.startswith(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB, tensors: ")
    assert "1 q8_0" in said
    assert "25 q5_1" in said
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    before, after = weights.load("gosling"), weights.load(out)
    assert after.lineage == before.lineage != after.fingerprint
    assert after.metadata["tokenizer.ggml.model"] == "rwkv"
    assert out.stat().st_size < 0.9 * Path(before.path).stat().st_size
    assert rookery("generate", "-m", out, "-n", "4", "--seed", "1", "Once").code == 0
    report = json.loads(rookery("quantize", "gosling", out, "--type", "f16", "--lora", "--force", "--json").out)
    assert report["bytes"] == out.stat().st_size
    assert report["source"] == "gosling"
    assert report["target"] == str(out)
    assert set(report["tensors"]) == {"f16", "f32"}


def test_packed(rookery: Any, tmp_path: Path) -> None:
    out, gguf = tmp_path / "out.safetensors", tmp_path / "out.gguf"
    code, said, err = rookery("quantize", "gosling", out, "--packed", "--type", "Q8_0")
    assert code == 0
    assert err == "" or not _native.available()
    assert said.startswith(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB, tensors: ")
    assert "22 panel_bf16_t, 8 panel_f32_t, 25 panel_q8, 1 q8_0" in said
    before, after = weights.load("gosling"), weights.load(out)
    assert after.lineage == before.lineage != after.fingerprint
    assert "rookery.vocabulary" in after.metadata
    rookery("quantize", "gosling", gguf, *SMALL)
    lines = [rookery("generate", "-m", file, "-n", "12", "--seed", "1", "Once").out for file in (out, gguf)]
    assert lines[0] == lines[1] != ""
    report = json.loads(rookery("quantize", gguf, out, "--packed", "--force", "--json").out)  # as it is
    assert report["tensors"]["panel_q8"] == 25
    assert report["bytes"] == out.stat().st_size
    report = json.loads(rookery("quantize", gguf, out, "--packed", "--head", "f16", "--force", "--json").out)
    assert (report["tensors"]["panel_q8"], report["tensors"]["panel_f16"]) == (24, 1)
    assert rookery("convert", out, tmp_path / "plain.pth").code == 0
    assert rookery("quantize", out, gguf, "--type", "q5_0", "--force").code == 0


def test_the_help_page_names_every_type() -> None:
    assert set(TYPES.split(", ")) == set(quantise.TYPES)


def test_mistakes_write_nothing(rookery: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    check_mistake(rookery("quantize", MODEL, out), "required: --type")
    check_mistake(rookery("quantize", MODEL, out, "--type", "q3_k_m"), "no type 'q3_k_m'", "q4_k")
    check_mistake(rookery("quantize", MODEL, out, *SMALL, "--head", "int4"), "no type 'int4'")
    check_mistake(rookery("quantize", MODEL, out, *SMALL, "--threads", "0"), "--threads")
    check_mistake(rookery("quantize", MODEL, tmp_path / "out.safetensors", *SMALL), "name the file .gguf")
    check_mistake(rookery("quantize", MODEL, out, *SMALL, "--packed"), "name the file .safetensors")
    check_mistake(rookery("quantize", MODEL, out, "--packed"), "name the file .safetensors")
    check_mistake(rookery("quantize", MODEL, tmp_path / "no" / "out.gguf", *SMALL), "out.gguf")
    check_mistake(rookery("quantize", tmp_path / "none.pth", out, *SMALL), "none.pth")
    check_mistake(rookery("quantize", MODEL, tmp_path, *SMALL, "--force"), "is a folder")
    assert not list(tmp_path.iterdir())
    out.write_text("mine")
    check_mistake(rookery("quantize", MODEL, out, *SMALL), f"{out}: exists already; --force")
    assert out.read_text() == "mine"
    assert rookery("quantize", MODEL, out, *SMALL, "--force").code == 0
    check_mistake(rookery("quantize", out, out, *SMALL, "--force"), "is the source itself")
    assert weights.load(out).format == "gguf"


@pytest.mark.parametrize("names", [
    ["base_model.model.blocks.0.att.key.lora_A.weight", "base_model.model.blocks.0.att.key.lora_B.weight"],
    ["blocks.0.att.time_state"],
])  # fmt: skip
def test_what_is_no_model(rookery: Any, tmp_path: Path, names: list[str]) -> None:
    part = tmp_path / "part.safetensors"
    formats.write(part, {name: Tensor.of(np.zeros((2, 32), np.float32)) for name in names})
    looks = "a LoRA adapter" if len(names) == 2 else "a tuned RWKV state without its model"
    check_mistake(rookery("quantize", part, tmp_path / "out.gguf", *SMALL), str(part), looks)
    assert [p.name for p in tmp_path.iterdir()] == [part.name]


def test_a_disk_that_fills(tmp_path: Path) -> None:
    """No file may grow beyond 100 kB; the model takes 2 MB."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out.gguf"
    out.write_text("mine")

    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start("quantize", "gosling", out, "--type", "f16", "--force", preexec_fn=narrow)
    check_mistake(finish(process), f"{out}: cannot be written (File too large)")
    assert out.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
