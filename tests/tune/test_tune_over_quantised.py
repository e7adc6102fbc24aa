"""An adapter trained over int8 or nf4: what is merged, or runs beside its base, is what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tolerances

torch = pytest.importorskip("torch")
from rookery import weights
from rookery.backends.torch import Network
from rookery.tune import config
from rookery.tune.quantised import QuantLinear
from rookery.tune.tuner import Tuner
from rookery.weights import adapters

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v6.safetensors"


def tuned(folder: Path, model: str, kind: str, *more: str) -> Tuner:
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"say {n}", "completion": f"it is {n * n}"}) for n in range(6)))
    settings = [f"load_model={model}", f"train={rows}", f"quant={kind}", f"out={folder / 'out'}", "steps=3", "batch=2"]
    return Tuner(
        config.load(None, [*settings, "ctx_len=32", "rank=2", "lr_init=0.05", "device=cpu", *more]), live=False
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize(
    ("model", "more"),
    [("gosling", ["targets=['att']"]), (str(FIXTURE), ["tokenizer=bytes", "template=plain", "method=dora"])],
    ids=["gosling", "v6"],
)
def test_merged_is_as_trained(tmp_path: Path, model: str, more: list[str], kind: str) -> None:
    """gosling lies in blocks itself, and only half of its rounded matrices are adapted."""
    trainer = tuned(tmp_path, model, kind, *more)
    assert sum(isinstance(m, QuantLinear) for m in trainer.network.modules()) > 8
    base, made = weights.load(model), adapters.load(trainer.run())
    assert made.quant == kind
    tokens = torch.arange(1, 41).reshape(2, 20) * 5 % base.config.n_vocab
    with torch.no_grad():
        wanted, _ = trainer.network.double().eval()(tokens)
        for tuned_weights in (adapters.merged(base, made), adapters.beside(base, made)):
            found, _ = Network.of(tuned_weights, torch.float64)(tokens)
            assert float((found - wanted).abs().max()) < tolerances.ADAPTER_MERGED
        untuned, _ = Network.of(base, torch.float64)(tokens)
    assert float((untuned - wanted).abs().max()) > tolerances.MATTERS
