"""rookery.load(adapter=...) and Model.adapted: another model, on each back end, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rookery
from adapters_made import adapter
from rookery import _native, weights
from rookery.errors import AdapterError, MissingFile, StateError, StoreError
from rookery.weights.adapters import Adapter, LowRank, file
from tolerances import ADAPTER_BESIDE

FIXTURES = Path(__file__).parent / "fixtures"
V7 = FIXTURES / "v7.safetensors"
TEXT = list(b"a text of some length, read by all")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """made("lora", seed=0): the file of an adapter of V7."""

    def write(method: str = "lora", seed: int = 0) -> Path:
        path = tmp_path / f"{method}{seed}.safetensors"
        file.write(path, adapter(weights.load(V7), method, seed))
        return path

    return write


@pytest.mark.parametrize("backend", ["native", "reference", "torch"])
def test_loaded_with_it_is_given_it_later(backend: str, made: Callable[..., Path]) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    elif backend == "native" and not _native.available():
        pytest.skip("the native core is not built")
    one, two = made(), made("dora", 1)
    base = rookery.load(V7, backend=backend, tokenizer="bytes")
    plain, _ = base.forward(TEXT, every=True)
    later, at_once = base.adapted(one, two), rookery.load(V7, backend, tokenizer="bytes", adapter=[one, two])
    assert later.backend == at_once.backend == backend
    assert later.arithmetic == base.arithmetic
    assert later.tokenizer is base.tokenizer
    (a, state), (b, _) = (model.forward(TEXT, every=True) for model in (later, at_once))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(base.forward(TEXT, every=True)[0], plain)
    wanted = rookery.load(V7, "reference", adapter=[one, two]).forward(TEXT, every=True)[0]
    assert np.abs(a - wanted).max() <= ADAPTER_BESIDE * np.abs(wanted).max()
    assert np.abs(a - plain).max() > 0.1
    at_once.check(state)
    assert "".join(later.stream(TEXT, 5, seed=1)) == "".join(at_once.stream(TEXT, 5, seed=1))


def test_its_states_are_its_own(made: Callable[..., Path], tmp_path: Path) -> None:
    base = rookery.load(V7, tokenizer="bytes")
    one, other = base.adapted(made()), base.adapted(made(seed=1))
    _, state = base.forward(TEXT)
    with pytest.raises(StateError, match=r"is of .*v7\.safetensors alone, not of .* with .*lora0\.safetensors; leave"):
        one.forward(TEXT, state)
    _, tuned = one.forward(TEXT)
    for model in (base, other):
        with pytest.raises(StateError, match="made by another model than"):
            model.forward(TEXT, tuned)
    tuned.save(tmp_path / "tuned.state")
    assert rookery.State.load(tmp_path / "tuned.state", rookery.load(V7, adapter=made())).delta(tuned) == 0
    with pytest.raises(StateError, match="another model"):
        rookery.State.load(tmp_path / "tuned.state", base)


def test_a_talk_is_not_gone_on_with_under_another(made: Callable[..., Path], tmp_path: Path) -> None:
    base = rookery.load(V7, tokenizer="bytes")
    one, store = base.adapted(made()), tmp_path / "talks.db"
    said = rookery.Session(one, store=store, name="mine").say("hello", 5).text
    assert rookery.Session.resume(store, "mine", base.adapted(made())).turns[0].reply == said
    for model in (base, base.adapted(made(seed=1))):
        with pytest.raises((StateError, StoreError), match="another model"):
            rookery.Session.resume(store, "mine", model)


def test_it_says_what_is_beside_it(made: Callable[..., Path]) -> None:
    path = made("dora")
    model = rookery.load(V7, tokenizer="bytes").adapted(path)
    assert repr(model).endswith(f", dora {path})")
    assert model.source == f"{V7} with {path}"


@pytest.mark.parametrize("wrong", ["another base", "another rank", "missing", "no adapter"])
def test_what_does_not_fit_is_refused_before_anything_is_packed(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, path = weights.load(V7), tmp_path / "a.safetensors"
    bad: dict[str, tuple[Adapter, type[Exception], str]] = {
        "another base": (adapter(weights.load(FIXTURES / "v6.safetensors")), AdapterError, "made for another model"),
        "another rank": (_torn(adapter(of)), AdapterError, "whose ranks do not meet"),
        "missing": (adapter(of), MissingFile, "No such file"),
        "no adapter": (adapter(of), AdapterError, "not an adapter"),
    }
    one, kind, said = bad[wrong]
    if wrong == "no adapter":
        path = V7
    elif wrong != "missing":
        file.write(path, one)
    monkeypatch.setattr("rookery.model.runner", lambda *_, **__: pytest.fail("a back end was made"))
    with pytest.raises(kind, match=said):
        rookery.load(V7, adapter=path)


def _torn(one: Adapter) -> Adapter:
    name, part = next(iter(one.parts.items()))
    assert isinstance(part, LowRank)
    return replace(one, parts={**one.parts, name: LowRank(part.a, part.b[:, 1:], part.scale)})


def test_float64_stays_float64() -> None:
    made = rookery.load(V7, dtype="float64").adapted(adapter(weights.load(V7)))
    assert made.forward(TEXT)[0].dtype == np.float64
