"""Chunked equals stepped: outputs, states and every gradient, for all versions, decays, lengths and resets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from wkv_inputs import KINDS, NAMES, inputs, resets

from rookery.backends.torch import wkv
from rookery.backends.torch.wkv import native
from tolerances import GRADIENT_CHUNKED, LOGITS_CHUNKED, STATE_CHUNKED, WKV_FLOAT64

Tensor = torch.Tensor
LENGTHS = [1, 5, 31, 32, 33, 100]  # of chunks of 32: less than one, a whole one, a ragged end; 4's are of any length


def run(name: str, form: str, tensors: Sequence[Tensor], flags: Tensor | None = None) -> list[Tensor]:
    """y, the state and the gradient of every input, for a loss that weighs each output differently."""
    given = [t.detach().clone().requires_grad_() for t in tensors]
    with wkv.using(form):
        y, state = getattr(wkv, name.split("-")[0])(*given, flags)
        weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
        loss = (y * weights).sum() + (state * torch.cos(torch.arange(state.numel())).reshape(state.shape)).sum()
        return [y.detach(), state.detach(), *torch.autograd.grad(loss, given)]


def close(ours: Tensor, truth: Tensor, tolerance: float) -> bool:
    """Relative to the tensor, whose elements are of order 1 unless they cancel (to nothing, after a reset)."""
    size = truth.detach().norm().item()
    return (ours - truth).detach().norm().item() <= tolerance * max(size, 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_plain_is_stepped(name: str, length: int, kind: str) -> None:
    tensors = inputs(name, length, kind)
    for flags in (None, resets(length)):
        for ours, truth in zip(run(name, "plain", tensors, flags), run(name, "step", tensors, flags), strict=True):
            assert ours.shape == truth.shape
            assert close(ours, truth, WKV_FLOAT64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_bounds(name: str, kind: str) -> None:
    tensors = inputs(name, 100, kind, size=16)
    narrow = [t.detach().float() for t in tensors]
    wide = [t.double() for t in narrow]
    flags = resets(100)
    y, state, *grads = run(name, "plain", narrow, flags)
    true_y, true_state, *true_grads = run(name, "step", wide, flags)
    assert y.dtype == state.dtype == torch.float32
    assert (y - true_y).abs().max() <= LOGITS_CHUNKED * true_y.abs().max()
    assert close(state, true_state, STATE_CHUNKED)
    for ours, truth in zip(grads, true_grads, strict=True):
        assert close(ours, truth, GRADIENT_CHUNKED)


@pytest.mark.parametrize("form", ["plain", "native"])
@pytest.mark.parametrize("name", ["wkv5", "wkv6"])
def test_a_steep_decays_own_parameter_gets_its_gradient(name: str, form: str) -> None:
    """The decay is e^-e^x: x's gradient is the log decay's times -e^x, which makes rounding left there large."""
    if form == "native" and not native.available():
        pytest.skip("the native core is not built")
    tensors = [t.detach() for t in inputs(name, 100, size=16)]
    x = 2 + 3 * torch.randn(tensors[3].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradient(form: str, dtype: torch.dtype) -> Tensor:
        given = x.to(dtype).requires_grad_()
        r, k, v, _, bonus, state = (t.to(dtype) for t in tensors)
        with wkv.using(form):
            y, after = getattr(wkv, name)(r, k, v, -torch.exp(given), bonus, state, resets(100))
        return torch.autograd.grad((y * y).sum() + after.sum(), given)[0]

    assert close(gradient(form, torch.float32), gradient("step", torch.float64), GRADIENT_CHUNKED)


@pytest.mark.parametrize("form", ["step", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_may_be_cut_anywhere(name: str, form: str) -> None:
    """T-parallel in one piece, or in two with the state carried: the same."""
    tensors = inputs(name, 70)
    per_token = [t.ndim >= 3 and t.shape[1] == 70 for t in tensors]
    whole = run(name, form, tensors)
    with wkv.using(form):
        call = getattr(wkv, name.split("-")[0])
        first = [t[:, :41] if cut else t for t, cut in zip(tensors, per_token, strict=True)]
        y1, state = call(*first)
        rest = [t[:, 41:] if cut else t for t, cut in zip(tensors, per_token, strict=True)]
        y2, state = call(*rest[:-1], state)
    assert close(torch.cat([y1, y2], 1), whole[0], WKV_FLOAT64)
    assert close(state, whole[1], WKV_FLOAT64)


@pytest.mark.parametrize("form", ["step", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_a_reset_is_a_new_sequence(name: str, form: str) -> None:
    """Packed documents equal documents of their own, each from the empty state, gradients included."""
    tensors, starts = inputs(name, 80, batch=1), [0, 17, 18, 50, 80]
    empty = inputs(name, 80, "empty", batch=1)[-1].detach()
    flags = torch.zeros(1, 80, dtype=torch.bool)
    flags[0, starts[1:-1]] = True
    call, weights = getattr(wkv, name.split("-")[0]), torch.sin(torch.arange(80.0, dtype=torch.float64))

    def loss(y: Tensor) -> Tensor:
        return (y * weights.reshape(1, -1, *[1] * (y.ndim - 2))).sum()

    with wkv.using(form):
        packed, last = call(*tensors, flags)
        alone = []
        for begin, end in pairwise(starts):
            part = [t[:, begin:end] if t.ndim >= 3 and t.shape[1] == 80 else t for t in tensors[:-1]]
            y, state = call(*part, empty if begin else tensors[-1])
            alone.append(y)
        truth = torch.cat(alone, 1)
        assert close(packed, truth, WKV_FLOAT64)
        assert close(last, state, WKV_FLOAT64)
        grads = torch.autograd.grad(loss(packed), tensors), torch.autograd.grad(loss(truth), tensors)
    for ours, wanted in zip(*grads, strict=True):
        assert close(ours, wanted, WKV_FLOAT64)


def test_nothing_overflows_where_all_is_forgotten_at_every_token() -> None:
    for name in ("wkv5", "wkv6"):
        tensors = [t.detach().float() for t in inputs(name, 64)]
        tensors[3] = torch.full_like(tensors[3], -1e4)
        for result in run(name, "plain", tensors):
            assert result.isfinite().all()


def test_the_form_at_hand_is_chosen() -> None:
    few, many = torch.empty(1, wkv.FEW - 1, 2, 64), torch.empty(1, wkv.FEW, 2, 64)
    assert wkv.choose(few, torch.float32) == "step"
    assert wkv.choose(many, torch.float64) == "plain"
    assert wkv.choose(many.to("meta"), torch.float32) == "plain"
    with wkv.using("plain"):
        assert wkv.choose(few, torch.float32) == "plain"
        with wkv.using("auto"):
            assert wkv.choose(few, torch.float32) == "step"
    with pytest.raises(ValueError, match="WKV form 'fast'"), wkv.using("fast"):
        pass
