"""The native recurrences and their gradients against a float64 loop in torch's autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import tolerances

torch = pytest.importorskip("torch")
from rookery.backends.torch.wkv import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native core is not built")

Case = dict[str, "torch.Tensor | None"]
HOSTILE = [(1, False), (5, True), (16, True), (33, True), (64, False), (49, True)]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def resets_of(generator: torch.Generator, batch: int, time: int) -> torch.Tensor:
    """Anywhere, the first token's and two in a row among them."""
    flags = torch.rand(batch, time, generator=generator) < 0.15
    flags[0, 0] = True
    flags[-1, time // 2 : time // 2 + 2] = True
    return flags


def rows(state: torch.Tensor, empty: torch.Tensor, resets: torch.Tensor | None, t: int) -> torch.Tensor:
    if resets is None:
        return state
    return torch.where(resets[:, t].view(-1, *[1] * (state.ndim - 1)), empty, state)


def loop7(r, g, k, v, a, b, state, resets):  # type: ignore[no-untyped-def]
    out = []
    for t in range(r.shape[1]):
        state = rows(state, torch.zeros_like(state), resets, t)
        removed = torch.einsum("bhk,bhkv->bhv", a[:, t], state)
        state = state * g[:, t].exp()[..., None] + torch.einsum("bhk,bhv->bhkv", b[:, t], removed)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        out.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state))
    return torch.stack(out, 1), state


def case7(time: int, reset: bool, n: int = 32, batch: int = 2, heads: int = 3, decay: float | None = None) -> Case:
    """Inputs as an RWKV-7 has them: unit keys are removed, at rates within (0, 1)."""
    rng = torch.Generator().manual_seed(time * 1000 + n)
    r, g, k, v, x = (normal(rng, batch, time, heads, n) for _ in range(5))
    g = -0.6065 * torch.sigmoid(2 * g) if decay is None else torch.full_like(g, decay)
    unit = torch.nn.functional.normalize(x, dim=-1)
    rate = torch.rand(x.shape, generator=rng)
    state = normal(rng, batch, heads, n, n)
    resets = resets_of(rng, batch, time) if reset else None
    return {"r": r, "g": g, "k": k, "v": v, "a": -unit, "b": unit * rate, "state": state, "resets": resets}


def compare(loop: Callable, forward: Callable, backward: Callable, case: Case) -> None:
    """Outputs, state and every gradient, each relative to its own length."""
    exact = {n: x.double().requires_grad_() for n, x in case.items() if n != "resets" and x is not None}
    y, state = loop(**exact, resets=case["resets"])
    rng = torch.Generator().manual_seed(1)
    dy, dstate = normal(rng, *y.shape), normal(rng, *state.shape)
    wanted = torch.autograd.grad((y * dy).sum() + (state * dstate).sum(), list(exact.values()))
    got = [*forward(**case), *backward(dy, dstate, **case)]
    for name, g, w in zip(["y", "state out", *exact], got, [y, state, *wanted], strict=True):
        assert g.dtype == torch.float32
        assert g.shape == w.shape
        error = (g.double() - w).norm() / w.norm().clamp_min(1e-30)
        assert error <= tolerances.WKV_NATIVE or (g.double() - w).abs().max() < 1e-12, f"{name}: {error:.3g}"


@pytest.mark.parametrize(("time", "reset"), HOSTILE)
def test_wkv7_is_the_float64_loop(time: int, reset: bool) -> None:
    compare(loop7, native.wkv7, native.wkv7_backward, case7(time, reset))


@pytest.mark.parametrize("n", [16, 48, 64, 96, 256])
def test_wkv7_of_any_head(n: int) -> None:
    compare(loop7, native.wkv7, native.wkv7_backward, case7(19, True, n, 1, 1))


@pytest.mark.parametrize("decay", [-0.6065, -1e-6, -30.0])
def test_wkv7_of_extreme_decays(decay: float) -> None:
    compare(loop7, native.wkv7, native.wkv7_backward, case7(40, False, decay=decay))
