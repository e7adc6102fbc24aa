"""Our trainable modules beside those of Hugging Face's peft: the same steps from the same beginning."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from torch import Tensor, nn

import tolerances
from rookery.tune.modules import METHODS

IN, OUT, RANK, ALPHA = 24, 16, 5, 8.0
CONFIGS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa", "lora_alpha": RANK},
}


class One(nn.Module):
    def __init__(self, lin: nn.Module) -> None:
        super().__init__()
        self.lin = lin

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


def losses(model: nn.Module) -> list[float]:
    """Of ten steps towards random numbers."""
    generator = torch.Generator().manual_seed(2)
    x, wanted = (torch.randn(32, n, generator=generator) for n in (IN, OUT))
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    found = []
    for _ in range(10):
        adam.zero_grad()
        loss = (model(x) - wanted).square().mean()
        loss.backward()
        adam.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("method", [*CONFIGS, "miss"])
def test_each_method_learns_as_pefts(method: str) -> None:
    torch.manual_seed(1)
    base = nn.Linear(IN, OUT, bias=False).requires_grad_(False)
    ours = METHODS[method](copy.deepcopy(base), RANK, ALPHA, 0.0, torch.Generator().manual_seed(1))
    if method == "miss":
        config = peft.MissConfig(r=RANK, target_modules=["lin"])
    else:
        config = peft.LoraConfig(r=RANK, target_modules=["lin"], **{"lora_alpha": ALPHA, **CONFIGS[method]})
    theirs = peft.get_peft_model(One(copy.deepcopy(base)), config)
    if method != "miss":
        layer = theirs.base_model.model.lin
        with torch.no_grad():
            for name, held in (("a", layer.lora_A), ("b", layer.lora_B)):
                if method == "pissa":  # whose singular vectors have either sign
                    getattr(ours, name).copy_(held["default"].weight)
                else:
                    held["default"].weight.copy_(getattr(ours, name))
    found = losses(One(ours))
    assert found == pytest.approx(losses(theirs), rel=tolerances.LOSS_SPLIT)
    assert found[-1] < 0.95 * found[0]
