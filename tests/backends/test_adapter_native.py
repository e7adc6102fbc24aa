"""Adapters beside a base on the C++ core: the reference's numbers, the base's panels, the law of rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_model
from natives import FIXTURES, PROMPT, outcome
from test_law_of_rows import check_law

from adapters_made import LINEARS, adapter
from rookery import Model, _native, backends, weights
from rookery.backends.reference.points import points
from rookery.weights import Weights, adapters
from rookery.weights.quantise import Plan, quantise
from tolerances import ADAPTER_BESIDE, LOGITS_BF16, LOGITS_CODES, MATTERS

if not _native.available():
    pytest.skip("the native core is not built", allow_module_level=True)

from rookery.backends.native import pack

VERSIONS = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v7")
METHODS = ("lora", "dora", "pissa", "miss", "whole")


def opened(path: Path, **options: Any) -> Model:
    of = weights.load(path)
    return Model(of, backends.runner(of, "native", **{"threads": 2, **options}))


def run(of: Weights, backend: str, **options: Any) -> Any:
    return Model(of, backends.runner(of, backend, **options)).forward(PROMPT, every=True)[0]


def apart(mine: Any, theirs: Any) -> float:
    """The largest difference, over the largest logit."""
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


def rms(mine: Any, theirs: Any) -> float:
    return float(np.sqrt(np.square(mine - theirs).mean() / np.square(theirs).mean()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("version", VERSIONS)
def test_beside_is_the_reference_and_merged(version: str, method: str) -> None:
    base = opened(FIXTURES / f"{version}.safetensors")
    one = adapter(base.weights, method)
    mine = base.adapted(one).forward(PROMPT, every=True)[0]
    assert apart(mine, run(adapters.beside(base.weights, one), "reference")) <= ADAPTER_BESIDE
    assert apart(mine, run(adapters.merged(base.weights, one), "native")) <= ADAPTER_BESIDE
    assert apart(mine, base.forward(PROMPT, every=True)[0]) > MATTERS


@pytest.mark.parametrize(
    ("dtype", "bar"), [("q8_0", LOGITS_CODES), ("q4_0", LOGITS_CODES), ("bf16", LOGITS_BF16), ("f16", ADAPTER_BESIDE)]
)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_base_of_few_bits_keeps_them(dtype: str, bar: float, method: str, tmp_path: Path) -> None:
    """The reference widens the blocks; so does the native float32, exactly. Panels of the base stay as they are."""
    quantise(random_model(tmp_path / "m.safetensors", "7", 4, 256, 512), tmp_path / "m.gguf", Plan(dtype))
    base, exact = (opened(tmp_path / "m.gguf", dtype=kind) for kind in (None, "float32"))
    one = adapter(base.weights, method)
    wanted = run(adapters.beside(base.weights, one), "reference")
    assert rms(base.adapted(one).forward(PROMPT, every=True)[0], wanted) <= bar
    assert apart(exact.adapted(one).forward(PROMPT, every=True)[0], wanted) <= ADAPTER_BESIDE
    assert rms(base.forward(PROMPT, every=True)[0], wanted) > LOGITS_CODES


@pytest.mark.parametrize("dtype", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_do_not_depend_on_their_neighbours(dtype: str, threads: int, tmp_path: Path) -> None:
    quantise(random_model(tmp_path / "m.safetensors", "7", 5), tmp_path / "m.gguf", Plan(dtype))
    base = opened(tmp_path / "m.gguf", threads=threads)
    check_law(base.adapted(adapter(base.weights, rank=7)))


@pytest.mark.parametrize("version", ["v4", "v6", "v7"])
def test_listening_changes_no_bit(version: str) -> None:
    base = opened(FIXTURES / f"{version}.safetensors")
    model = base.adapted(adapter(base.weights, "dora"))
    plain = outcome(model)
    heard: dict[str, Any] = {}
    model.runner.listen(heard.__setitem__, points(model.config))
    assert outcome(model) == plain
    model.runner.listen(None)
    reference = backends.runner(model.weights, "reference")
    told: dict[str, Any] = {}
    reference.listen(told.__setitem__, points(model.config))
    reference.step([PROMPT], [model.state().flat])
    assert heard.keys() == told.keys() != set()
    for name, values in told.items():
        assert apart(heard[name], values) <= ADAPTER_BESIDE, name


@pytest.mark.parametrize("packed", [False, True])
def test_no_panel_of_the_base_is_made_twice(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("m.safetensors" if packed else "m.gguf")
    quantise(random_model(tmp_path / "from.safetensors", "6", 4, 256, 512), path, Plan("q8_0"), packed=packed)
    base = opened(path)
    filled: list[str] = []
    fill = pack.Weight.fill
    monkeypatch.setattr(pack.Weight, "fill", lambda self, out: filled.append(self.name) or fill(self, out))
    one, two = (base.adapted(adapter(base.weights, seed=seed)) for seed in (1, 2))
    linears = [p.name for p in base.weights.params if p.kind in LINEARS]
    assert sorted(filled) == sorted(f"{name}:{side}" for name in 2 * linears for side in "ab")
    held = {id(w) for w in base.runner._held}
    for model in (one, two):
        runner = model.runner
        sides = [w for w in runner._held if id(w) not in held]
        assert held < {id(w) for w in runner._held}
        assert runner.memory.mapped == 0
        assert sum(runner.memory.copied.values()) == sum(w.nbytes for w in sides)
        assert runner.engine.weight_bytes == base.runner.engine.weight_bytes + sum(w.nbytes for w in sides)


def test_side_by_side_in_threads_as_alone() -> None:
    base = opened(FIXTURES / "v7.safetensors")
    models = [base, *(base.adapted(adapter(base.weights, seed=seed)) for seed in range(3))]
    alone = [outcome(model) for model in models]
    assert len(set(alone)) == len(models)
    with ThreadPoolExecutor(len(models)) as pool:
        for _ in range(10):
            assert list(pool.map(outcome, models)) == alone


def test_an_adapter_upon_an_adapter_is_both(tmp_path: Path) -> None:
    base = opened(FIXTURES / "v6.safetensors")
    one, two = adapter(base.weights, seed=1), adapter(base.weights, "pissa", seed=2)
    chained = base.adapted(one).adapted(two)
    assert outcome(chained) == outcome(base.adapted(one, two))
    assert chained.weights.fingerprint == base.adapted(one, two).weights.fingerprint
