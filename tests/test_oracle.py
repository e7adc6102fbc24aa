"""The oracle against references made by others, the committed fixtures against the oracle, and planted errors seen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import oracle
from oracle import PLANTED, Oracle, read_safetensors
from tolerances import LOGITS_NATIVE, MATTERS, ORACLE, ORACLE_V7_CONSTANT, STATE_STORED

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name.removesuffix(".safetensors") for path in FIXTURES.glob("*.safetensors"))
SHARED = {
    "4v0-660K": "tiny-rwkv-4v0-660K",
    "5v2-730K": "tiny-rwkv-5v2-730K",
    "6v0-1m": "tiny-rwkv-6v0-1m",
    "7v0-834K": "tiny-rwkv-7v0-834K",
    **{name: name for name in ("synth-4v0", "synth-5v1", "synth-5v2", "synth-6v0", "synth-6v0-timestate", "synth-7v0")},
}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    path = FIXTURES.parent.parent / "scripts" / "make_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_fixtures"] = module
    spec.loader.exec_module(module)
    return module


def package_order(model: Oracle) -> list[np.ndarray]:
    """The state as the `rwkv` package lists it."""
    pieces = []
    for layer in model.layers:
        wkv = list(layer["wkv"]) if model.version == "4" else [layer["wkv"]]
        if model.version == "7":
            wkv = [layer["wkv"].transpose(0, 2, 1)]
        pieces += [layer["att_shift"], *wkv, layer["ffn_shift"]]
    return pieces


def check_reference(shared: Path, name: str, suffix: str, eps: float | None, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    path = shared / "fixtures" / "models" / f"{SHARED[name]}.pth"
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    model = Oracle({key: value.numpy() for key, value in loaded.items()}, eps)
    with np.load(shared / "fixtures" / "refs" / f"{name}.npz") as refs:
        for prompt in ("r12",) if name.startswith("synth") else ("p16", "rand48"):
            logits = model.run(refs[f"{prompt}/tokens"])
            wanted = refs[f"{prompt}/logits_f64{suffix}"]
            assert np.abs((logits if wanted.ndim == 2 else logits[-1]) - wanted).max() < tolerance
            for i, piece in enumerate(package_order(model)):
                stored = refs[f"{prompt}/state_{i:02}{suffix}"]
                assert stored.shape == piece.shape
                assert np.abs(piece - stored).max() <= STATE_STORED * np.abs(piece).max()
            assert f"{prompt}/state_{i + 1:02}{suffix}" not in refs


@pytest.mark.parametrize("name", SHARED)
def test_agrees_with_references_made_by_others(shared: Path, name: str) -> None:
    check_reference(shared, name, "", None, ORACLE_V7_CONSTANT if "7v0" in name else ORACLE)


@pytest.mark.parametrize("name", ["7v0-834K", "synth-7v0"])
def test_v7_references_differ_by_their_rounded_constant_only(
    shared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "V7_DECAY", 0.606531)
    check_reference(shared, name, "", None, ORACLE)


def test_v5_group_norm_epsilon_can_be_overridden(shared: Path) -> None:
    check_reference(shared, "5v2-730K", "_eps1e-5", 1e-5, ORACLE)


@pytest.mark.parametrize("name", NAMES)
def test_committed_goldens(name: str) -> None:
    model = Oracle(read_safetensors(FIXTURES / f"{name}.safetensors"))
    assert model.version == name.removeprefix("v").removesuffix("-timestate")
    with np.load(FIXTURES / f"{name}.npz") as golden:
        logits = model.run(golden["tokens"])
        assert np.abs(logits[golden["positions"]] - golden["logits_f64"]).max() < ORACLE
        for i, layer in enumerate(model.layers):
            for piece, value in layer.items():
                assert np.abs(value - golden[f"state/{i}/{piece}"]).max() < ORACLE


def test_fixtures_cover_every_version(maker: ModuleType) -> None:
    assert sorted(maker.SHAPES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_script_makes_the_committed_weights(name: str, maker: ModuleType) -> None:
    made, stored = maker.Maker(maker.SHAPES[name]).model(), read_safetensors(FIXTURES / f"{name}.safetensors")
    assert set(made) == set(stored)
    for key, value in made.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, stored[key], strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_matters(name: str, maker: ModuleType) -> None:
    """Else a conformance test could pass without reading it. v7's v0, v1, v2 of block 0 are in the file and unread."""
    with np.load(FIXTURES / f"{name}.npz") as golden:
        tokens = golden["tokens"][:10]
    moved = maker.weights_of_tensors(read_safetensors(FIXTURES / f"{name}.safetensors"), tokens)
    unread = {key for key, value in moved.items() if value <= MATTERS}
    assert unread == ({f"blocks.0.att.v{i}" for i in range(3)} if name == "v7" else set())


@pytest.mark.parametrize(("name", "error"), [(name, error) for name in NAMES for error in PLANTED])
def test_planted_errors_move_logits(name: str, error: str) -> None:
    tensors = read_safetensors(FIXTURES / f"{name}.safetensors")
    right = Oracle(tensors)
    if right.version not in PLANTED[error]:
        with pytest.raises(ValueError, match="cannot go wrong"):
            Oracle(tensors, planted=error)
        return
    wrong = Oracle(tensors, planted=error)
    with np.load(FIXTURES / f"{name}.npz") as golden:
        tokens = golden["tokens"]
    assert np.abs(wrong.run(tokens) - right.run(tokens)).max() > 10 * LOGITS_NATIVE
