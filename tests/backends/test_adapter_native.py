"""Adapters beside a base on the C++ core: the reference's numbers, the base's panels, the law of rows."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_model
from natives import FIXTURES, PROMPT, outcome
from plan_interpreter import Core
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


# -- together ----------------------------------------------------------------------------------------------------------


def family(path: Path, **options: Any) -> list[Model]:
    """A base, adapters of several ranks and places, and one that stands upon another."""
    base = opened(path, **options)
    of = base.weights
    few = [p.name for p in of.params if p.kind in LINEARS][1::2]
    one = base.adapted(adapter(of, seed=1))
    return [
        base,
        one,
        base.adapted(adapter(of, "pissa", seed=2, rank=7)),
        base.adapted(adapter(of, seed=3, rank=17, names=few)),
        base.adapted(adapter(of, "miss", seed=4, rank=5)),
        one.adapted(adapter(of, seed=5, rank=1)),
    ]


def together(models: list[Model], rows: list[Any], every: bool) -> list[Any]:
    """Logits and states of a step."""
    states = [model.state().flat for model in models]
    runner: Any = models[0].runner
    outs = runner.together([model.runner for model in models], rows, states, every)
    return list(zip(outs, states, strict=True))


def check_together(models: list[Model]) -> None:
    rng = np.random.default_rng(8)
    for lengths in ([1] * 12, [3, 1, 40, 2, 1, 7, 130, 1, 64, 5, 1, 90], [1]):
        who = [models[i] for i in rng.integers(0, len(models), len(lengths))]
        rows = [rng.integers(0, 256, n) for n in lengths]
        for every in (False, True):
            for model, ids, (logits, state) in zip(who, rows, together(who, rows, every), strict=True):
                wanted, after = model.forward(ids, every=every)
                np.testing.assert_array_equal(logits, wanted)
                assert state.tobytes() == after.flat.tobytes()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("version", VERSIONS)
def test_together_is_each_alone(version: str, threads: int) -> None:
    models = family(FIXTURES / f"{version}.safetensors", threads=threads)
    assert len({id(model.runner.family) for model in models}) == 1
    assert len({outcome(model) for model in models}) == len(models)
    check_together(models)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "bf16"])
def test_together_over_few_bits(dtype: str, tmp_path: Path) -> None:
    quantise(random_model(tmp_path / "m.safetensors", "7", 5), tmp_path / "m.gguf", Plan(dtype))
    check_together(family(tmp_path / "m.gguf"))


@pytest.mark.parametrize("method", ["dora", "whole"])
def test_what_is_more_than_a_side_goes_alone(method: str) -> None:
    base = opened(FIXTURES / "v7.safetensors")
    other = base.adapted(adapter(base.weights, method))
    upon = other.adapted(adapter(base.weights, seed=1))
    assert other.runner.family is not base.runner.family
    assert upon.runner.family not in (base.runner.family, other.runner.family)
    assert base.adapted(adapter(base.weights)).runner.family is base.runner.family
    [(logits, _)] = together([other], [np.array([1, 2, 3])], False)
    np.testing.assert_array_equal(logits, other.forward([1, 2, 3])[0])


@pytest.mark.parametrize("version", ["v4", "v6", "v7"])
def test_the_plan_of_a_family_is_right_in_any_order(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the interpreter: threads in any order, buffers that begin as NaN; against the reference, each alone."""
    monkeypatch.setattr(_native, "core", Core(1))
    models = family(FIXTURES / f"{version}.safetensors")
    rows = [np.arange(3 + n % 3) * 9 + n for n in range(len(models))]
    for every in (False, True):
        for model, ids, (logits, _) in zip(models, rows, together(models, rows, every), strict=True):
            alone = Model(model.weights, backends.runner(model.weights, "reference")).forward(ids, every=every)[0]
            assert apart(logits, alone) <= ADAPTER_BESIDE


def test_a_family_grows_and_forgets() -> None:
    models = family(FIXTURES / "v7.safetensors")
    base = models[0]
    ids = [np.array([1, 2, 3])]
    check_together(models[:2])
    late = base.adapted(adapter(base.weights, seed=9))
    check_together([base, late])
    made: Any = base.runner.family
    assert len(made._members) == len(models) + 1
    del late, models[2:]
    gc.collect()
    assert len(made._members) == len(models)
    assert together(models, ids * 2, False)
    newest = base.adapted(adapter(base.weights, seed=10))
    check_together([*models, newest])
    assert len(made._groups) == len(models) + 1


def test_what_an_adapter_took_is_free_when_it_goes() -> None:
    models = family(FIXTURES / "v7.safetensors")[:3]
    together(models, [np.array([1])] * 3, False)
    runner: Any = models[2].runner
    sides = [weakref.ref(w) for pair in runner.sides.values() for w in pair]
    assert sides
    del runner, models[2:]
    gc.collect()
    assert not any(w() for w in sides)
    check_together(models)


def test_the_weights_are_there_once_for_all(tmp_path: Path) -> None:
    quantise(random_model(tmp_path / "from.safetensors", "6", 4, 256, 512), tmp_path / "m.gguf", Plan("q8_0"))
    models = family(tmp_path / "m.gguf")
    runners: list[Any] = [model.runner for model in models]
    _, groups = runners[0].family.plan(runners)
    assert sorted(groups) == list(range(len(models)))
    beside = sum(w.nbytes for runner in runners for pair in runner.sides.values() for w in pair)
    for runner in runners[1:]:
        assert runner.engine is runners[1].engine is not runners[0].engine
        assert runner.engine.weight_bytes == runners[0].engine.weight_bytes + beside
        assert runner.plan is runners[1].plan
