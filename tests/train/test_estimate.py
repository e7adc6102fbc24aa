"""What a run is said to take, against what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tolerances import ESTIMATE_ACTIVATIONS, ESTIMATE_MEMORY

pytest.importorskip("torch")

import torch

from rookery.backends.torch import Network
from rookery.errors import InputError
from rookery.train import estimate, shape
from rookery.train.config import DataSettings, ModelSettings, OptimiserSettings, RunSettings, Settings

TOPICS = {"model": ModelSettings, "data": DataSettings, "optimiser": OptimiserSettings, "run": RunSettings}
SMALL: dict[str, Any] = {
    "version": "7", "n_layer": 3, "n_embd": 32, "head_size": 16, "vocab_size": 50, "train": ("x",), "ctx_len": 40,
    "tokens": 10_000, "batch": 6, "device": "cpu", "tokenizer": "bytes",
}  # fmt: skip


def settings(**changed: Any) -> Settings:
    values = SMALL | changed
    return Settings(
        **{
            topic: cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})
            for topic, cls in TOPICS.items()
        }
    )


def of(world: int = 1, **changed: Any) -> estimate.Estimate:
    s = settings(**changed)
    return estimate.estimate(shape.config(s, s.model.vocab_size), s, world)


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_parameters_are_those_of_the_network(version: str) -> None:
    network = Network.fresh(shape.config(settings(version=version), 50))
    parts = of(version=version).parameters
    assert sum(parts.values()) == sum(p.numel() for p in network.parameters())
    assert parts["embedding"] == parts["head"] == 50 * 32


def test_the_small_model_of_the_reference() -> None:
    """training.md 8.2: 191 M, and 6 FLOP a parameter count its embedding, 26 % too many."""
    found = of(n_layer=12, n_embd=768, head_size=64, vocab_size=65_536, ctx_len=512, batch=1)
    count = sum(found.parameters.values())
    assert round(count / 1e6) == 191
    assert found.flops_per_token / (6 * count) == pytest.approx(0.74, abs=0.015)


def kept(version: str, narrow: bool, sequences: int, length: int) -> int:
    """Bytes that autograd keeps in a real forward pass."""
    network = Network.fresh(shape.config(settings(version=version), 50))
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, Any] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes():
            storages[storage.data_ptr()] = storage
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
    ):
        network.hidden(torch.zeros(sequences, length, dtype=torch.long))
    return sum(s.nbytes() for s in storages.values())


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(version: str, precision: str) -> None:
    found = of(version=version, precision=precision, micro_batch=3)
    wanted = kept(version, precision == "bf16", 3, 40)
    assert found.activations == pytest.approx(wanted, rel=ESTIMATE_ACTIVATIONS)


def test_memory_grows_as_it_should() -> None:
    one, longer, wider = of(), of(ctx_len=80), of(batch=12)
    assert (
        longer.activations == pytest.approx(wider.activations, rel=0.1) == pytest.approx(2 * one.activations, rel=0.1)
    )
    assert of(micro_batch=2).activations == pytest.approx(one.activations / 3, rel=0.1)
    assert one.moments == 2 * one.weights == 2 * one.gradients == 8 * sum(one.parameters.values())


def test_checkpointing_keeps_less_and_computes_more() -> None:
    off, on = of(n_layer=20), of(n_layer=20, grad_cp=True)
    assert on.activations < off.activations / 10
    assert on.flops_per_token * 3 == off.flops_per_token * 4


def test_processes_share_what_their_strategy_shares() -> None:
    one, ddp, fsdp, offload = of(), of(2), of(2, strategy="fsdp"), of(2, strategy="fsdp_offload")
    assert (ddp.strategy, ddp.micro_batch, ddp.weights) == ("ddp", 3, one.weights)
    assert fsdp.weights == one.weights // 2
    assert offload.total < fsdp.total < ddp.total < one.total
    with pytest.raises(InputError, match="batch = 6: a multiple of the 4 processes"):
        of(4)


def test_a_chunk_of_logits_is_all_there_is() -> None:
    assert of(head_chunk=10).logits * 24 == of().logits


def test_a_measured_pace_adds_up() -> None:
    s = settings(micro_batch=2)
    pace = estimate.measure(shape.config(s, 50), s, seconds=0.05)
    assert min(pace.micro_step, pace.optimiser_step) > 0
    step = 3 * pace.micro_step + pace.optimiser_step
    assert pace.tokens_per_second == pytest.approx(240 / step)
    assert pace.run == pytest.approx(s.steps * step)


def test_a_dry_run_says_it_all(tmp_path: Path) -> None:
    found = estimate.dry_run(settings(vocab_size=0))
    assert found.parameters["head"] == 256 * 32  # the tokenizer's vocabulary
    text = found.text()
    for word in ("RWKV-7 Goose, 3 layers x 32, 256 tokens", "checkpointing off", "42 of 240 tokens", "measured"):
        assert word in text
    said = json.loads(json.dumps(found.json()))
    assert said["total"] == found.total
    assert said["pace"]["tokens_per_second"] > 0
    path = tmp_path / "m.safetensors"
    Network.fresh(shape.config(settings(n_layer=2), 77)).save(str(path))
    assert "2 layers x 32, 77 tokens" in estimate.dry_run(settings(load_model=str(path))).model


def test_what_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(estimate, "measure", lambda *_: pytest.fail("measured"))
    found = estimate.dry_run(settings())
    assert found.pace is None
    assert "not measured: 1,000 bytes are free on cpu" in found.text()


REAL = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
import test_estimate as t
from rookery.train import estimate, optimiser, shape
from rookery.train.loss import loss_of
def run(s):
    c = shape.config(s, s.model.vocab_size)
    network = estimate.real(c, torch.device("cpu"))
    network.checkpointing = s.run.grad_cp
    adam = optimiser.adamw(network, c, s.optimiser)
    for _ in range(2):
        adam.zero_grad(set_to_none=True)
        ids = torch.randint(c.n_vocab, (s.optimiser.batch, s.data.ctx_len + 1))
        x, _ = network.hidden(ids[:, :-1])
        loss_of(network.head, x.flatten(0, 1), ids[:, 1:].flatten(), 1e-4).backward()
        adam.step()
run(t.settings())
base = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
run(t.settings(**{changed!r}))
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "changed",
    [
        {"n_layer": 6, "n_embd": 256, "head_size": 64, "vocab_size": 4096, "ctx_len": 256, "batch": 4},
        {"n_layer": 4, "n_embd": 768, "head_size": 64, "vocab_size": 2048, "ctx_len": 128, "batch": 1},
    ],
    ids=["mostly activations", "mostly weights"],
)
def test_memory_is_what_a_process_comes_to(changed: dict[str, Any]) -> None:
    """With an allocator that gives back at once; what glibc's default keeps on top is a measured factor."""
    code = REAL.format(paths=[p for p in sys.path if "tests" in p], changed=changed)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert of(**changed).total / estimate.HEAP[False] == pytest.approx(int(out.stdout), rel=ESTIMATE_MEMORY)
