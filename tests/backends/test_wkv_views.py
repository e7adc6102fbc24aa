"""Four views of the linear recurrences of v4 and v5, each written here from its definition, and ours among them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from wkv_inputs import inputs

from rookery.backends.torch import wkv
from tolerances import WKV_FLOAT64

Tensor = torch.Tensor
LENGTH = 37


def same(x: Tensor, y: Tensor) -> None:
    assert (x - y).norm() <= WKV_FLOAT64 * y.norm()


def explicit4(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """y_t = sum_i e^((t-1-i)w + k_i) v_i / sum_i e^(..), with u + k_t for the token itself."""
    out = []
    for t in range(k.shape[1]):
        ages = torch.arange(t - 1, -1, -1, dtype=k.dtype)[:, None]
        weights = torch.cat([ages * w + k[:, :t], (u + k[:, t])[:, None]], 1).exp()
        out.append((weights * v[:, : t + 1]).sum(1) / weights.sum(1))
    return torch.stack(out, 1)


def scanned4(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """The associative operator on (decay, exponent, numerator, denominator), by doubling: log2 T rounds."""

    def combine(x: list[Tensor], y: list[Tensor]) -> list[Tensor]:
        top = torch.maximum(x[1] + y[0], y[1])
        old, new = torch.exp(x[1] + y[0] - top), torch.exp(y[1] - top)
        return [x[0] + y[0], top, old * x[2] + new * y[2], old * x[3] + new * y[3]]

    seen = [w.expand_as(k), k, v, torch.ones_like(v)]
    reach = 1
    while reach < k.shape[1]:
        later = combine([x[:, :-reach] for x in seen], [x[:, reach:] for x in seen])
        seen = [torch.cat([x[:, :reach], y], 1) for x, y in zip(seen, later, strict=True)]
        reach *= 2
    _, p, a, b = (x[:, :-1] for x in seen)
    p, a, b = (torch.cat([torch.full_like(x[:, :1], e), x], 1) for x, e in ((p, -1e30), (a, 0.0), (b, 0.0)))
    top = torch.maximum(p, u + k)
    old, new = torch.exp(p - top), torch.exp(u + k - top)
    return (old * a + new * v) / (old * b + new)


def convolved(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """[B,T,C] with the causal depthwise kernel (u, 1, e^w, e^2w, ..), newest first."""
    length = x.shape[1]
    ages = torch.arange(length - 1, dtype=x.dtype)[:, None]
    kernel = torch.cat([u[None], torch.exp(ages * w)])  # [T,C]
    padded = torch.nn.functional.pad(x.mT, (length - 1, 0))
    return torch.nn.functional.conv1d(padded, kernel.flip(0).mT[:, None], groups=x.shape[2]).mT


def test_four_views_of_wkv4() -> None:
    k, v, w, u, empty = (t.detach() for t in inputs("wkv4", LENGTH, "empty"))
    views = [explicit4(k, v, w, u), scanned4(k, v, w, u)]
    views.append(convolved(k.exp() * v, w, u.exp()) / convolved(k.exp(), w, u.exp()))
    for form in ("step", "plain"):
        with wkv.using(form):
            views.append(wkv.wkv4(k, v, w, u, empty)[0])
    for view in views[1:]:
        same(view, views[0])


def explicit5(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """y_t = sum_{i<t} (r_t e^((t-1-i)w) . k_i) v_i + (r_t u . k_t) v_t."""
    ages = torch.arange(LENGTH)[:, None] - 1 - torch.arange(LENGTH)
    powers = torch.where(ages[..., None, None] >= 0, torch.exp(ages.clamp(min=0)[..., None, None] * w), 0.0)
    powers = powers + torch.eye(LENGTH, dtype=w.dtype)[..., None, None] * u  # [T,T,H,N]
    return torch.einsum("bthn,tihn,bihn,bihm->bthm", r, powers, k, v)


def scanned5(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """(decay, written) o (decay', written') = (decay decay', decay' written + written'), by doubling."""
    written = k[..., None] * v[..., None, :]
    decay, seen, reach = w.exp().expand_as(k)[..., None], written, 1
    while reach < LENGTH:
        seen = torch.cat([seen[:, :reach], decay[:, reach:] * seen[:, :-reach] + seen[:, reach:]], 1)
        decay = torch.cat([decay[:, :reach], decay[:, :-reach] * decay[:, reach:]], 1)
        reach *= 2
    before = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)
    return torch.einsum("bthn,bthnm->bthm", r, before + u[..., None] * written)


def convolved5(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Every element of k v^T is a channel, its kernel the decay of its key."""
    pairs = (k[..., None] * v[..., None, :]).flatten(2)
    size = v.shape[-1]
    states = convolved(pairs, w.flatten().repeat_interleave(size), u.flatten().repeat_interleave(size))
    return torch.einsum("bthn,bthnm->bthm", r, states.unflatten(-1, (*w.shape, size)))


def test_four_views_of_wkv5() -> None:
    r, k, v, w, u, empty = (t.detach() for t in inputs("wkv5", LENGTH, "empty", size=4))
    views = [view(r, k, v, w, u) for view in (explicit5, scanned5, convolved5)]
    for form in ("step", "plain"):
        with wkv.using(form):
            views.append(wkv.wkv5(r, k, v, w, u, empty)[0])
    for view in views[1:]:
        same(view, views[0])
