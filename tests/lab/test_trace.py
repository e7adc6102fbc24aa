"""Traces: the same captures in every back end, the same bits as without one, and nothing left on."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery.errors import InputError
from rookery.lab.trace import names
from tolerances import LOGITS_TEXT

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]
TOKENS = np.random.default_rng(0).integers(0, 256, 40)
EXACT = [("native", None), ("native", "float32"), ("reference", None), ("reference", "float64")]


def open_(name: str = "v7", backend: str = "native", **settings: Any) -> rookery.Model:
    return rookery.load(FIXTURES / f"{name}.safetensors", backend=backend, tokenizer="bytes", **settings)


@pytest.fixture
def model() -> Iterator[rookery.Model]:
    model = open_()
    yield model
    assert model.traces is None, "a trace was left open"
    assert model.runner.listener is None, "someone still listens"  # type: ignore[attr-defined]


def state_after(model: rookery.Model, tokens: Any, piece: str) -> Any:
    _, layer, name = piece.removeprefix("state.").split(".")
    return getattr(model.forward(tokens)[1].layer(int(layer)), name)


# -- what is captured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("name", VERSIONS)
def test_every_point_is_the_references(name: str, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    traces = []
    for which in ("reference", backend):
        model = open_(name, which)
        with model.trace("*", every=3) as t:
            model.forward_batch([TOKENS, TOKENS[:10]])
            model.forward(TOKENS[:4])
        traces.append(t)
    wanted, got = traces
    assert got.names == wanted.names == names(model.config)
    assert got.tokens.tolist() == wanted.tokens.tolist()
    assert got.sequence.tolist() == wanted.sequence.tolist()
    for point in got.names:
        assert got[point].shape == wanted[point].shape, point
        scale = max(1.0, np.abs(wanted[point]).max())
        assert np.abs(got[point] - wanted[point]).max() <= LOGITS_TEXT * scale, point


@pytest.mark.parametrize("name", ["v4", "v5.1", "v7"])
def test_a_capture_is_what_the_state_and_the_row_are_then(name: str) -> None:
    model = open_(name, "reference")
    heard: dict[str, Any] = {}
    model.runner.listen(heard.__setitem__, ["att.k"])
    model.forward(TOKENS)
    model.runner.listen(None)
    with model.trace("state.layers.1.*", "layers.*.att.k", every=7) as t:
        model.forward(TOKENS)
    assert t.tokens.tolist() == [7, 14, 21, 28, 35]
    for i, n in enumerate(t.tokens):
        for piece in ("att_shift", "ffn_shift", "wkv"):
            point = f"state.layers.1.{piece}"
            assert np.array_equal(t[point][i], state_after(model, TOKENS[:n], point)), (n, point)
        for layer in (0, 1):
            point = f"layers.{layer}.att.k"
            assert np.array_equal(t[point][i], heard[point][n - 1]), (n, point)


@pytest.mark.parametrize(("name", "constant"), [("v4", True), ("v5.2", True), ("v6", False)])
def test_what_is_made_of_parameters_alone_appears_once(name: str, constant: bool) -> None:
    model = open_(name)
    with model.trace("layers.*.att.w", every=2) as t:
        if constant:
            with pytest.raises(InputError, match=r"layers.0.att.w appears with the first token"):
                t["layers.0.att.w"]
        model.forward(TOKENS)
    assert len(t["layers.1.att.w"]) == (1 if constant else 20)
    assert len(t.tokens) == len(t) == (0 if constant else 20)


def test_a_sequence_goes_on_from_its_state_and_branches(model: rookery.Model) -> None:
    with model.trace("state.layers.0.wkv", "layers.0.resid", every=2) as t:
        _, a = model.forward([1, 2, 3])
        _, b = model.forward([4], a)
        model.forward([5, 6], a)  # a branch: 3 tokens before it
        model.forward([7, 8], b)
        model.forward([9, 9], a.copy())  # nothing known of it
    found = list(zip(t.sequence.tolist(), t.tokens.tolist(), strict=True))
    assert found == [(0, 2), (0, 4), (1, 4), (0, 6), (2, 2)]
    for i, tokens in enumerate([[1, 2], [1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4, 7, 8], [1, 2, 3, 9, 9]]):
        assert np.array_equal(t["state.layers.0.wkv"][i], state_after(model, tokens, "state.layers.0.wkv")), i


def test_a_batch_of_several_lengths_and_places(model: rookery.Model) -> None:
    _, early = model.forward([1])
    with model.trace("state.layers.1.wkv", "layers.1.att.v", every=3) as t:
        (_, a), (_, b) = model.forward_batch([TOKENS[:7], TOKENS[:2]], [None, early])
        model.forward_batch([TOKENS[2:5], TOKENS[7:9]], [b, a])
    found = sorted(zip(t.sequence.tolist(), t.tokens.tolist(), range(4), strict=True))
    assert [place[:2] for place in found] == [(0, 3), (0, 6), (0, 9), (1, 3)]
    whole = [TOKENS[:9]] * 3 + [np.array([1, *TOKENS[:5]])]
    for (sequence, n, i), tokens in zip(found, whole, strict=True):
        fed = tokens[: n + sequence]  # the second had read one before
        assert np.array_equal(t["state.layers.1.wkv"][i], state_after(model, fed, "state.layers.1.wkv"))
        with model.trace("layers.1.att.v") as alone:
            model.forward(fed)
        assert np.array_equal(t["layers.1.att.v"][i], alone["layers.1.att.v"][-1])


def test_one_state_gone_on_from_twice_at_once(model: rookery.Model) -> None:
    with model.trace("state.layers.0.wkv") as t:
        _, state = model.forward([1, 2])
        model.forward_batch([[3], [4, 5]], [state, state])
    found = sorted(zip(t.sequence.tolist(), t.tokens.tolist(), range(5), strict=True))
    assert [place[:2] for place in found] == [(0, 1), (0, 2), (0, 3), (1, 3), (1, 4)]
    for (_, _, i), tokens in zip(found, [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 5]], strict=True):
        assert np.array_equal(t["state.layers.0.wkv"][i], state_after(model, tokens, "state.layers.0.wkv"))


def test_generation_is_captured_token_by_token(model: rookery.Model) -> None:
    with model.trace("state.layers.0.att_shift", every=4) as t:
        stream = model.stream("abcdef", max_tokens=11, temperature=0)
        list(stream)
    fed = [*b"abcdef", *stream.tokens[:-1]]  # the last token drawn is not fed
    assert t.tokens.tolist() == [4, 8, 12, 16]
    for i, n in enumerate(t.tokens):
        assert np.array_equal(t["state.layers.0.att_shift"][i], state_after(model, fed[:n], "state.layers.0.att_shift"))


# -- the same bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "dtype"), EXACT)
@pytest.mark.parametrize("name", VERSIONS)
def test_a_traced_run_gives_the_same_bits(name: str, backend: str, dtype: str | None) -> None:
    model = open_(name, backend, dtype=dtype)
    logits, state = model.forward(TOKENS, every=True)
    text = model.generate("ab", 12, temperature=0)
    for every in (1, 5):
        with model.trace("*", every=every):
            traced, after = model.forward(TOKENS, every=True)
            again = model.generate("ab", 12, temperature=0)
        assert np.array_equal(traced, logits)
        assert np.array_equal(after.flat, state.flat)
        assert again == text


def test_the_packaged_model_gives_the_same_bits() -> None:
    model = rookery.load("gosling", backend="native")
    prompt = "User: What is a rook?\n\nAssistant:"
    runs = []
    for points in ([], ["state.*"], ["*"]):
        stream = model.stream(prompt, max_tokens=40, temperature=0)
        if points:
            with model.trace(*points, every=16):
                text = "".join(stream)
        else:
            text = "".join(stream)
        runs.append((text, stream.state.flat))
    for text, flat in runs[1:]:
        assert text == runs[0][0]
        assert np.array_equal(flat, runs[0][1])


def test_long_prompts_in_chunks(model: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, state = model.forward(TOKENS, every=True)
    monkeypatch.setattr("rookery.model.CHUNK", 8)
    seen: list[int] = []
    with model.trace("layers.1.resid", every=3) as t, model.trace("state.*", every=13):
        traced, after = model.forward(TOKENS, every=True, progress=lambda at, total: seen.append(at))
    assert np.array_equal(traced, whole)
    assert np.array_equal(after.flat, state.flat)
    assert seen == [0, 8, 13, 21, 26, 34, 39]
    assert t.tokens.tolist() == list(range(3, 40, 3))
    with model.trace("layers.1.resid") as each:
        model.forward(TOKENS)
    with model.trace("layers.1.resid", "state.layers.0.wkv", every=37) as rare:
        model.forward(TOKENS)
    assert rare.tokens.tolist() == [37]
    assert np.array_equal(rare["layers.1.resid"], each["layers.1.resid"][36:37])


# -- on and off --------------------------------------------------------------------------------------------------------


def test_nothing_is_on_before_and_after(model: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[int]] = []
    step = model.runner.step

    def counted(rows: Any, *rest: Any) -> Any:
        steps.append([len(r) for r in rows])
        return step(rows, *rest)

    monkeypatch.setattr(model.runner, "step", counted)
    t = model.trace("*", every=16)
    model.forward(TOKENS)
    with t:
        model.forward(TOKENS)
    model.forward(TOKENS)
    assert steps == [[40], [16], [16], [8], [40]]
    assert len(t) == 2


def test_a_trace_of_the_state_leaves_the_runner_alone(model: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(*_: Any) -> None:
        raise AssertionError("the plan was made anew")

    monkeypatch.setattr(model.runner, "listen", listen)
    with model.trace("state.*") as t:
        model.forward(TOKENS)
    assert len(t) == 40


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_traces_within_traces(backend: str) -> None:
    model = open_(backend=backend)
    with model.trace("layers.0.att.k", "state.layers.0.wkv", every=4) as outer:
        _, state = model.forward(TOKENS[:6])
        with model.trace("layers.*.att.v", "state.layers.0.wkv", every=3) as inner:
            _, state = model.forward(TOKENS[6:20], state)
        model.forward(TOKENS[20:], state)
    assert model.traces is None
    with model.trace("*") as alone:
        model.forward(TOKENS)
    assert outer.tokens.tolist() == list(range(4, 41, 4))
    assert inner.tokens.tolist() == [3, 6, 9, 12]  # of those that it saw
    for t, begin in ((outer, 0), (inner, 6)):
        for point in t.names:
            assert np.array_equal(t[point], alone[point][begin + t.tokens - 1]), point


def test_traces_that_overlap(model: rookery.Model) -> None:
    first, second = model.trace("layers.0.resid"), model.trace("layers.1.resid")
    first.__enter__()
    second.__enter__()
    model.forward([1])
    first.__exit__(None, None, None)
    model.forward([2])
    second.__exit__(None, None, None)
    model.forward([3])
    assert (len(first), len(second)) == (1, 2)


def test_an_exception_leaves_nothing_on(model: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    t = model.trace("*")

    def interrupted() -> None:
        with t:
            model.forward([1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(t) == 1
    assert model.traces is None
    calls = 0
    step = model.runner.step

    def breaking(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("a step that fails")
        return step(*arguments)

    monkeypatch.setattr(model.runner, "step", breaking)
    with pytest.raises(RuntimeError), model.trace("*", every=2) as t:
        model.forward(TOKENS)
    assert t.tokens.tolist() == [2, 4]


def test_a_trace_that_cannot_begin_is_not_open(model: rookery.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(model.runner, "listen", listen)
        with pytest.raises(MemoryError), model.trace("*"):
            pass
    assert model.traces is None


def test_threads_with_a_model_in_common(model: rookery.Model) -> None:
    wanted = {}
    for token in range(4):
        with model.trace("layers.1.att.k", "state.layers.1.wkv", every=5) as alone:
            model.forward([token] * 40)
        wanted[token] = alone["layers.1.att.k"], alone["state.layers.1.wkv"]
    begin = threading.Barrier(4)

    def feed(token: int) -> None:
        begin.wait()
        state = None
        for _ in range(20):
            _, state = model.forward([token] * 2, state)

    threads = [threading.Thread(target=feed, args=(token,)) for token in range(4)]
    with model.trace("layers.1.att.k", "state.layers.1.wkv", every=5) as t:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(set(t.sequence.tolist())) == [0, 1, 2, 3]
    tokens_met = set()
    for number in range(4):
        mine = t.sequence == number
        assert t.tokens[mine].tolist() == list(range(5, 41, 5))
        for token, (keys, states) in wanted.items():
            if np.array_equal(t["layers.1.att.k"][mine], keys):
                assert np.array_equal(t["state.layers.1.wkv"][mine], states)
                tokens_met.add(token)
    assert tokens_met == {0, 1, 2, 3}


def test_a_trace_opened_and_closed_while_another_thread_runs(model: rookery.Model) -> None:
    done = threading.Event()
    logits = model.forward(TOKENS)[0]
    wrong: list[Any] = []

    def run() -> None:
        while not done.is_set():
            try:
                if not np.array_equal(model.forward(TOKENS)[0], logits):
                    wrong.append("other bits")
            except Exception as error:  # is what the test looks for
                wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for every in range(1, 20):
            with model.trace("*", every=every) as t:
                model.forward(TOKENS)
            assert len(t) >= 40 // every
    finally:
        done.set()
        thread.join()
    assert not wrong


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3000, 1 << 20])  # bytes: a capture, a few of them, all
@pytest.mark.parametrize("last", [1, 3, 7, 1000])
def test_a_ring_keeps_the_last(model: rookery.Model, last: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.lab.records.BLOCK", block)
    points = ("state.layers.0.wkv", "layers.0.resid")
    with model.trace(*points) as whole, model.trace(*points, last=last) as ring:
        _, state = model.forward(TOKENS)
        model.forward(TOKENS[:5], state)
    with model.trace("layers.0.resid", last=last) as rows:  # many captures a step
        _, state = model.forward(TOKENS)
        model.forward(TOKENS[:5], state)
    for t in (ring, rows):
        assert len(t) == 45
        assert t.tokens.tolist() == whole.tokens.tolist()[-last:]
        assert t.sequence.tolist() == [0] * min(last, 45)
        for point in t.names:
            assert np.array_equal(t[point], whole[point][-last:])


@pytest.mark.parametrize("block", [1, 1 << 9, 1 << 20])
def test_a_ring_holds_no_more_than_twice_what_it_keeps(
    model: rookery.Model, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rookery.lab.records.BLOCK", block)
    with model.trace("layers.0.resid", last=10) as t:
        state, most = None, 0
        for n in (40, 1, 3, 25, 2, 2, 2, 9, 40, 1):
            _, state = model.forward(TOKENS[:n], state)
            most = max(most, sum(len(block) for _, block in t._kept._blocks))  # type: ignore[union-attr]
    assert 10 <= most <= 20


def test_states_let_go_of_are_forgotten(model: rookery.Model) -> None:
    with model.trace("state.layers.0.wkv", last=1) as t:
        for _ in range(20):
            model.forward([1, 2])
        gc.collect()
        assert len(t._places) == 0
        _, kept = model.forward([1])
        assert len(t._places) == 1
    del kept


def test_what_is_not_finite_is_kept_and_counted(model: rookery.Model) -> None:
    state = model.state()
    state.layer(1).wkv[0, 2, 3] = np.nan
    state.layer(1).wkv[1, 0, 0] = np.inf
    with pytest.warns(UserWarning, match=r"captured numbers of .* are NaN or infinite"), model.trace("state.*") as t:
        model.forward([1, 2], state)
    wkv = t["state.layers.1.wkv"]
    assert t.nonfinite["state.layers.1.wkv"] == np.count_nonzero(~np.isfinite(wkv)) > 1
    assert "state.layers.0.wkv" not in t.nonfinite
    assert np.isnan(wkv[0, 0, 2, 3])


def test_a_narrower_type(model: rookery.Model) -> None:
    with model.trace("state.*", dtype="float16") as narrow, model.trace("state.*") as whole:
        model.forward(TOKENS)
    for point in narrow.names:
        assert narrow[point].dtype == np.float16
        assert np.array_equal(narrow[point], whole[point].astype(np.float16))
    assert not narrow.nonfinite
    v4 = open_("v4")
    state = v4.state()
    state.layer(0).wkv[...] = [[1e6], [1e6], [5.0]]
    with pytest.warns(UserWarning, match="too large for float16"), v4.trace("state.*", dtype="float16") as t:
        v4.forward([1], state)
    assert not t.nonfinite


def test_the_back_ends_type_is_kept() -> None:
    model = open_(backend="reference", dtype="float64")
    with model.trace("*") as t:
        _, state = model.forward(TOKENS)
    assert {t[point].dtype for point in t.names} == {np.dtype("float64")}
    assert np.array_equal(t["state.layers.1.wkv"][-1], state.layer(1).wkv)


# -- misuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (["state.layers.*.wvk"], r"matches 'state.layers.\*.wvk'; the nearest are state.layers.\*.wkv"),
        (["layers.9.att.k"], r"RWKV-7 Goose with 3 layers \(from 0\) matches 'layers.9.att.k'.* layers.\*.att.k"),
        (["state.*", "layers.*.att.gate"], r"'layers.\*.att.gate'; the nearest are layers.\*.att.g"),
        (["nonsense"], "the nearest are "),
        ([], "nothing to capture: name points"),
        ([7], "not by 7"),
    ],
)
def test_points_that_are_not_there(model: rookery.Model, points: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.trace(*points)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": 0}, "every 0: a whole number, 1 or more"),
        ({"every": True}, "every True"),
        ({"every": 1.5}, "every 1.5"),
        ({"last": 0}, "last 0"),
        ({"dtype": "int8"}, "dtype 'int8': float16, float32 or float64 is wanted"),
    ],
)
def test_settings_that_make_no_sense(model: rookery.Model, settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.trace("state.*", **settings)


def test_a_trace_runs_once_and_knows_its_names(model: rookery.Model) -> None:
    with model.trace("state.layers.0.*") as t:
        assert t["state.layers.0.att_shift"].shape == (0, model.config.n_embd)
    with pytest.raises(InputError, match="used before"):
        t.__enter__()
    with pytest.raises(InputError, match=r"'state.layers.1.wkv' was not captured; there are state.layers.0.att_shift"):
        t["state.layers.1.wkv"]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_someone_else_who_takes_the_runners_ear(backend: str) -> None:
    model = open_(backend=backend)
    with model.trace("layers.0.att.k"):
        model.runner.listen(None)
        with pytest.raises(InputError, match="listen was called while a trace was open"):
            model.forward([1])
    assert model.traces is None


def test_the_lab_is_not_loaded_until_it_is_wanted() -> None:
    code = (
        "import sys, rookery; m = rookery.load('gosling', backend='reference'); m.forward([1]);"
        "assert not any(n.startswith('rookery.lab') for n in sys.modules), 'loaded';"
        "t = m.trace('state.*'); assert 'rookery.lab.trace' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
