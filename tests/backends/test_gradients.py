"""Gradients of the torch op set: every parameter has one, finite differences agree, chunked equals stepped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rookery import weights
from rookery.backends.layout import Layout
from rookery.backends.torch import Network
from tolerances import GRADIENT_FINITE_DIFFERENCE

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v6-timestate", "v7"]


def network(version: str) -> Network:
    return Network.of(weights.load(FIXTURES / f"{version}.safetensors"), torch.float64)


def loss(net: Network, tokens: torch.Tensor) -> torch.Tensor:
    logits, _ = net(tokens[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_parameter_gets_a_gradient_that_finite_differences_confirm(version: str) -> None:
    """Along one random direction of each tensor, central differences in float64."""
    net, generator = network(version), torch.Generator().manual_seed(1)
    tokens = torch.randint(256, (2, 6), generator=generator)
    loss(net, tokens).backward()
    names = [name for name, _ in net.named_parameters()]
    assert set(names) == {p.name for p in weights.load(FIXTURES / f"{version}.safetensors").params if not p.optional}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        step, ends = 1e-5 * max(1.0, float(parameter.detach().norm())), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                ends.append(loss(net, tokens).item())
                parameter -= sign * step * direction
        measured, said = (ends[0] - ends[1]) / (2 * step), float((parameter.grad * direction).sum())
        scale = float(parameter.grad.norm())
        assert abs(measured - said) <= GRADIENT_FINITE_DIFFERENCE * scale + 1e-10, (name, measured, said)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_initial_state_gets_a_gradient(version: str) -> None:
    net = network(version)
    _, read = net(torch.tensor([[7, 8]]))  # v4's empty state is so far down that no gradient reaches it
    start = [{k: v.detach().clone().requires_grad_() for k, v in layer.items()} for layer in read]
    net(torch.tensor([[1, 2, 3]]), start)[0].square().sum().backward()
    for i, layer in enumerate(start):
        for name, piece in layer.items():
            assert piece.grad is not None, (i, name)
            assert piece.grad.isfinite().all()
            assert piece.grad.abs().max() > 0, (i, name)


def test_first_values_follow_the_table() -> None:
    """Spot values of the recipe (RWKV-LM train_temp), written out by hand for 3 layers of width 64."""
    from rookery.architecture import Config

    c = Config("7", 3, 64, 256, 256, 1, {"w": 32, "a": 32, "v": 32, "g": 32})
    net = Network.fresh(c, seed=3)
    own = {name: p.detach() for name, p in net.named_parameters()}
    i = torch.arange(64.0)
    zigzag = (i - 31.5) / 31.5
    zigzag = zigzag * zigzag.abs()
    ratio = (1 / 2) ** 0.3
    torch.testing.assert_close(own["blocks.1.att.w0"], -6 + 6 * (i / 63) ** (1 + ratio) + 0.5 + 2.5 * zigzag)
    torch.testing.assert_close(own["blocks.1.att.x_k"], 1 - (i / 64) ** (0.7 * 2 / 3))
    torch.testing.assert_close(own["blocks.2.att.a0"], -0.19 + 0.3 * zigzag + 0.4 * (i / 63 - 0.5))
    torch.testing.assert_close(own["blocks.1.ffn.x_k"], 1 - (i / 64) ** ((2 / 3) ** 4))
    torch.testing.assert_close(own["blocks.0.att.ln_x.weight"], torch.full((64,), (1 / 3) ** 0.7))
    assert (own["blocks.1.att.output.weight"] == 0).all()
    assert own["emb.weight"].abs().max() <= 1e-4
    head = own["head.weight"]
    torch.testing.assert_close(head.T @ head, torch.eye(64), atol=1e-5, rtol=0)  # orthogonal, gain 0.5 sqrt(256/64) = 1
    torch.testing.assert_close(
        own["blocks.0.att.w2"] @ own["blocks.0.att.w2"].T, 0.01 * torch.eye(32), atol=1e-6, rtol=0
    )
    assert "blocks.0.att.v0" not in own


@pytest.mark.parametrize("version", VERSIONS)
def test_a_network_saved_is_the_file_it_came_from(version: str, tmp_path: Path) -> None:
    source = weights.load(FIXTURES / f"{version}.safetensors")
    Network.of(source).save(str(tmp_path / "out.pth"))
    again = weights.load(tmp_path / "out.pth")
    trained = {p.name for p in source.params if not p.optional}
    assert set(again.tensors) == trained
    for name in trained:
        assert again.tensors[name].shape == source.tensors[name].shape
        assert np.array_equal(again.tensors[name].array(), source.tensors[name].array())


def test_linears_are_real_linears_and_taps_name_them() -> None:
    net = network("v7")
    kinds = {name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)}
    assert "blocks.1.att.receptance" in kinds
    assert "blocks.0.ffn.value" in kinds
    heard: list[str] = []

    def listen(name: str, x: torch.Tensor) -> torch.Tensor:
        heard.append(name)
        return x

    net.rows(Layout((2,)), torch.tensor([1, 2]), listener=listen)
    own = {f"att.{n}" for n in ("r", "w", "k", "v", "a", "g", "wkv_out")} | {"ffn.k", "ffn.out", "resid"}
    assert set(heard) == {f"layers.{i}.{n}" for i in range(net.config.n_layer) for n in own}
