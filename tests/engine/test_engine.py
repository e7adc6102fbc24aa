"""The engine against each sequence alone: tokens, text, states; and what ends one without touching the others."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from loads import BACKENDS, FIXTURES, SAMPLINGS, VERSIONS, Ask, asks, drive, gosling, tiny

import rookery
from rookery import Sampling
from rookery.chat.grammar import constraint
from rookery.engine import Busy, Cancelled, Ended, Engine, Failed, Marked, Read, Scored, Sequence, Start, Wrote
from rookery.errors import BackendError, InputError
from tolerances import STATE_FLOAT64


def run(engine: Engine, *load: Ask) -> None:
    for ask in load:
        engine.submit(ask.sequence)
    drive(engine, lambda: all(ask.over for ask in load))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_mixed_batch_is_each_alone(version: str, backend: str) -> None:
    model = tiny(version, backend)
    load = asks(model, 12 if backend == "native" else 6)
    engine = Engine(model, max_batch=7, prefill_rows=13)
    run(engine, *load)
    for ask in load:
        for k in range(ask.n):
            alone = ask.alone(k)
            assert ask.drafts[k].tokens == alone.tokens
            assert ask.ended(k).draft is ask.drafts[k]
            assert ask.drafts[k].stop_reason == alone.stop_reason
            point, expected = ask.ended(k).point, alone.at_kept()
            assert point is not None
            assert expected is not None
            assert point[1].flat.tobytes() == expected[1].flat.tobytes()
            assert point[0].tobytes() == expected[0].tobytes()
    assert engine.stats()["places"] == engine.stats()["running"] == 0


@pytest.mark.parametrize("version", ["v4", "v5.2", "v6", "v7"])
def test_torch_is_each_alone_within_tolerance(version: str) -> None:
    pytest.importorskip("torch")
    model = rookery.load(FIXTURES / f"{version}.safetensors", backend="torch", dtype="float64", tokenizer="bytes")
    load = [Ask(model, ask.prompt, ask.tokens, ask.n) for ask in asks(model, 5)]  # greedy
    run(Engine(model, prefill_rows=13), *load)
    for ask in load:
        alone, point = ask.alone(), ask.ended().point
        assert ask.drafts[0].tokens == alone.tokens
        assert point is not None
        assert point[1].delta(alone.state) < STATE_FLOAT64


def test_stop_texts_cut_and_the_state_is_the_one_before_them() -> None:
    model = gosling()
    prompt = model.tokenizer.encode("User: Tell me about the sea.\n\nAssistant:")
    load = [Ask(model, prompt, tokens=60, stop=stop, seed=1) for stop in (["\n\n"], ["the"], [". T", " sea"], ["e s"])]
    run(Engine(model), *load)
    ends = set()
    for ask in load:
        alone = ask.alone()
        assert ask.text() == "".join([alone.data.decode()])
        assert ask.drafts[0].kept == alone.kept
        ends.add(alone.stop_reason)
        point, expected = ask.ended().point, alone.at_kept()
        assert (point is None) == (expected is None)
        if point is not None and expected is not None:
            assert point[1].flat.tobytes() == expected[1].flat.tobytes()
    assert "stop" in ends


def test_the_state_before_a_stop_text_of_several_tokens() -> None:
    model = tiny()
    letters = Sampling(temperature=1.5, logit_bias=dict.fromkeys(range(97, 123), 60.0))
    free = Ask(model, [1, 2, 3], 30, seed=4, sampling=letters).alone()
    stop = bytes(free.tokens[17:20]).decode()
    ask = Ask(model, [1, 2, 3], 30, seed=4, sampling=letters, stop=[stop, "nothing of this kind"])
    run(Engine(model), ask, *asks(model, 4))
    kept = ask.drafts[0].kept
    assert ask.drafts[0].stop_reason == "stop"
    assert len(ask.drafts[0].tokens) == kept + 3
    logits, state = model.forward([1, 2, 3, *free.tokens[:kept]])
    point = ask.ended().point
    assert point is not None
    assert point[1].flat.tobytes() == state.flat.tobytes()
    assert point[0].tobytes() == logits.tobytes()


def test_a_grammar_holds_beside_free_texts() -> None:
    model = gosling()
    prompt = model.tokenizer.encode("User: Yes or no?\n\nAssistant:")

    def made() -> object:
        return constraint(model.tokenizer, model.config.n_vocab, regex=" (yes|no), [a-z]{3,9}[.]")

    held = [Ask(model, prompt, 40, seed=k, sampling=SAMPLINGS[1], constraint=made) for k in range(3)]
    free = [Ask(model, prompt, 20, seed=k, sampling=SAMPLINGS[1]) for k in range(3)]
    run(Engine(model), *held, *free)
    for ask in held:
        assert ask.drafts[0].tokens == ask.alone().tokens
        assert ask.text().startswith((" yes, ", " no, "))
        assert ask.text().endswith(".")
    for ask in free:
        assert ask.drafts[0].tokens == ask.alone().tokens


def test_drafts_of_one_prompt_read_it_once() -> None:
    model = tiny()
    ask = Ask(model, list(range(1, 200)), 12, n=5, seed=3, sampling=SAMPLINGS[1])
    engine = Engine(model, max_batch=8)
    run(engine, ask)
    assert engine.stats()["tokens_read"] == 199
    texts = {tuple(draft.tokens) for draft in ask.drafts}
    assert len(texts) == 5
    for k in range(5):
        assert ask.drafts[k].tokens == ask.alone(k).tokens


def test_marks_are_the_states_there() -> None:
    model = tiny()
    prompt = np.random.default_rng(0).integers(0, 256, 700).tolist()
    ask = Ask(model, prompt, 4, marks=(1, 300, 301, 700))
    run(Engine(model, prefill_rows=50), ask, *asks(model, 5))
    marked = {event.at: event for event in ask.events if isinstance(event, Marked)}
    assert [*marked] == [1, 300, 301, 700]
    for at, event in marked.items():
        logits, state = model.forward(prompt[:at])
        assert event.state.flat.tobytes() == state.flat.tobytes()
        assert event.logits.tobytes() == logits.tobytes()
    read = [event for event in ask.events if isinstance(event, Read)]
    assert (read[-1].tokens, read[-1].of) == (700, 700)


def test_a_sequence_may_begin_with_logits_and_nothing_to_read() -> None:
    model = tiny()
    logits, state = model.forward([1, 2, 3])
    whole = Ask(model, [1, 2, 3], 9)
    events: list[object] = []
    draft = whole.draft(0)
    start = Start(state.copy(), [], logits=logits, drafts=(draft,))
    engine = Engine(model)
    engine.submit(Sequence(lambda: start, events.append))
    drive(engine, lambda: any(isinstance(event, Ended) for event in events))
    assert draft.tokens == whole.alone().tokens


def test_scores_are_the_models_own() -> None:
    model = tiny()
    prompt = np.random.default_rng(1).integers(0, 256, 290).tolist()
    ask = Ask(model, prompt, 6, sampling=SAMPLINGS[1], scores=3, prompt_scores=2)
    run(Engine(model), ask)
    (scored,) = [event.scores for event in ask.events if isinstance(event, Scored)]
    every, _ = model.forward(prompt + ask.drafts[0].tokens, every=True)
    x = every.astype(np.float64)
    truth = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    assert scored[0] is None
    for at, score in enumerate(scored[1:]):
        assert score is not None
        assert score.token == prompt[at + 1]
        assert score.logprob == pytest.approx(truth[at, prompt[at + 1]], abs=1e-9)
        assert [id for id, _ in score.top] == np.argsort(-truth[at], kind="stable")[:2].tolist()
    wrote = [event for event in ask.events if isinstance(event, Wrote)]
    for at, event in enumerate(wrote, len(prompt) - 1):
        assert event.score is not None
        assert event.score.logprob == pytest.approx(truth[at, event.token], abs=1e-9)
        assert len(event.score.top) == 3


def test_deltas_tell_how_far_each_layer_moved() -> None:
    model = tiny()
    ask = Ask(model, [1, 2, 3], 9, deltas=4)
    run(Engine(model), ask)
    deltas = [event.delta for event in ask.events if isinstance(event, Wrote)]
    assert [delta is not None for delta in deltas] == [n % 4 == 0 for n in range(1, 10)]
    _, before = model.forward([1, 2, 3])
    _, after = model.forward(ask.drafts[0].tokens[:3], before)  # the token just drawn is not fed yet
    moved = (after.flat - before.flat).reshape(model.config.n_layer, -1).astype(np.float64)
    assert deltas[3] == pytest.approx(np.sqrt((moved**2).mean(1)).tolist())


def test_hidden_is_the_mean_of_what_the_last_layer_gives() -> None:
    model = tiny()
    prompt = np.random.default_rng(2).integers(0, 256, 400).tolist()
    ask = Ask(model, prompt, n=0, hidden=True)
    other = Ask(model, prompt[:7], n=0, hidden=True)
    run(Engine(model), ask, other, *asks(model, 3))
    name = f"layers.{model.config.n_layer - 1}.resid"
    for found, tokens in ((ask, prompt), (other, prompt[:7])):
        with model.trace(name) as trace:
            model.forward(tokens)
        truth = np.concatenate([np.atleast_2d(row) for row in trace[name]]).mean(0)
        hidden = found.ended().hidden
        assert hidden is not None
        assert hidden == pytest.approx(truth, abs=1e-5)


def test_hidden_is_not_what_another_thread_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    alone, beside = Ask(model, [1, 2, 3], n=0, hidden=True), Ask(model, [1, 2, 3], n=0, hidden=True)
    run(Engine(model), alone)
    step = model.runner.step

    def late(*args: Any) -> Any:
        monkeypatch.setattr(model.runner, "step", step)
        other = threading.Thread(target=model.forward, args=([7, 8, 9],))
        other.start()
        other.join()
        return step(*args)

    monkeypatch.setattr(model.runner, "step", late)
    run(Engine(model), beside)
    np.testing.assert_array_equal(beside.ended().hidden, alone.ended().hidden)


def test_cancelled_within_one_step_and_the_others_go_on() -> None:
    model = tiny()
    long, other = Ask(model, [5] * 20, 10_000), Ask(model, [6] * 20, 30)
    engine = Engine(model)
    engine.submit(long.sequence)
    engine.submit(other.sequence)
    drive(engine, lambda: len(long.drafts[0].tokens) > 5)
    engine.cancel(long.sequence)
    count = len(long.drafts[0].tokens)
    engine.step()
    assert long.drafts[0].stop_reason == "cancelled"
    assert len(long.drafts[0].tokens) == count
    drive(engine, lambda: other.over)
    assert other.drafts[0].tokens == other.alone().tokens
    assert engine.stats()["places"] == 0


def test_cancelled_while_it_waits_or_reads() -> None:
    model = tiny()
    first, reading, waiting = Ask(model, [5] * 9, 500), Ask(model, [6] * 9000, 9), Ask(model, [7] * 9, 9)
    engine = Engine(model, max_batch=2, prefill_rows=2)
    for ask in (first, reading, waiting):
        engine.submit(ask.sequence)
    drive(engine, lambda: any(isinstance(event, Read) for event in reading.events))
    assert engine.stats()["waiting"] == 1
    engine.cancel(waiting.sequence)
    engine.cancel(reading.sequence)
    engine.step()
    for ask in (reading, waiting):
        assert isinstance(ask.events[-1], Failed)
        assert isinstance(ask.events[-1].error, Cancelled)
    assert engine.stats()["places"] == 1
    engine.cancel(first.sequence)
    engine.step()
    engine.cancel(first.sequence)  # once more changes nothing
    engine.step()
    assert engine.stats()["places"] == 0


def test_a_full_queue_says_when_to_come_again() -> None:
    model = tiny()
    engine = Engine(model, max_batch=1, max_waiting=2)
    load = [Ask(model, [k], 3) for k in range(1, 4)]
    for ask in load[:2]:
        engine.submit(ask.sequence)
    with pytest.raises(Busy) as caught:
        engine.submit(load[2].sequence)
    assert caught.value.retry_after >= 1
    run_on = lambda: all(ask.over for ask in load[:2])  # noqa: E731
    drive(engine, run_on)
    run(engine, load[2])
    assert load[2].drafts[0].tokens == load[2].alone().tokens


def test_owners_take_turns() -> None:
    model = tiny()
    engine = Engine(model, max_batch=1)
    order: list[str] = []
    load = []
    for owner, count in (("many", 6), ("few", 2)):
        for _ in range(count):
            ask = Ask(model, [1], 1, owner=owner)
            ask.sequence.listen = lambda event, owner=owner, ask=ask: (
                (order.append(owner), ask.events.append(event)) if isinstance(event, Ended) else None
            )
            load.append(ask)
            engine.submit(ask.sequence)
    drive(engine, lambda: len(order) == 8)
    assert order[:4] == ["many", "few", "many", "few"]


def test_a_failing_start_or_draw_ends_only_its_own() -> None:
    model = tiny()
    good, broken, late = Ask(model, [1, 2], 10), Ask(model, [1, 2], 10), Ask(model, [3], 10, n=2)

    def refuse() -> Start:
        raise InputError("no such state")

    class Breaks:
        complete = False
        count = 0

        def allowed(self) -> np.ndarray:
            self.count += 1
            if self.count > 3:
                raise InputError("the grammar asks for too much")
            return np.ones(model.config.n_vocab, np.bool_)

        def accept(self, token: int) -> None:
            pass

    broken.sequence.start = refuse
    late.drafts[1].constraint = Breaks()  # type: ignore[assignment]
    engine = Engine(model)
    run(engine, good, broken, late)
    assert isinstance(broken.events[-1], Failed)
    assert "no such state" in str(broken.events[-1].error)
    assert isinstance(late.events[-1], Failed)
    assert sum(isinstance(event, Failed) for event in late.events) == 1
    assert good.drafts[0].tokens == good.alone().tokens
    assert engine.stats()["places"] == 0


def test_a_step_that_fails_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    engine, first = Engine(model), Ask(model, [1, 2], 10)
    step = model.runner.step

    def fails(*args: object, **more: object) -> object:
        monkeypatch.setattr(model.runner, "step", step)
        raise BackendError("out of memory")

    monkeypatch.setattr(model.runner, "step", fails)
    run(engine, first)
    assert isinstance(first.events[-1], Failed)
    again = Ask(model, [1, 2], 10)
    run(engine, again)
    assert again.drafts[0].tokens == again.alone().tokens


def test_a_sequence_that_cannot_be_is_refused() -> None:
    model = tiny()
    engine = Engine(model, max_batch=2)
    with pytest.raises(InputError, match="at most 2"):
        engine.submit(Ask(model, [1], n=3).sequence)
    nothing = Ask(model, [], 3)
    run(engine, nothing)
    assert isinstance(nothing.events[-1], Failed)


def test_its_own_thread_and_close() -> None:
    model = tiny()
    engine, done = Engine(model, max_batch=4), threading.Event()
    load, endless, waiting = asks(model, 6), Ask(model, [9], 10**9), [Ask(model, [8], 10**9) for _ in range(5)]
    steps = []
    engine.after_step = lambda: (steps.append(1), done.set() if all(ask.over for ask in load) else None)
    engine.start()
    for ask in load:
        engine.submit(ask.sequence)
    assert done.wait(60)
    for ask in (endless, *waiting):
        engine.submit(ask.sequence)
    while not endless.drafts[0].tokens:
        pass
    engine.close()
    assert endless.drafts[0].stop_reason == "cancelled"
    assert all(ask.events for ask in waiting)
    for ask in load:
        assert ask.drafts[0].tokens == ask.alone().tokens
    with pytest.raises(Cancelled):
        engine.submit(Ask(model, [1]).sequence)


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    engine, first, ended = Engine(model), Ask(model, [1, 2], 10**9), threading.Event()
    plan = engine._scheduler.plan

    def fails(running: list[object]) -> object:
        if any(branch.writing for branch in running):  # type: ignore[attr-defined]
            monkeypatch.setattr(engine._scheduler, "plan", plan)
            raise ZeroDivisionError
        return plan(running)  # type: ignore[type-var]

    monkeypatch.setattr(engine._scheduler, "plan", fails)
    first.sequence.listen = lambda event: ended.set() if isinstance(event, Failed) else None
    engine.start()
    engine.submit(first.sequence)
    assert ended.wait(60)
    assert engine.alive
    again, done = Ask(model, [1, 2], 10), threading.Event()
    again.sequence.listen = lambda event: done.set() if isinstance(event, Ended) else None
    engine.submit(again.sequence)
    assert done.wait(60)
    engine.close()
    assert again.drafts[0].tokens == again.alone().tokens
