"""QuantLinear: the numbers of weights.adapters.blocks, gradients of the dense product, and no dense matrix kept."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from rookery.tune.quantised import QuantLinear
from rookery.weights.adapters import blocks

KINDS = tuple(blocks.BYTES)
SIZES = [(128, 40), (100, 7), (1, 3)]  # in, out


def pair(
    kind: str, columns: int = 128, rows: int = 40, dtype: torch.dtype = torch.float32
) -> tuple[nn.Linear, QuantLinear]:
    """A dense linear of the rounded matrix, and the quantised one."""
    torch.manual_seed(0)
    dense = nn.Linear(columns, rows, bias=False)
    made = QuantLinear.of(dense, kind)
    dense.weight = nn.Parameter(made.dequantised().to(dtype), requires_grad=False)
    return dense, made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_same_numbers_as_numpy(kind: str, columns: int, rows: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows, bias=False)
    made = QuantLinear.of(linear, kind)
    wanted = torch.from_numpy(blocks.rounded(linear.weight.detach().numpy(), kind))
    assert torch.equal(made.dequantised(), wanted)
    assert torch.equal(made.dequantised(torch.bfloat16), wanted.bfloat16())
    assert (made.in_features, made.out_features) == (columns, rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("narrow", [False, True])
def test_product_and_gradient(kind: str, columns: int, rows: int, narrow: bool) -> None:
    """Those of the dense linear, to the bit, in float32 and under autocast."""
    dense, made = pair(kind, columns, rows)
    seen = []
    for module in (dense, made):
        torch.manual_seed(1)
        x = torch.randn(2, 5, columns, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            y = module(x)
        y.backward(torch.randn(y.shape).to(y.dtype))
        seen.append((y.detach(), x.grad))
    for one, other in zip(*seen, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert not list(made.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_finite_differences(kind: str) -> None:
    _, made = pair(kind)
    x = torch.randn(3, 128, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("narrow", [False, True])
def test_nothing_dense_is_kept(kind: str, narrow: bool) -> None:
    """Through a chain whose inputs matter to others, autograd holds the modules' own bytes and nothing else."""
    made = [pair(kind, 256, 256)[1] for _ in range(3)]
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16, narrow):
        y = x
        for module in made:
            y = module(y)
    own = {b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for m in made for b in m.buffers() if b.numel()}
    assert kept == own
    bits = 8 * sum(b.nbytes for b in made[0].state_dict().values()) / 256**2
    assert bits == {"int8": 8.5, "nf4": 4.5}[kind]
    y.float().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_leave_it_alone(kind: str) -> None:
    _, made = pair(kind)
    before = made.dequantised()
    assert torch.equal(nn.Sequential(made).to(torch.bfloat16).half().double()[0].dequantised(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_exactly(kind: str) -> None:
    _, made = pair(kind, 100, 7)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = QuantLinear(100, 7, kind)
    assert not other.dequantised().any()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.dequantised(), made.dequantised())


def test_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="bias"):
        QuantLinear.of(nn.Linear(4, 4), "nf4")
