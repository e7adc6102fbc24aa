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


def loop6(r, k, v, g, u, state, resets):  # type: ignore[no-untyped-def]
    out = []
    for t in range(r.shape[1]):
        state = rows(state, torch.zeros_like(state), resets, t)
        written = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        out.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state + u[..., None] * written))
        state = state * (g if g.ndim == 2 else g[:, t]).exp()[..., None] + written
    return torch.stack(out, 1), state


def loop4(k, v, w, u, state, resets):  # type: ignore[no-untyped-def]
    out = []
    empty = state.new_tensor([0.0, 0.0, -1e30])[:, None]
    for t in range(k.shape[1]):
        top, below, most = rows(state, empty, resets, t).unbind(1)
        high = torch.maximum(most, k[:, t] + u)
        old, own = (most - high).exp(), (k[:, t] + u - high).exp()
        out.append((old * top + own * v[:, t]) / (old * below + own))
        high = torch.maximum(most + w, k[:, t])
        old, own = (most + w - high).exp(), (k[:, t] - high).exp()
        state = torch.stack([old * top + own * v[:, t], old * below + own, high], 1)
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


def case6(
    time: int, reset: bool, n: int = 32, batch: int = 2, heads: int = 3, decay: float | None = None, fixed: bool = False
) -> Case:
    rng = torch.Generator().manual_seed(time * 1000 + n)
    r, k, v, g = (normal(rng, batch, time, heads, n) for _ in range(4))
    g = -torch.exp(g) if decay is None else torch.full_like(g, decay)
    u, state = normal(rng, heads, n), normal(rng, batch, heads, n, n)
    resets = resets_of(rng, batch, time) if reset else None
    g = g[0, 0].contiguous() if fixed else g
    return {"r": r, "k": k, "v": v, "g": g, "u": u, "state": state, "resets": resets}


@pytest.mark.parametrize("fixed", [False, True], ids=["v6", "v5"])
@pytest.mark.parametrize(("time", "reset"), HOSTILE)
def test_wkv6_is_the_float64_loop(time: int, reset: bool, fixed: bool) -> None:
    compare(loop6, native.wkv6, native.wkv6_backward, case6(time, reset, fixed=fixed))


@pytest.mark.parametrize("n", [16, 48, 64, 96, 256])
def test_wkv6_of_any_head(n: int) -> None:
    compare(loop6, native.wkv6, native.wkv6_backward, case6(19, True, n, 1, 1))


@pytest.mark.parametrize("fixed", [False, True], ids=["v6", "v5"])
@pytest.mark.parametrize("decay", [-1e4, -20.0, -1e-7])
def test_wkv6_of_extreme_decays(decay: float, fixed: bool) -> None:
    compare(loop6, native.wkv6, native.wkv6_backward, case6(40, False, decay=decay, fixed=fixed))


def test_wkv6_of_decays_far_apart() -> None:
    case = case6(40, True)
    rng = torch.Generator().manual_seed(3)
    case["g"] = -torch.exp(8 * torch.rand(case["g"].shape, generator=rng) - 5)
    case["g"][torch.rand(case["g"].shape, generator=rng) < 0.1] = -1e4
    compare(loop6, native.wkv6, native.wkv6_backward, case)


def case4(time: int, reset: bool, channels: int = 37, batch: int = 2, size: float = 1.0, begun: bool = True) -> Case:
    rng = torch.Generator().manual_seed(time * 1000 + channels)
    k, v = size * normal(rng, batch, time, channels), normal(rng, batch, time, channels)
    w, u = -torch.exp(normal(rng, channels)), normal(rng, channels)
    state = torch.stack([normal(rng, batch, channels), 0.1 + torch.rand(batch, channels, generator=rng),
                         normal(rng, batch, channels)], 1)  # fmt: skip
    if not begun:
        state = torch.tensor([0.0, 0.0, -1e30])[:, None].expand(batch, 3, channels).contiguous()
    return {"k": k, "v": v, "w": w, "u": u, "state": state, "resets": resets_of(rng, batch, time) if reset else None}


@pytest.mark.parametrize(("time", "reset"), HOSTILE)
def test_wkv4_is_the_float64_loop(time: int, reset: bool) -> None:
    compare(loop4, native.wkv4, native.wkv4_backward, case4(time, reset))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("size", [0.0, 7.0, 20.0])
def test_wkv4_of_large_keys_and_any_beginning(size: float, begun: bool) -> None:
    compare(loop4, native.wkv4, native.wkv4_backward, case4(40, False, size=size, begun=begun))


KERNELS = [
    (native.wkv4, native.wkv4_backward, case4(33, True, 64)),
    (native.wkv6, native.wkv6_backward, case6(33, True)),
    (native.wkv6, native.wkv6_backward, case6(33, True, fixed=True)),
    (native.wkv7, native.wkv7_backward, case7(33, True)),
]


@pytest.mark.parametrize(("forward", "backward", "case"), KERNELS, ids=["v4", "v6", "v5", "v7"])
class TestEvery:
    def test_threads_do_not_show(self, forward: Callable, backward: Callable, case: Case) -> None:
        before, got = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                y, state = forward(**case)
                got.append([y, state, *backward(y, state, **case)])
        finally:
            torch.set_num_threads(before)
        for other in got[1:]:
            assert all(torch.equal(a, b) for a, b in zip(got[0], other, strict=True))

    def test_what_does_not_fit_is_refused(self, forward: Callable, backward: Callable, case: Case) -> None:
        y, state = forward(**case)
        calls = (lambda **x: forward(**x), lambda **x: backward(y, state, **x))
        for name, x in case.items():
            wrong = [x.to(torch.int32), x[..., :-1].contiguous(), x[..., None]]
            wrong += [] if name == "resets" else [x.repeat_interleave(2, -1)[..., ::2]]
            for call in calls:
                for bad in wrong:
                    with pytest.raises((ValueError, TypeError)):
                        call(**case | {name: bad})
        with pytest.raises(ValueError, match="dy is"):
            backward(y.double(), state, **case)
        with pytest.raises((ValueError, TypeError)):
            backward(y[:1], state, **case)
        with pytest.raises((ValueError, TypeError)):
            backward(y, state[:1], **case)

    def test_no_sequences(self, forward: Callable, backward: Callable, case: Case) -> None:
        shared = {"w", "u"} | ({"g"} if case.get("g") is not None and case["g"].ndim == 2 else set())
        none = {name: x if name in shared else x[:0] for name, x in case.items()}
        y, state = forward(**none)
        grads = backward(y, state, **none)
        assert [g.shape for g in grads] == [x.shape for name, x in none.items() if name != "resets"]
        assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("n", [0, -16, 8, 40, 272])
def test_heads_for_plain_torch(n: int) -> None:
    assert not native.supports(n)


def test_supported_heads() -> None:
    assert all(native.supports(n) for n in range(16, 257, 16))
