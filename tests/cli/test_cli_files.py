"""`rookery info`, `convert` and `doctor`, and the page that is made from --help."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from terminal import MODEL, check_mistake

from rookery import _native, formats, weights
from rookery.cli import doctor, info
from rookery.errors import TokenizerError
from rookery.formats import panels
from rookery.weights import quantise

FIXTURES = Path(MODEL).parent
ROOT = FIXTURES.parents[1]
EVERY = sorted(FIXTURES.glob("*.safetensors"))


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_info_agrees_with_the_tensors(rookery: Any, path: Path) -> None:
    code, out, err = rookery("info", "--json", path)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    file = weights.load(path)
    assert facts["version"] == path.stem.split("-")[0][1:]
    assert facts["name"].startswith(f"RWKV-{facts['version']} ")
    assert facts["parameters"] == sum(t.size for t in file.tensors.values())
    assert sum(row["parameters"] for row in facts["types"]) == facts["parameters"]
    assert sum(row["tensors"] for row in facts["types"]) == len(file.tensors)
    assert sum(row["bytes"] for row in facts["types"]) == sum(t.nbytes for t in file.tensors.values())
    layers, width, size = facts["n_layer"], facts["n_embd"], facts["head_size"]
    assert facts["state"]["numbers"] == layers * (5 * width if facts["version"] == "4" else (2 + size) * width)
    assert facts["state"]["bytes"] == 4 * facts["state"]["numbers"]
    assert facts["time_state"] == ("timestate" in path.stem)
    assert facts["fingerprint"] == facts["lineage"] == file.fingerprint
    assert facts["tokenizer"] == {"name": None, "source": "none"}


def test_info_for_people(rookery: Any) -> None:
    code, out, err = rookery("info", MODEL)
    assert (code, err) == (0, "")
    for part in (
        "RWKV-7 Goose", "safetensors", "2 heads x 6", "FFN 20", "w 4, a 5, g 7, v 3", "256 tokens", "attention", "LoRA",
        "unknown; name it with --tokenizer", "288 numbers, 1.2 kB", "eps 0.00064",
    ):  # fmt: skip
        assert part in out
    assert "time_state" not in out
    assert "tuned state" in rookery("info", FIXTURES / "v6-timestate.safetensors").out
    assert "group norm" not in rookery("info", FIXTURES / "v4.safetensors").out


def test_info_of_a_large_file_does_not_read_it_all_unasked(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "CHEAP", 0)
    assert json.loads(rookery("info", "--json", MODEL).out)["fingerprint"] is None
    assert "--fingerprint reads the whole file" in rookery("info", MODEL).out
    assert json.loads(rookery("info", "--json", "--fingerprint", MODEL).out)["fingerprint"]


def test_info_says_which_tokenizer(rookery: Any) -> None:
    file = weights.load(MODEL)
    file.metadata["rookery.tokenizer"] = "bytes"
    facts = info.describe(file, 1, fingerprint=False)
    assert facts["tokenizer"] == {"name": "bytes", "source": "file"}
    assert "tokenizer    bytes\n" in info.page(facts)
    file.format, file.metadata = "gguf", {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a", "b"]}
    stored = info.describe(file, 0, False)
    assert stored["tokenizer"] == {"name": "rwkv, 2 tokens", "source": "stored"}
    assert "tokenizer    rwkv, 2 tokens (came with the weights)\n" in info.page(stored)
    facts["tokenizer"] = {"name": "\x1b]0;hostile\x07", "source": "file"}
    assert r"tokenizer    \x1b]0;hostile\x07" in info.page(facts)
    facts["tokenizer"] = {"name": "world", "source": "guess"}
    assert "world (a guess" in info.page(facts)


def fates(rookery: Any, path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(rookery("info", "--json", path).out)["native"]
    for what in ("mapped", "copied"):
        assert facts[what] == sum(row[what] for row in facts["tensors"])
    return facts


def test_info_says_what_the_native_engine_maps_and_why(rookery: Any, tmp_path: Path) -> None:
    plain, packed, deflated = tmp_path / "a.gguf", tmp_path / "a.safetensors", tmp_path / "a.pth"
    quantise.quantise("gosling", plain, quantise.Plan("q8_0"))
    quantise.quantise("gosling", packed, quantise.Plan("q8_0"), packed=True)
    facts = fates(rookery, plain)
    assert not facts["ready"]
    why = {row["class"]: row["why"] for row in facts["tensors"]}
    assert why["attention"] == "laid out in panels"
    assert why["LoRA"] == "the file holds it otherwise"
    assert "`rookery quantize --packed` writes a file that is mapped" in rookery("info", plain).out
    facts = fates(rookery, packed)
    assert facts["ready"]
    model = weights.load(packed)
    small = sum(model.tensors[p.name].nbytes for p in model.params if p.kind == "vector" and not p.optional)
    assert facts["copied"] == small
    assert facts["mapped"] == sum(model.tensors[p.name].nbytes for p in model.params if p.kind != "vector")
    out = rookery("info", packed).out
    assert "writes a file that is mapped" not in out
    assert re.search(r"\nattention +panel_q8 +0\.\d\d +0\.00  panels\n", out)
    weights.convert("gosling", tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth") as source, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert fates(rookery, tmp_path / "b.pth")["mapped"] > 0  # the embedding
    assert fates(rookery, deflated)["mapped"] == 0


def test_info_of_panels_that_cannot_be_mapped(rookery: Any, tmp_path: Path) -> None:
    """Another program may move them off their boundary; a pair may lie the other way round."""
    path = tmp_path / "a.safetensors"
    quantise.quantise("gosling", path, quantise.Plan("q8_0"), packed=True)
    tensors = dict(formats.read(path).tensors)
    tensors["blocks.0.att.w1"] = panels.of(tensors["blocks.0.att.w1"].permuted(0, 1))
    formats.write(path, tensors)
    rows = fates(rookery, path)["tensors"]
    whys = [row["why"] for row in rows if row["class"] == "LoRA"]
    assert sorted(set(whys)) == ["panels", "the file holds it otherwise"]
    data = path.read_bytes()
    head = int.from_bytes(data[:8], "little") + 1
    path.write_bytes(head.to_bytes(8, "little") + data[8 : 7 + head] + b" " + data[7 + head :])
    facts = fates(rookery, path)
    assert {row["why"] for row in facts["tensors"] if row["class"] == "head"} == {"panels off a boundary of 64 bytes"}
    assert not facts["ready"]


def test_info_of_every_shared_model(rookery: Any, shared: Path) -> None:
    for path in sorted((shared / "fixtures" / "models").iterdir()):
        facts = json.loads(rookery("info", "--json", path).out)
        assert f"-{facts['version'][0]}v" in path.stem
        if "Q5" in path.stem:
            assert {"q5_0", "q5_1"} & {row["dtype"] for row in facts["types"]}


@pytest.mark.parametrize("target", ["out.pth", "out.safetensors", "out.gguf", "out.bin --to pth"])
def test_convert(rookery: Any, tmp_path: Path, target: str) -> None:
    name, *to = target.split()
    out = tmp_path / name
    code, said, err = rookery("convert", MODEL, out, *to)
    assert (code, err) == (0, "")
    wanted = to[1] if to else name.split(".")[1]
    assert said == f"wrote {out}: {wanted}, {out.stat().st_size / 1e6:.1f} MB\n"
    before, after = weights.load(MODEL), weights.load(out)
    assert after.format == wanted
    assert after.lineage == before.fingerprint
    assert (after.fingerprint == before.fingerprint) == (wanted != "gguf")  # whose vectors are wider
    assert [p.name for p in tmp_path.iterdir()] == [name]
    check_mistake(rookery("convert", MODEL, out, *to), f"{out}: exists already; --force")
    report = json.loads(rookery("convert", MODEL, out, *to, "--force", "--json").out)
    assert report == {"source": MODEL, "target": str(out), "format": wanted, "bytes": out.stat().st_size}


def test_a_conversion_that_fails_writes_nothing(rookery: Any, tmp_path: Path) -> None:
    damaged, out = tmp_path / "damaged.safetensors", tmp_path / "out.pth"
    damaged.write_bytes(Path(MODEL).read_bytes()[:-1])
    check_mistake(rookery("convert", damaged, out), str(damaged))
    check_mistake(rookery("convert", tmp_path / "none.pth", out), "none.pth")
    check_mistake(rookery("convert", MODEL, tmp_path / "out.ggml"), "out.ggml")
    check_mistake(rookery("convert", MODEL, tmp_path / "out.pth", "--to", "zip"), "out.pth")
    check_mistake(rookery("convert", MODEL, tmp_path / "no" / "out.pth"), "out.pth")
    assert [p.name for p in tmp_path.iterdir()] == [damaged.name]
    out.write_text("mine")
    check_mistake(rookery("convert", damaged, out, "--force"), str(damaged))
    check_mistake(rookery("convert", damaged, damaged, "--force"), "is the source itself")
    assert out.read_text() == "mine"


@pytest.mark.parametrize(("content", "part"), [
    (b"", "has no bytes"), (b"hello there", "looks like text"), (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "HDF5"),
    (b"\x01\x02\x03\x04" * 9, "unknown first bytes"), (b"\x80\x04K\x01.", "pickle"),
])  # fmt: skip
def test_info_of_what_is_no_model(rookery: Any, tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    check_mistake(rookery("info", path), str(path), part)


def test_info_of_what_cannot_be_opened(rookery: Any, tmp_path: Path) -> None:
    check_mistake(rookery("info", tmp_path / "none"), "none")
    check_mistake(rookery("info", tmp_path), str(tmp_path))
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
        closed = tmp_path / "closed"
        closed.write_bytes(b"x")
        closed.chmod(0)
        check_mistake(rookery("info", closed), "closed")


def sound() -> tuple[bool, str]:
    return True, "as it should be"


def test_doctor(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.CHECKS, "packaged model", sound)
    code, out, _ = rookery("doctor", "--json")
    report = json.loads(out)
    assert list(report) == list(doctor.CHECKS)
    assert code == (0 if all(check["ok"] for check in report.values()) else 1)
    assert report["numpy"]["detail"] == importlib.metadata.version("numpy")
    assert report["World vocabulary"] == {"name": "World vocabulary", "ok": True, "detail": "65,536 tokens"}
    assert len(rookery("doctor").out.splitlines()) == len(doctor.CHECKS)


def test_doctor_names_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _native.available():
        assert doctor._kernels() == (True, "none without the native core")
        return
    ok, detail = doctor._kernels()
    assert ok
    assert detail.startswith(f"{_native.core.isa()}, chosen from ")
    assert "generic" in detail
    assert "threads" in detail
    environment = os.environ | {"ROOKERY_ISA": "mmx"}
    command = [sys.executable, "-c", "from rookery.cli import doctor; print(doctor._checked('k', doctor._kernels))"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "'ok': False" in said
    assert "mmx" in said
    monkeypatch.setattr(_native, "reason", "not built")
    assert doctor._kernels() == (True, "none without the native core")


def test_doctor_finds_what_is_broken_and_survives_it(rookery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> tuple[bool, str]:
        raise TokenizerError("the vocabulary is missing; reinstall it")

    def mad() -> tuple[bool, str]:
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(doctor, "CHECKS", {"python": sound, "World vocabulary": lost, "torch": mad})
    code, out, _ = rookery("doctor")
    assert code == 1
    assert "World vocabulary  BROKEN: the vocabulary is missing; reinstall it\n" in out
    assert "torch             BROKEN: RuntimeError('undefined symbol')\n" in out


def test_doctor_reads_the_extras_from_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1.26", 'never-heard-of; extra == "chat"', "no-such-thing; extra == 'chat'"]
    lines.append('numpy; extra == "lab"')
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*lines, "rookery[chat]; extra == 'all'"])
    assert doctor._extras() == (True, "chat lacks never-heard-of, no-such-thing; lab complete")


def test_the_help_page_is_what_the_program_says() -> None:
    page = ROOT / "docs" / "help.md"
    script = [sys.executable, str(ROOT / "scripts" / "help_pages.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max-tokens" in page.read_text("utf-8")


def test_info_of_ggufs(rookery: Any, tmp_path: Path) -> None:
    """One with a vocabulary, whose arrays are counted and not printed; and a Transformer's."""
    weights.convert("gosling", tmp_path / "ours.gguf")
    facts = json.loads(rookery("info", "--json", tmp_path / "ours.gguf").out)
    assert facts["format"] == "gguf"
    assert facts["metadata"]["tokenizer.ggml.tokens"] == "4096 values"
    assert facts["metadata"]["rwkv7.block_count"] == facts["n_layer"]
    formats.write(tmp_path / "llama.gguf", {}, {"general.architecture": "llama\x1b[0m"})
    check_mistake(rookery("info", tmp_path / "llama.gguf"), r"the architecture 'llama\x1b[0m', which is no RWKV")
