"""One engine, sequences of one base with several adapters: each as alone, and nothing crosses from one to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loads import BACKENDS, Ask, asks, drive, gosling, tiny

from adapters_made import adapter
from rookery import Model
from rookery.engine import Ended, Engine, Failed, Prefixes
from rookery.errors import StateError

V7 = list(range(60, 90))


def adapted(base: Model, count: int = 2) -> list[Model]:
    return [base, *(base.adapted(adapter(base.weights, seed=seed)) for seed in range(count))]


def run(engine: Engine, load: list[Ask]) -> None:
    for ask in load:
        engine.submit(ask.sequence)
    drive(engine, lambda: all(ask.over for ask in load))


def check_alone(load: list[Ask]) -> None:
    for ask in load:
        for k in range(ask.n):
            alone, ended = ask.alone(k), ask.ended(k)
            assert ended.draft is not None
            assert ended.point is not None
            assert ended.draft.tokens == alone.tokens
            assert ended.point[1].flat.tobytes() == alone.state.flat.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", ["v4", "v5.2", "v6", "v7"])
def test_a_batch_of_several_adapters_is_each_alone(version: str, backend: str) -> None:
    models = adapted(tiny(version, backend))
    models.append(models[0].adapted(adapter(models[0].weights, "dora", seed=5)))
    load = [ask for n, model in enumerate(models) for ask in asks(model, 12)[n :: len(models)]]
    run(Engine(models[0], max_batch=8), load[::-1])
    check_alone(load)
    texts = {tuple(Ask(model, V7, 12).alone().tokens) for model in models}
    assert len(texts) == len(models)  # else nothing was shown


def test_on_a_trained_model() -> None:
    models = adapted(gosling(), 3)
    prompts = [gosling().tokenizer.encode(text) for text in ("Once upon a time", "The fox", "A little boy had a")]
    load = [Ask(model, prompt, 24, seed=n) for n, model in enumerate(models) for prompt in prompts]
    run(Engine(models[0]), load)
    check_alone(load)


def heard(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each step of any of them has."""
    calls: list[int] = []

    def counting(do: Callable[..., Any], at: int) -> Callable[..., Any]:
        def step(*given: Any) -> Any:
            calls.append(len(given[at]))
            return do(*given)

        return step

    for model in models:
        runner = model.runner
        monkeypatch.setattr(runner, "step", counting(runner.step, 0))
        monkeypatch.setattr(runner, "together", counting(runner.together, 1))
    return calls


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_for_all_that_can_share_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On native every sequence but DoRA's, whose base is scaled; elsewhere those of one adapter."""
    base = tiny(backend=backend)
    models = [*adapted(base), base.adapted(adapter(base.weights, "dora"))]
    load = [Ask(model, V7, 10) for model in (*models, *models)]
    calls = heard(models, monkeypatch)
    engine = Engine(base)
    for ask in load:
        engine.submit(ask.sequence)
    drive(engine, lambda: engine.stats()["running"] == len(load))
    while all(not ask.over for ask in load):
        calls.clear()
        engine.step()
        assert sorted(calls) == ([2, 6] if backend == "native" else [2, 2, 2, 2])
    check_alone(load)


def test_an_adapter_that_fails_takes_no_other_step_along(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny()
    models = [*adapted(base, 1), base.adapted(adapter(base.weights, "dora"))]
    load = [Ask(model, V7, 10) for model in models]

    def broken(*_: Any) -> Any:
        raise RuntimeError("this one is broken")

    monkeypatch.setattr(models[2].runner, "step", broken)
    run(Engine(base), load)
    (event,) = [e for e in load[2].events if isinstance(e, Failed)]
    assert str(event.error) == "this one is broken"
    check_alone(load[:2])


def test_a_sequence_cannot_begin_with_the_bases_state() -> None:
    base, one = adapted(tiny(), 1)
    ask = Ask(base, V7, 5)
    ask.sequence.model = one
    run(Engine(base), [ask])
    (event,) = ask.events
    assert isinstance(event, Failed)
    assert isinstance(event.error, StateError)


def test_hidden_is_that_of_its_adapter() -> None:
    models = adapted(tiny(), 1)
    load = [Ask(model, V7, n=0, hidden=True) for model in (*models, models[1])]
    run(Engine(models[0]), load)
    last = f"layers.{models[0].config.n_layer - 1}.resid"
    found = [next(e.hidden for e in ask.events if isinstance(e, Ended)) for ask in load]
    for mine, ask in zip(found, load, strict=True):
        heard: list[Any] = []
        ask.model.runner.listen(lambda _, x, heard=heard: heard.append(x), [last])
        ask.model.forward(V7)
        ask.model.runner.listen(None)
        np.testing.assert_array_equal(mine, np.concatenate(heard).astype(np.float64).mean(0).astype(np.float32))
    assert not np.array_equal(found[0], found[1])


def test_known_prompts_do_not_cross() -> None:
    base, one, two = adapted(tiny())
    _, begin = one.forward([1, 2, 3])
    caches = [first := Prefixes(base), *(first.beside(*of) for of in ((one,), (two,), (one, begin)))]
    for n, (cache, model) in enumerate(zip(caches, (base, one, two, one), strict=True)):
        assert [other.find("me", V7)[0] for other in caches] == [len(V7)] * n + [0] * (len(caches) - n)
        cache.put("me", V7, *model.forward(V7, cache.find("me", V7)[2]))
    points = [cache.find("me", V7)[1:] for cache in caches]
    assert len({logits.tobytes() for logits, _ in points if logits is not None}) == len(caches)
    for (_, state), model in zip(points, (base, one, two, one), strict=True):
        model.check(state)
    assert caches[3].find("me", [9])[2].delta(begin) == 0
    assert caches[1].kept is first.kept
    assert first.kept.bytes == 4 * (4 * base.state_size + 4 * base.config.n_vocab)
