"""What is put beside a frozen network: begins as nothing, learns, and is the same merged; and whose gradient flows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tolerances
from rookery import weights
from rookery.backends.torch import Network
from rookery.errors import InputError
from rookery.formats.tensor import Tensor
from rookery.state import State, pieces
from rookery.tune import attach, config
from rookery.tune.config import AdapterSettings, RunSettings, Settings
from rookery.weights import adapters
from rookery.weights.adapters import Adapter

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = ("v4", "v5.0", "v5.1", "v5.2", "v6", "v7")
METHODS = ("lora", "rslora", "dora", "pissa", "miss")
IDS = torch.arange(24).reshape(2, 12) * 11 % 256


def load(version: str) -> weights.Weights:
    return weights.load(FIXTURES / f"{version}.safetensors")


def start(network: Network) -> Any:
    return (
        torch.cat([s[p.name][0].reshape(-1) for s in network.start(1) for p in pieces(network.config)]).detach().numpy()
    )


def network(of: weights.Weights, precision: str = "fp32", **settings: Any) -> Network:
    made = Network.of(of)
    chosen = AdapterSettings(**{"rank": 5, **settings})
    attach.attach(made, Settings(adapter=chosen, run=RunSettings(precision=precision)), start(made))
    return made


def trained(of: weights.Weights, **settings: Any) -> Network:
    """A network whose trained numbers have moved."""
    made = network(of, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.015 * torch.randn_like(p))
    return made


def adapter(made: Network, of: weights.Weights, quant: str = "none") -> Adapter:
    return Adapter(attach.parts(made), "lora", "x", {}, of.fingerprint, of.lineage, quant)


def logits(made: Network) -> Any:
    """In float64: what is compared is which matrices there are, not how float32 sums them."""
    with torch.no_grad():
        return made.double()(IDS)[0].numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("version", VERSIONS)
def test_begins_as_its_base_and_merges_to_itself(version: str, method: str) -> None:
    base = load(version)
    plain = logits(Network.of(base))
    assert np.abs(logits(network(base, method=method)) - plain).max() < tolerances.ADAPTER_MERGED
    made = trained(base, method=method)
    assert np.abs(logits(made) - plain).max() > tolerances.MATTERS
    for way in (adapters.merged, adapters.beside):
        there = logits(Network.of(way(base, adapter(made, base))))
        assert np.abs(logits(made) - there).max() < tolerances.ADAPTER_MERGED


@pytest.mark.parametrize("method", ["lora", "dora", "miss"])
@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_over_a_base_in_codes(method: str, quant: str) -> None:
    base = load("v7")
    made = trained(base, method=method, quant=quant, targets=("att.key", "head"))
    here = logits(made)
    for way in (adapters.merged, adapters.beside):
        there = logits(Network.of(way(base, adapter(made, base, quant))))
        assert np.abs(here - there).max() < tolerances.ADAPTER_MERGED
    unrounded = logits(Network.of(adapters.merged(base, adapter(made, base))))
    assert np.abs(here - unrounded).max() > tolerances.ADAPTER_MERGED, "the rounding of the base is part of it"


@pytest.mark.parametrize("method", METHODS)
def test_embedding_head_and_vectors(method: str) -> None:
    base = load("v7")
    made = trained(base, method=method, targets=("emb", "head", "x_*", "*.ln1.*"))
    names = set(attach.parts(made))
    assert {"emb.weight", "head.weight", "blocks.2.att.x_g", "blocks.1.ffn.x_k", "blocks.0.ln1.bias"} <= names
    assert not any("key" in name for name in names)
    assert np.abs(logits(made) - logits(Network.of(adapters.merged(base, adapter(made, base))))).max() < 1e-5


def test_only_what_is_meant_has_a_gradient() -> None:
    base = load("v7")
    made = network(base, targets=("blocks.1.att.*",), full=("ffn.x_k",))
    made(IDS)[0].logsumexp(-1).sum().backward()
    moved = {name for name, p in made.named_parameters() if p.grad is not None}
    asked = {f"blocks.1.att.{m}.{x}" for m in ("key", "value", "receptance", "output") for x in "ab"}
    vectors = {p.name for p in base.params if p.name.startswith("blocks.1.att.") and p.kind in ("vector", "lora")}
    assert moved == asked | vectors | {f"blocks.{i}.ffn.x_k" for i in range(3)}
    assert moved == {name for group in attach.groups(made, 0.1) for name in group["names"]}


def test_the_table_says_how_whole_tensors_are_trained() -> None:
    made = network(load("v7"), method="full")
    groups = {name: group for group in attach.groups(made, 0.1) for name in group["names"]}
    assert (groups["blocks.1.att.w0"]["scale"], groups["blocks.1.att.w0"]["weight_decay"]) == (2, 0)
    assert (groups["blocks.1.att.key.weight"]["scale"], groups["blocks.1.att.key.weight"]["weight_decay"]) == (1, 0.1)
    made = network(load("v7"), method="dora")
    groups = {name: group for group in attach.groups(made, 0.1) for name in group["names"]}
    assert groups["blocks.1.att.key.a"]["weight_decay"] == 0.1
    assert groups["blocks.1.att.key.magnitude"]["weight_decay"] == 0


def test_ranks_by_layer() -> None:
    made = network(load("v7"), ranks={"ffn": 2, "blocks.1.*": 3})
    ranks = {name: len(m.a) for name, m in made.named_modules() if hasattr(m, "a") and hasattr(m, "base")}
    assert (ranks["blocks.0.att.key"], ranks["blocks.0.ffn.key"], ranks["blocks.1.ffn.key"]) == (5, 2, 3)
    scales = {name: m.scale for name, m in made.named_modules() if hasattr(m, "scale")}
    assert set(scales.values()) == {2.0}, "alpha of its own: twice the rank, of each"
    made = network(load("v7"), ranks={"ffn": 2}, alpha=10.0)
    assert made.blocks[0].ffn.key.scale == 5


def test_the_first_adapter_depends_on_the_seed_alone() -> None:
    one, two = (network(load("v7"), targets=t).blocks[1].att.key.a for t in (("att",), ("ffn", "att")))
    assert (one == two).all()


def test_a_target_that_is_none() -> None:
    with pytest.raises(InputError, match=r"'atention\*' means no tensor"):
        network(load("v7"), targets=("atention*",))


@pytest.mark.parametrize("version", ["v5.0", "v5.2", "v6", "v6-timestate", "v7"])
def test_a_state_is_trained_and_no_weight(version: str) -> None:
    base = load(version)
    plain = logits(Network.of(base))
    assert np.abs(logits(network(base, method="state")) - plain).max() < tolerances.ADAPTER_MERGED
    made = trained(base, method="state")
    assert np.abs(logits(made) - plain).max() > tolerances.MATTERS
    assert {name.split(".")[0] for name, p in made.named_parameters() if p.requires_grad} == {"initial"}
    state = State(base.config, made.initial.vector(), base)
    import rookery

    model = rookery.load(FIXTURES / f"{version}.safetensors", backend="reference")
    for row, wanted in zip(IDS.tolist(), logits(made), strict=True):
        found, _ = model.forward(row, State(model.config, state.flat, model.weights), every=True)
        assert np.abs(found - wanted).max() < tolerances.LOGITS_TEXT


def test_a_state_of_wkv_alone() -> None:
    """What the files of others can hold."""
    made = network(load("v7"), method="state", shifts=False)
    adam = torch.optim.AdamW(attach.groups(made, 0.0), 0.1, eps=1e-18)
    for _ in range(2):
        adam.zero_grad()
        made(IDS)[0].logsumexp(-1).sum().backward()
        adam.step()
    for layer in made.start(1):
        assert layer["wkv"].abs().sum() > 0
        assert layer["att_shift"].abs().sum() == layer["ffn_shift"].abs().sum() == 0


def test_what_scripts_ask_of_v7_that_it_has_not() -> None:
    full = config.load(None, ["train=x", "lora_parts=att,time,ln"]).adapter.full
    assert full == ("*time*", "*ln*")
    names = {name for name, p in network(load("v7"), full=full).named_parameters() if p.requires_grad}
    assert "blocks.0.ln1.weight" in names
    names = {name for name, p in network(load("v6"), full=full).named_parameters() if p.requires_grad}
    assert "blocks.0.att.time_decay" in names


def test_no_state_of_v4() -> None:
    with pytest.raises(InputError, match="RWKV-4"):
        network(load("v4"), method="state")


def test_a_narrow_base_is_held_narrow_where_nothing_is_lost() -> None:
    base = load("v7")
    rounded = replace(base, tensors={n: Tensor.of(t.float32(), "bf16") for n, t in base.tensors.items()})
    for of, dtype in ((base, torch.float32), (rounded, torch.bfloat16)):
        made = network(of, precision="bf16")
        assert made.blocks[0].att.key.base.weight.dtype == dtype
        assert made.blocks[0].att.key.a.dtype == torch.float32
