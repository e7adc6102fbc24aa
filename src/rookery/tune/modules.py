"""Trainable modules in the place of a network's frozen ones, each the torch twin of a Part of weights.adapters.

O output width, I input width, r rank. What is trained is float32; the base may be an nn.Linear or a QuantLinear.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.architecture import Config, Param
from rookery.errors import InputError
from rookery.formats.tensor import Array
from rookery.state import layers, pieces, size
from rookery.weights import adapters
from rookery.weights.adapters import Part


class Adapted(nn.Module):
    """A frozen matrix [O,I] and what is trained beside it. `rows` is for one that is a table."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.rank, self.scale = base, rank, alpha / rank
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def weight(self) -> Tensor:
        """The frozen W [O,I], float32 or wider."""
        made = getattr(self.base, "dequantised", None)
        frozen: Tensor = self.base.weight if made is None else made()  # type: ignore[assignment]
        return frozen.detach().to(torch.promote_types(frozen.dtype, torch.float32))

    def changed(self) -> Tensor:
        """[O,I] with what is trained, differentiable."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the table."""
        return functional.embedding(ids, self.changed())

    def part(self) -> Part:
        """What it has come to, for a file."""
        raise NotImplementedError


class Lora(Adapted):
    """W + scale B A, B beginning as 0 and A as kaiming's uniform."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, alpha, dropout, generator)
        bound = 1 / math.sqrt(self.in_features)
        self.a = nn.Parameter(torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator))
        self.b = nn.Parameter(torch.zeros(self.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = functional.linear(functional.linear(self.dropout(x), self.a), self.b)
        base: Tensor = self.base(x)
        return torch.add(base, low, alpha=self.scale)

    def changed(self) -> Tensor:
        return self.weight() + self.scale * (self.b @ self.a)

    def rows(self, ids: Tensor) -> Tensor:
        low: Tensor = functional.embedding(ids, self.b) @ self.a
        return torch.add(functional.embedding(ids, self.weight()), low, alpha=self.scale)

    def part(self) -> Part:
        return adapters.LowRank(_array(self.a), _array(self.b), self.scale)


class Rslora(Lora):
    """LoRA whose scale is alpha / sqrt(r)."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, alpha, dropout, generator)
        self.scale = alpha / math.sqrt(rank)


class Dora(Lora):
    """magnitude * V / |V| of V = W + scale B A, row by row; the norm has no gradient (arXiv 2402.09353, 4.3)."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, alpha, dropout, generator)
        self.magnitude = nn.Parameter(self.weight().norm(dim=1))

    def _gain(self) -> Tensor:
        length: Tensor = super().changed().detach().norm(dim=1)
        return self.magnitude / length

    def forward(self, x: Tensor) -> Tensor:
        return self._gain() * super().forward(x)

    def changed(self) -> Tensor:
        return self._gain()[:, None] * super().changed()

    def rows(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self._gain()[:, None]) * super().rows(ids)

    def part(self) -> Part:
        return adapters.Dora(_array(self.a), _array(self.b), self.scale, _array(self.magnitude))


class Pissa(Lora):
    """The r largest singular vectors of W as B A, trained; what is left of W is frozen. There is no scale."""

    first_a: Tensor
    first_b: Tensor
    EXACT: ClassVar[int] = 1024  # width up to which all singular vectors are computed

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, alpha, dropout, generator)
        self.scale = 1.0
        w = self.weight()
        if min(w.shape) <= self.EXACT:
            u, s, v = torch.linalg.svd(w, full_matrices=False)
            u, s, v = u[:, :rank], s[:rank], v[:rank]
        else:
            with torch.random.fork_rng([]):
                torch.manual_seed(int(generator.initial_seed()))
                u, s, turned = torch.svd_lowrank(w, rank, niter=4)
            v = turned.mT
        root = s.sqrt()
        self.register_buffer("first_a", (root[:, None] * v).contiguous())
        self.register_buffer("first_b", (u * root).contiguous())
        with torch.no_grad():
            self.a.copy_(self.first_a)
            self.b.copy_(self.first_b)
            base.weight.sub_(self.first_b @ self.first_a)  # type: ignore[operator]

    def part(self) -> Part:
        return adapters.Pissa(*(_array(t) for t in (self.a, self.b, self.first_a, self.first_b)))


class Miss(Adapted):
    """W x + D^T (the blocks of r of x, summed), D beginning as 0."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, alpha, dropout, generator)
        self.d = nn.Parameter(torch.zeros(rank, self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        x_in = self.dropout(x)
        short = -self.in_features % self.rank
        blocks = functional.pad(x_in, (0, short)) if short else x_in
        low = blocks.unflatten(-1, (-1, self.rank)).sum(-2)
        return self.base(x) + functional.linear(low, self.d.mT)  # type: ignore[no-any-return]

    def changed(self) -> Tensor:
        times = -(-self.in_features // self.rank)
        return self.weight() + self.d.mT.repeat(1, times)[:, : self.in_features]

    def part(self) -> Part:
        return adapters.Miss(_array(self.d))


METHODS: dict[str, type[Adapted]] = {"lora": Lora, "rslora": Rslora, "dora": Dora, "pissa": Pissa, "miss": Miss}


class Initial(nn.Module):
    """The state before the first token, trained: one flat vector a layer, in the order of `State`; float32."""

    def __init__(self, config: Config, flat: Array, shifts: bool = True) -> None:
        """`flat` [n]: what it begins as; without `shifts` the token shifts stay so. Raises InputError for v4, whose
        sums are no place to begin from.
        """
        super().__init__()
        if config.version == "4":
            raise InputError("a state is tuned in v5, v6 and v7; RWKV-4 keeps running sums, which have no free start")
        self.config, self.shifts = config, shifts
        each = torch.from_numpy(flat.astype("float32")).reshape(config.n_layer, size(config) // config.n_layer)
        self.layers = nn.ParameterList([nn.Parameter(row.clone()) for row in each])

    def start(self, batch: int) -> list[dict[str, Tensor]]:
        """The states of `batch` sequences."""
        found = []
        for flat in self.layers:
            parts = torch.split(flat, [p.size for p in pieces(self.config)])
            found.append({
                p.name: (part if self.shifts or p.name == "wkv" else part.detach())
                .reshape(p.shape)
                .expand(batch, *p.shape)
                for p, part in zip(pieces(self.config), parts, strict=True)
            })  # fmt: skip
        return found

    def vector(self) -> Array:
        """[n], as `State.flat`."""
        flat = _array(torch.cat([p.detach() for p in self.layers]))
        assert len(layers(self.config, flat)) == self.config.n_layer
        return flat


def targets(table: list[Param], globs: list[str] | tuple[str, ...]) -> list[Param]:
    """Those of the table that any of `globs` means: "att", "ffn", "emb", "head", or a glob of the whole name, of the
    name within its block, or of its last word, each with or without ".weight". Raises InputError for one without any.
    """
    found = []
    for glob in globs:
        these = [p for p in table if means(glob, p)]
        if not these:
            known = sorted({word for p in table for word in _names(p)[1:]})
            raise InputError(f"{glob!r} means no tensor of this model; there are att, ffn, emb, head and {_few(known)}")
        found += these
    return [p for p in table if p in found]


def means(glob: str, p: Param) -> bool:
    """Whether `glob` means the tensor."""
    from fnmatch import fnmatchcase

    kinds = {"emb": "embedding"}
    return kinds.get(glob, glob) == p.kind or any(fnmatchcase(name, glob) for name in _names(p))


def _names(p: Param) -> list[str]:
    whole = p.name.removesuffix(".weight")
    inside = whole.split(".", 2)[2] if whole.startswith("blocks.") else whole
    return [p.name, whole, inside, inside.rsplit(".", 1)[-1]]


def _few(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _array(t: Tensor) -> Array:
    return t.detach().float().cpu().contiguous().numpy().copy()
