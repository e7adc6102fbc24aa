"""What tuning is said to take, against what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tolerances import PLAN_COUNT, PLAN_MEMORY

pytest.importorskip("torch")

import numpy as np
import torch

from rookery import state
from rookery.architecture import Config
from rookery.backends.torch import Network, wkv
from rookery.backends.torch.wkv import ops
from rookery.errors import InputError
from rookery.train import count
from rookery.tune import attach, counted, plan, shapes
from rookery.tune.config import Settings
from rookery.tune.quantised import QuantLinear
from rookery.tune.tuner import Trainee

SMALL = "v7:2x64,vocab=200,head=32,w=8,a=8,v=8,g=8"


def settings(method: str = "lora", **run: Any) -> Settings:
    s, context, batch = Settings(), run.pop("context", 64), run.pop("batch", 2)
    micro = run.pop("micro", 0)
    s = replace(
        s, data=replace(s.data, train=("x",), ctx_len=context),
        adapter=replace(s.adapter, rank=run.pop("rank", 4), targets=run.pop("targets", ("att", "ffn"))),
        optimiser=replace(s.optimiser, batch=batch, micro_batch=micro), run=replace(s.run, **{"device": "cpu"} | run),
    )  # fmt: skip
    return plan.with_method(s, method)


def of(shape: str = SMALL, stored: str = "bf16", method: str = "lora", **run: Any) -> plan.Plan:
    return plan.plan(shapes.find(shape), settings(method, **run), stored)


def real(config: Config, s: Settings) -> Network:
    """As the tuner makes it."""
    network = Network.fresh(config)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p).mul_(0.1).to(torch.bfloat16))
    attach.attach(network, s, np.zeros(state.size(config), np.float32))
    network.checkpointing = s.run.grad_cp
    return network


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "fp32") for method in plan.METHODS), ("lora", "bf16"), ("qlora-int8", "bf16"), ("pissa", "bf16")],
)
def test_numbers_and_weights_are_those_of_the_tuner(method: str, precision: str) -> None:
    s, found = settings(method, precision=precision), of(method=method, precision=precision)
    network = real(shapes.find(SMALL), s)
    held = [*network.parameters(), *network.buffers()]
    assert found.trained == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert found.weights == sum(t.untyped_storage().nbytes() for t in held)
    assert found.gradients * 2 == found.moments == 8 * found.trained


CASES: list[tuple[str, dict[str, Any]]] = [
    ("7", {"method": "lora"}),
    ("7", {"method": "dora"}),
    ("7", {"method": "miss"}),
    ("7", {"method": "qlora-nf4"}),
    ("7", {"method": "full", "precision": "bf16"}),
    ("7", {"method": "full", "micro": 1}),
    ("7", {"method": "lora", "grad_cp": True}),
    ("6", {"method": "lora", "slice": 16}),
    ("6", {"method": "state"}),
    ("4", {"method": "full"}),
]


@pytest.mark.parametrize(("version", "case"), CASES, ids=lambda x: " ".join(map(str, x.values())) if x != str(x) else x)
def test_a_real_step_holds_what_is_counted(version: str, case: dict[str, Any]) -> None:
    config, s = shapes.find(f"v{version}:2x64,vocab=200,head=32"), settings(**case)
    micro, pieces = counted.micro_batch(s)
    trainee = Trainee(real(config, s), s)
    live = count.Live([*trainee.parameters(), *trainee.buffers()])
    with live:
        for _ in range(pieces):
            counted.step(trainee, s, counted.batch(config, s, micro, torch.device("cpu")))
    wanted = counted.counted(config, s, "bf16", micro, pieces)
    more = 3 * micro * s.data.ctx_len * 8 if case.get("slice") else 0  # a batch is cut, and lies there whole
    assert max(wanted.peaks.values()) == pytest.approx(live.peak, rel=PLAN_COUNT, abs=more)


@pytest.mark.parametrize("case", [{"method": "full"}, {"grad_cp": True}], ids=["full", "recomputed"])
def test_a_deep_model_is_counted_by_its_ends(case: dict[str, Any]) -> None:
    deep = replace(shapes.find(SMALL), n_layer=6)
    s = settings(**case)
    short, whole = counted.counted(deep, s, "bf16", 2, 1), counted._run(deep, s, "bf16", 2, 1)
    assert (short.trained, short.weights) == (whole.trained, whole.weights)
    assert short.total == pytest.approx(whole.total, rel=PLAN_COUNT)


def test_a_longer_text_in_slices_takes_its_states_more() -> None:
    config = shapes.find(SMALL)
    short, long = (of(slice=16, context=n) for n in (80, 160))
    assert long.total - short.total == 5 * 2 * 4 * state.size(config)


def test_what_is_kept_where_wkv_runs_in_plain_torch() -> None:
    """Counted for a few tokens of the operator alone, and true for all."""
    shape = 1, 512, 2, 32
    with count.fake():
        rows, start = [torch.empty(shape) for _ in range(6)], torch.empty(1, 2, 32, 32)
        inputs = [torch.empty(shape), start, *rows, start]
        with count.Live(inputs) as whole:
            ops.FORMS["wkv7"]["plain"][1](*inputs, None)
        with wkv.using("plain"), count.Live(inputs) as live:
            torch.ops.rookery.wkv7_backward(*inputs, None, "plain")
        assert live.peak == pytest.approx(whole.peak, rel=0.1)
    assert counted.counted(shapes.find(SMALL), settings(device="cuda"), "bf16", 2, 1).total > of().total


def test_less_memory_where_it_is_asked_for() -> None:
    usual = of(context=256)
    assert of(context=256, grad_cp=True).activations < usual.activations / 5
    assert of(context=256, slice=64).total < usual.total / 2
    assert of(context=256, micro=1).activations == pytest.approx(usual.activations / 2, rel=0.02)
    assert of(method="qlora-nf4").weights < of(method="qlora-int8").weights < usual.weights
    assert of(precision="bf16").weights < usual.weights == of(stored="f16", precision="bf16").weights


def test_a_frozen_base_has_no_gradients_of_its_own() -> None:
    full, state_alone, lora = (of("v7:2x768,vocab=8192", method=m, context=16) for m in ("full", "state", "lora"))
    assert state_alone.flops_per_token / full.flops_per_token == pytest.approx(2 / 3, abs=0.01)
    assert state_alone.flops_per_token < lora.flops_per_token < 1.1 * state_alone.flops_per_token


def test_what_fits_fits_and_no_more_does() -> None:
    config, s, free = shapes.find(SMALL), settings(), 9_000_000
    found = plan.fitted(config, s, "bf16", free, of())
    assert found.longest_context
    assert found.largest_batch

    def total(context: int, batch: int) -> int:
        return counted.counted(config, replace(s, data=replace(s.data, ctx_len=context)), "bf16", batch, 1).total

    assert total(found.longest_context, 2) <= free < total(found.longest_context * 26 // 25 + 16, 2)
    assert total(64, found.largest_batch) <= free < total(64, found.largest_batch * 26 // 25 + 1)


def test_what_never_fits() -> None:
    found = plan.fitted(shapes.find(SMALL), settings(), "bf16", 1000, of())
    assert (found.longest_context, found.largest_batch) == (0, 0)


def test_time() -> None:
    begun = of(batch=4, micro=2)
    rated = plan.at_rate(begun, 1e12, "said")
    assert rated.tokens_per_second == pytest.approx(1e12 / begun.flops_per_token)
    assert rated.seconds_per_step == pytest.approx(256 / rated.tokens_per_second)
    found = plan.measured(shapes.find(SMALL), settings(batch=4, micro=2), "bf16", begun, seconds=0.01)
    assert found.pace == "measured on cpu"
    assert found.seconds_per_step is not None
    assert found.tokens_per_second == pytest.approx(256 / found.seconds_per_step)


def test_what_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "free_bytes", lambda device: 1000)
    found = plan.measured(shapes.find(SMALL), settings(), "bf16", of())
    assert (found.tokens_per_second, found.pace) == (None, "not measured: 1,000 bytes are free on cpu")


def test_mistakes() -> None:
    with pytest.raises(InputError, match="RWKV-4 keeps running sums"):
        of("v4:2x64", method="state")
    with pytest.raises(InputError, match="'atx' means no tensor"):
        of(targets=("atx",))
    with pytest.raises(InputError, match="micro_batch = 3: it must divide the 4"):
        of(batch=4, micro=3)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("rwkv7-g1-0.1b", 191.0), ("rwkv7-g1-0.4b", 450.8), ("rwkv7-g1-1.5b", 1527.4), ("rwkv6-world-1.6b", 1599.9),
     ("rwkv4-pile-169m", 169.3), ("rwkv4-pile-430m", 430.4)],
)  # fmt: skip
def test_published_sizes(name: str, millions: float) -> None:
    """training.md and the model cards count the same."""
    assert sum(count.parameters(shapes.find(name)).values()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_shapes_as_they_are_written() -> None:
    assert {shapes.find(name).version for name in shapes.NAMES} == {"4", "5.2", "6", "7"}
    assert shapes.find("v7:24x2048").ranks == {"w": 128, "a": 128, "v": 64, "g": 224}  # the recipe's, not the release's
    assert shapes.find(" RWKV7-G1-1.5B ").ranks == {"w": 96, "a": 96, "v": 64, "g": 256}
    c = shapes.find("v5:3x128,vocab=300,head=32,ffn=99")
    assert (c.version, c.n_layer, c.n_embd, c.n_vocab, c.n_head, c.n_ffn) == ("5.2", 3, 128, 300, 4, 99)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rwkv7-g1-1.6b", "the nearest are rwkv7-g1-1.5b"),
        ("v8:24x2048", "v7:24x2048 (version, layers, width"),
        ("v7:24x2048,x=3", "v7 has no 'x'; it has vocab, ffn, head, w, a, v, g"),
        ("v6:2x100", "a width of 100 is not a multiple of the head size 64"),
        ("v7:0x64", "every size is 1 or more"),
    ],
)
def test_a_wrong_shape(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        shapes.find(text)
    assert said in str(error.value)


BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "plan.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("run", ["lora", "qlora-nf4", "state", "full", "lora, grad_cp"])
def test_memory_is_what_a_process_comes_to(run: str) -> None:
    """With an allocator that gives back at once; what the C library keeps on top is not counted."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(BENCHMARK), "--only", "gosling", "--methods", run, "--json", "/dev/stdout"]
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    (row,) = json.loads(out[out.index("[") :])
    assert row["planned"] == pytest.approx(row["taken"], rel=PLAN_MEMORY)


def test_a_linear_that_is_quantised_is_made_without_a_number() -> None:
    """The plan's stand-in has the storages of the real one."""
    linear = torch.nn.Linear(100, 8, bias=False)
    for kind in ("int8", "nf4"):
        made, blank = QuantLinear.of(linear, kind), QuantLinear(100, 8, kind)
        assert [b.nbytes for b in made.buffers()] == [b.nbytes for b in blank.buffers()]
