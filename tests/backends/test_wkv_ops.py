"""The WKV operators as torch sees them: schemas, fake tensors, finite differences, types, what they keep."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from wkv_inputs import NAMES, inputs, resets

from rookery.backends.torch import wkv
from rookery.backends.torch.wkv import chunked7, native, ops
from tolerances import GRADIENT_CHUNKED, WKV_BF16

Tensor = torch.Tensor
OPERATORS = ["wkv4", "wkv5", "wkv6", "wkv7"]  # wkv5 is operator wkv6 with one decay for all tokens


def operator(name: str) -> ops.Operator:
    return getattr(ops, "wkv6" if name == "wkv5" else name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences(name: str) -> None:
    """In float64, through the operator, over a chunk's edge, with and without resets; the state's gradient too."""
    call = getattr(wkv, name.split("-")[0])
    with wkv.using("plain"):
        for length, flags in ((5, None), (5, resets(5, 1)), (34, None)):
            tensors = inputs(name, length, size=2, batch=1, heads=1)
            assert torch.autograd.gradcheck(
                lambda *given, flags=flags: call(*given, flags), tensors, fast_mode=length > 5
            )


@pytest.mark.parametrize("form", ["plain", "native"])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_is_what_torch_expects(name: str, form: str) -> None:
    """Schema, registration, fake tensors and tracing of the operator and of its backward."""
    if form == "native" and not native.available():
        pytest.skip("the native core is not built")
    tensors = [t.detach().float().requires_grad_() for t in inputs(name, 20, size=16)]
    torch.library.opcheck(operator(name), (*tensors, resets(20), form))
    plain = [t.detach() for t in tensors]
    outputs = operator(name)(*plain, None, form)
    back = getattr(torch.ops.rookery, ("wkv6" if name == "wkv5" else name) + "_backward")
    torch.library.opcheck(back.default, (*(torch.ones_like(x) for x in outputs), *plain, None, form))


@pytest.mark.parametrize("name", OPERATORS)
def test_it_keeps_its_inputs_alone(name: str) -> None:
    tensors, kept = inputs(name, 40), []
    with wkv.using("plain"), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        getattr(wkv, name)(*tensors)
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in tensors}


def test_a_second_derivative_is_refused() -> None:
    tensors = inputs("wkv7", 20)
    with wkv.using("plain"):
        y, _ = wkv.wkv7(*tensors)
    (gradient,) = torch.autograd.grad(y.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"wkv7_backward.* no autograd formula"):
        gradient.sum().backward()


@pytest.mark.parametrize("form", ["step", "plain", "native"])
@pytest.mark.parametrize("name", OPERATORS)
def test_bf16_inputs_are_computed_in_float32(name: str, form: str) -> None:
    """y is bf16, the state float32, gradients of their inputs' types; only y's rounding is lost."""
    if form == "native" and not native.available():
        pytest.skip("the native core is not built")
    call = getattr(wkv, name)
    narrow = [t.detach().bfloat16().requires_grad_() for t in inputs(name, 40, size=16)]
    wide = [t.detach().float().requires_grad_() for t in narrow]
    with wkv.using("step"):
        truth, true_state = call(*wide)
        true_grads = torch.autograd.grad(truth.sum(), wide)
    with wkv.using(form), torch.autocast("cpu", torch.bfloat16):
        y, state = call(*narrow)
        grads = torch.autograd.grad(y.sum(), narrow)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert {g.dtype for g in grads} == {torch.bfloat16}
    assert (y - truth).detach().norm() <= WKV_BF16 * truth.detach().norm()
    assert (state - true_state).detach().norm() <= GRADIENT_CHUNKED * true_state.detach().norm()
    for ours, wanted in zip(grads, true_grads, strict=True):
        assert (ours - wanted).norm() <= WKV_BF16 * wanted.norm()


def test_the_matmul_precision_asked_for_outside_does_not_reach_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of torch's two ways it was asked for; and it is as before afterwards."""
    tensors = [t.detach().float() for t in inputs("wkv7", 64, size=16)]
    within: list[str] = []

    def forward(*given: Tensor) -> tuple[Tensor, Tensor]:
        within.append(torch.backends.mkldnn.matmul.fp32_precision)
        return chunked7.forward(*given)

    monkeypatch.setitem(ops.FORMS["wkv7"], "plain", (forward, chunked7.backward))
    with wkv.using("plain"):
        try:
            torch.set_float32_matmul_precision("medium")
            wkv.wkv7(*tensors)
            assert torch.get_float32_matmul_precision() == "medium"
            torch.backends.mkldnn.matmul.fp32_precision = "tf32"
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            wkv.wkv7(*tensors)
            assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
        finally:
            torch.set_float32_matmul_precision("highest")
    assert within == ["ieee", "ieee"]
