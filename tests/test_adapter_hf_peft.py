"""Adapters that Hugging Face's peft makes load here with the same logits, and ours there."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rookery
from rookery import weights
from rookery.weights import adapters
from rookery.weights.adapters import Adapter, LowRank
from tolerances import LOGITS_RANDOM

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

FIXTURES = Path(__file__).parent / "fixtures"
TOKENS = [79, 110, 99, 101, 32, 117, 112, 111, 110]
LINEARS = ["att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value", "head"]
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lora": (peft.LoraConfig, {"lora_alpha": 12}),
    "rslora": (peft.LoraConfig, {"lora_alpha": 12, "use_rslora": True}),
    "patterns": (
        peft.LoraConfig,
        {"rank_pattern": {"blocks.1.att.key": 2}, "alpha_pattern": {"att.key": 40, "ffn.value": 3}},
    ),
    "dora": (peft.LoraConfig, {"lora_alpha": 12, "use_dora": True}),
    "miss": (peft.MissConfig, {}),
    "modules": (
        peft.LoraConfig,
        {"target_modules": ["att.key"], "modules_to_save": ["head", "ffn.value", "ln_out", "0.ln1"]},
    ),
    "orthogonal": (peft.LoraConfig, {"r": 4, "init_lora_weights": "orthogonal"}),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """peft warns of a model without a config of transformers, which ours is here on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def base() -> weights.Weights:
    return weights.load(FIXTURES / "v7.safetensors")


def network(base: weights.Weights) -> Any:
    from rookery.backends.torch.module import Network

    return Network.of(base)


def logits(module: Any) -> Any:
    with torch.no_grad():
        return module(torch.tensor([TOKENS]))[0][0].numpy()


def ours(base: weights.Weights) -> Any:
    from rookery.backends import runner

    made = rookery.Model(base, runner(base, "reference"))
    return made.forward(TOKENS, every=True)[0]


def trained(base: weights.Weights, method: str) -> Any:
    """A peft model whose every trainable number is drawn, as if by training."""
    kind, settings = METHODS[method]
    made = peft.get_peft_model(network(base), kind(**{"r": 3, "target_modules": LINEARS} | settings))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            drawn = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.data += drawn if "magnitude" in name else drawn - parameter.data
    return made.eval()


def check_equal(found: Any, wanted: Any, base: Any) -> None:
    """Equal to each other, and clearly not to the base's."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS_RANDOM)
    assert np.abs(wanted - base).max() > 100 * LOGITS_RANDOM


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_peft_has_the_same_logits_here(base: weights.Weights, method: str, tmp_path: Path) -> None:
    theirs = trained(base, method)
    theirs.save_pretrained(tmp_path)
    found = adapters.load(tmp_path)
    wanted = logits(theirs)
    check_equal(ours(adapters.merged(base, found)), wanted, ours(base))
    check_equal(ours(adapters.beside(base, found)), wanted, ours(base))


@pytest.mark.parametrize("method", METHODS)
def test_ours_has_the_same_logits_in_peft(base: weights.Weights, method: str, tmp_path: Path) -> None:
    trained(base, method).save_pretrained(tmp_path / "theirs")
    made = adapters.load(tmp_path / "theirs")
    adapters.write(made, tmp_path / "ours", "hf")
    wanted = ours(adapters.merged(base, made))
    theirs = peft.PeftModel.from_pretrained(network(base), tmp_path / "ours").eval()
    check_equal(logits(theirs), wanted, ours(base))


def test_pissa_as_peft_saves_it(base: weights.Weights, tmp_path: Path) -> None:
    """With the folder of what it began as, or converted by peft itself; both are the model that was trained."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=LINEARS[:-1], init_lora_weights="pissa")
    theirs = peft.get_peft_model(network(base), config)
    theirs.save_pretrained(tmp_path / "init")
    said = tmp_path / "init" / "adapter_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"init_lora_weights": True}))  # as peft's guide has it
    generator = torch.Generator().manual_seed(7)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    wanted = logits(theirs.eval())
    theirs.save_pretrained(tmp_path / "plain")
    theirs.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "init"))
    plain = adapters.load(tmp_path / "plain", init=tmp_path / "init")
    assert plain.method == "pissa"
    for found in (plain, adapters.load(tmp_path / "converted")):
        check_equal(ours(adapters.merged(base, found)), wanted, ours(base))
    adapters.write(plain, tmp_path / "ours", "hf")
    opened = peft.PeftModel.from_pretrained(network(base), tmp_path / "ours").eval()
    check_equal(logits(opened), wanted, ours(base))


@pytest.mark.parametrize("name", ["v4", "v5.2", "v6"])
def test_of_every_version(name: str, tmp_path: Path) -> None:
    base = weights.load(FIXTURES / f"{name}.safetensors")
    theirs = trained(base, "lora")
    theirs.save_pretrained(tmp_path)
    found = adapters.load(tmp_path)
    check_equal(ours(adapters.merged(base, found)), logits(theirs), ours(base))
    assert {name.split(".", 2)[-1] for name in found.parts} == {*(f"{x}.weight" for x in LINEARS[:-1]), "weight"}


@pytest.mark.parametrize("name", ["v4", "v7"])
def test_over_a_transformers_model_and_its_names(name: str, tmp_path: Path) -> None:
    """v4 is transformers' own class, with its names; v7 is rookery.hf's."""
    transformers = pytest.importorskip("transformers")
    import rookery.hf  # noqa: F401, registers the others

    weights.convert(FIXTURES / f"{name}.safetensors", tmp_path / "model", to="hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (type(model) is transformers.RwkvForCausalLM) == (name == "v4")
    targets = ["receptance", "key", "value", "output"]
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    generator = torch.Generator().manual_seed(7)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = theirs(torch.tensor([TOKENS])).logits[0].numpy()
    base, found = weights.load(tmp_path / "model"), adapters.load(tmp_path / "adapter")
    assert found.metadata["rookery.base.name"] == str(tmp_path / "model")
    assert "blocks.1.ffn.value.weight" in found.parts
    check_equal(ours(adapters.merged(base, found)), wanted, ours(base))


def test_a_planted_scale_is_seen(base: weights.Weights, tmp_path: Path) -> None:
    """The bar is narrow: an alpha off by one part in a hundred does not pass it."""
    theirs = trained(base, "lora")
    theirs.save_pretrained(tmp_path)
    found = adapters.load(tmp_path)
    off = {n: LowRank(p.a, p.b, 1.01 * p.scale) for n, p in found.parts.items() if isinstance(p, LowRank)}
    wrong = ours(adapters.merged(base, Adapter(off, "lora")))
    assert np.abs(wrong - logits(theirs)).max() > 10 * LOGITS_RANDOM
