"""The native back end against the reference: odd sizes, every storage type, taps, and what it says when it cannot."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_model
from plan_interpreter import Core

import rookery
from rookery import Model, _native, backends, weights
from rookery.errors import BackendError, InputError
from rookery.formats.blocks import BLOCKS
from rookery.weights.quantise import Plan, quantise
from tolerances import LOGITS_BF16, LOGITS_CODES, LOGITS_NATIVE, LOGITS_SAME_CODES, LOGITS_TEXT, STATE

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

from rookery.backends.native import Runner, pack, runner

FIXTURES = Path(__file__).parent.parent / "fixtures"
V7 = FIXTURES / "v7.safetensors"
PROMPTS = [list(range(24)), [5, 9, 200]]
KIND = {"q8_0": "q8", "q5_0": "q8", "q4_0": "q4", "f16": "f16", "bf16": "bf16"}  # of the panels; else x8


def logits(model: Model) -> Any:
    """[27, V]"""
    return np.concatenate([rows for rows, _ in model.forward_batch(PROMPTS, every=True)])


def apart(mine: Any, theirs: Any) -> float:
    """Relative RMS."""
    return float(
        np.sqrt(np.square(mine - theirs, dtype=np.float64).mean() / np.square(theirs, dtype=np.float64).mean())
    )


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "heads"),
    [("4", 0), ("5.0", 6), ("5.1", 12), ("5.2", 4), ("6", 4), ("6", 12), ("7", 12), ("7", 6), ("7", 4)],
)
def test_sizes_that_divide_nothing(version: str, heads: int, tmp_path: Path) -> None:
    """Heads of 8, 16 and 24; a vocabulary, hidden width and ranks that are no whole panels or blocks."""
    ranks = {"w": 20, "a": 12, "v": 7, "g": 33, "maa": 10, "decay": 21}
    path = random_model(tmp_path / "m.safetensors", version, heads, 96, 202, vocabulary=277, ranks=ranks)
    mine, theirs = (rookery.load(path, backend=name) for name in ("native", "reference"))
    for prompt in (list(range(70, 0, -1)), [276]):
        got, end = mine.forward(prompt, every=True)
        wanted, after = theirs.forward(prompt, every=True)
        assert np.abs(got - wanted).max() <= LOGITS_TEXT < LOGITS_NATIVE
        for i in range(2):
            for a, b in zip(vars(end.layer(i)).values(), vars(after.layer(i)).values(), strict=True):
                assert np.abs(a - b).max() <= STATE * np.abs(b).max()


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*BLOCKS, "f16", "bf16"])
@pytest.mark.parametrize("version", ["6", "7"])
def test_types(version: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = random_model(tmp_path / "m.safetensors", version, 4, 256, 512), tmp_path / "m.gguf"
    quantise(source, path, Plan(dtype))
    mine, theirs = (rookery.load(path, backend=name) for name in ("native", "reference"))
    wanted = logits(theirs)
    assert apart(logits(mine), wanted) <= {"f16": LOGITS_TEXT, "bf16": LOGITS_BF16}.get(dtype, LOGITS_CODES)
    with monkeypatch.context() as m:
        m.setattr(_native, "core", Core())
        interpreted = rookery.load(path, backend="native")
    assert apart(logits(mine), logits(interpreted)) <= LOGITS_SAME_CODES
    exact = rookery.load(path, backend="native", dtype="float32")
    assert apart(logits(exact), wanted) <= LOGITS_TEXT
    kinds = {w.kind for w in mine.runner._held if isinstance(w, pack.Weight) and not w.turned}
    assert kinds == {KIND.get(dtype, "x8")}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", ["6", "7"])
def test_low_rank_pairs_in_blocks(version: str, packed: bool, tmp_path: Path) -> None:
    """A GGUF's are widened, since its blocks lie across ours; a packed file's read codes, v6's those of a slice."""
    ranks = dict.fromkeys(("w", "a", "v", "g", "maa", "decay"), 32)
    source = random_model(tmp_path / "m.safetensors", version, 4, 256, 512, ranks=ranks)
    path = tmp_path / ("packed.safetensors" if packed else "m.gguf")
    quantise(source, path, Plan("q8_0", lora=True), packed=packed)
    mine, theirs = (rookery.load(path, backend=name) for name in ("native", "reference"))
    assert {w.kind for w in mine.runner._held if isinstance(w, pack.Weight) and w.turned} == {"q8" if packed else "f32"}
    assert apart(logits(mine), logits(theirs)) <= LOGITS_CODES


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8_0", "q4_0", "q5_1"])
def test_a_packed_file_gives_the_same_bits_and_is_used_where_it_lies(dtype: str, tmp_path: Path) -> None:
    source = random_model(tmp_path / "m.safetensors", "7", 4, 256, 512)
    quantise(source, tmp_path / "m.gguf", Plan(dtype))
    quantise(source, tmp_path / "packed.safetensors", Plan(dtype), packed=True)
    plain, packed = (rookery.load(tmp_path / name, backend="native") for name in ("m.gguf", "packed.safetensors"))
    np.testing.assert_array_equal(logits(packed), logits(plain))
    assert plain.runner.memory.mapped == weights.load(tmp_path / "m.gguf").tensors["emb.weight"].nbytes
    assert not packed.runner.memory.copied
    exact = (rookery.load(m.weights.path, backend="native", dtype="float32") for m in (packed, plain))
    np.testing.assert_array_equal(*map(logits, exact))


def test_float32_that_fits_half_its_width_takes_half(tmp_path: Path) -> None:
    from rookery.formats import Tensor, write

    tensors = dict(weights.load(V7).tensors)
    for name, narrow in (("blocks.0.att.key.weight", "bf16"), ("blocks.1.att.w1", "f16")):
        tensors[name] = Tensor.of(Tensor.of(tensors[name].float32(), narrow).float32())
    write(tmp_path / "m.safetensors", tensors)
    mine, theirs = (rookery.load(tmp_path / "m.safetensors", backend=name) for name in ("native", "reference"))
    kinds = {w.name: (w.kind, w.reads) for w in mine.runner._held if isinstance(w, pack.Weight)}
    assert kinds["blocks.0.att.key.weight"] == ("bf16", "f32")
    assert kinds["blocks.1.att.w1"] == ("f16", "f32")
    assert kinds["blocks.1.att.key.weight"] == ("f32", "f32")
    assert np.abs(logits(mine) - logits(theirs)).max() <= LOGITS_TEXT


# -- taps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v4", "v5.0", "v5.2", "v6", "v7"])
def test_taps_are_those_of_the_reference_and_change_no_bit(name: str) -> None:
    mine, theirs = (rookery.load(FIXTURES / f"{name}.safetensors", backend=b) for b in ("native", "reference"))
    untapped = logits(mine)
    heard: list[dict[str, Any]] = [{}, {}]
    theirs.runner.listener = lambda name, x: heard[1].setdefault(name, x)
    logits(theirs)
    mine.runner.listen(heard[0].__setitem__, {point.split(".", 2)[2] for point in heard[1]})
    np.testing.assert_array_equal(logits(mine), untapped)
    got, wanted = heard
    assert set(got) == set(wanted)
    for point, values in wanted.items():
        assert got[point].shape == values.shape, point
        assert np.abs(got[point] - values).max() <= LOGITS_TEXT, point
    mine.runner.listen(None)
    heard[0].clear()
    np.testing.assert_array_equal(logits(mine), untapped)
    assert not heard[0]


def test_one_point_of_one_layer_over_several_runs() -> None:
    model = rookery.load(V7, backend="native")
    heard: dict[str, Any] = {}
    model.runner.listen(heard.__setitem__, "layers.1.att.k")
    model.forward_batch([list(range(200)), list(range(200))])
    assert set(heard) == {"layers.1.att.k"}
    with pytest.raises(InputError, match=r"no point 'layers.3.att.k' in RWKV-7 Goose"):
        model.runner.listen(print, ["att.k", "layers.3.att.k"])
    np.testing.assert_array_equal(heard["layers.1.att.k"][:200], heard["layers.1.att.k"][200:])


def test_who_listens_now_and_then_waits_for_no_plan() -> None:
    runner = rookery.load(V7, backend="native").runner
    bare = runner.plan
    runner.listen(print, ["layers.1.att.k"])
    tapped = runner.plan
    for _ in range(2):
        runner.listen(None)
        assert runner.plan is bare
        runner.listen(print, "layers.1.att.k")
        assert runner.plan is tapped
    runner.listen(print, "att.v")
    assert runner.plan not in (bare, tapped)


def test_each_thread_hears_its_own_rows() -> None:
    model = rookery.load(V7, backend="native", threads=1)
    heard: dict[int, set[bytes]] = {}
    both = threading.Barrier(2)

    def listen(name: str, rows: Any) -> None:
        heard.setdefault(threading.get_ident(), set()).add(rows.tobytes())

    def feed(token: int) -> int:
        both.wait()
        for _ in range(200):
            model.forward([token] * 3)
        return threading.get_ident()

    model.runner.listen(listen, ["layers.1.att.k"])
    with ThreadPoolExecutor(2) as pool:
        for thread in list(pool.map(feed, [1, 2])):
            assert len(heard[thread]) == 1


# -- the runner --------------------------------------------------------------------------------------------------------


def test_runs() -> None:
    cuts = [[(c.sequence, c.begin, c.end) for c in run] for run in runner.runs([300, 1, 211, 256])]
    assert cuts == [
        [(0, 0, 256)],
        [(0, 256, 300), (1, 0, 1), (2, 0, 211)],
        [(3, 0, 256)],
    ]
    assert list(runner.runs([])) == []


def test_auto(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    loaded = weights.load(V7)
    assert backends.runner(loaded).name == "native"
    assert backends.runner(loaded, dtype="float64").name == "reference"
    monkeypatch.setattr(_native, "reason", "not built")
    monkeypatch.delenv("ROOKERY_REQUIRE_NATIVE", raising=False)
    _native.announce_missing.cache_clear()
    assert backends.runner(loaded).name == "reference"
    assert "NO NATIVE CORE" in caplog.text
    with pytest.raises(BackendError, match=r"native back end is missing \(not built\); .*C\+\+20"):
        backends.runner(loaded, "native")
    monkeypatch.setenv("ROOKERY_REQUIRE_NATIVE", "1")
    with pytest.raises(BackendError, match="ROOKERY_REQUIRE_NATIVE is set"):
        backends.runner(loaded)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = weights.load(V7)
    with pytest.raises(BackendError, match="device 'cuda': the native back end runs on the cpu"):
        Runner(loaded, device="cuda")
    with pytest.raises(BackendError, match="dtype 'float64': the native"):
        Runner(loaded, dtype="float64")
    with pytest.raises(BackendError, match="no back end 'x': choose auto, native, reference or torch"):
        backends.runner(loaded, "x")

    def full(size: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(pack, "aligned", full)
    with pytest.raises(BackendError, match=r"v7\.safetensors: out of memory for weights of \d MB"):
        Runner(loaded)


def test_threads() -> None:
    assert Runner(weights.load(V7), threads=3).engine.threads == 3
    assert 1 <= runner.cores() == Runner(weights.load(V7)).engine.threads


@pytest.mark.parametrize(("share", "most"), [("150000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", 16)])
def test_no_more_threads_than_a_container_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str, most: int
) -> None:
    (tmp_path / "cpu.max").write_text(share)
    monkeypatch.setattr(runner, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(runner, "_physical", lambda: 64)
    assert runner.cores() == most
