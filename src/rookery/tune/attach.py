"""Which tensors of a network are trained, and in what form; and what they have come to, as parts of an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rookery.architecture import Param, version
from rookery.backends.torch import Network
from rookery.errors import InputError
from rookery.formats.tensor import Array
from rookery.train import optimiser
from rookery.tune import config
from rookery.tune.config import AdapterSettings, Settings
from rookery.tune.modules import METHODS, Adapted, Initial, means, targets
from rookery.tune.quantised import QuantLinear
from rookery.weights.adapters import Part, Whole
from rookery.weights.adapters.adapter import LOW_RANK


def attach(network: Network, s: Settings, start: Array) -> None:
    """Freeze `network` but for what `s.adapter` says, which is put in its place.

    `start` [n]: the state before the first token, for state tuning. Raises InputError for targets that are none and
    ranks that are too large.
    """
    a = s.adapter
    network.requires_grad_(False)
    table, whole, pairs = _table(network), list[Param](), list[Param]()
    if a.method == "full":
        whole = targets(table, a.full) if a.full else table
    elif a.method == "state":
        network.initial = Initial(network.config, start, a.shifts)
    else:
        chosen = targets(table, a.targets)
        full = [g for g in a.full if g != config.WHOLE["time"] or any(means(g, p) for p in table)]
        whole = targets(table, full) + [p for p in chosen if p.kind not in LOW_RANK]
        pairs = [p for p in chosen if p.kind in LOW_RANK and p not in whole]
    for p in whole:
        network.get_parameter(p.name).requires_grad_(True)
    if a.quant != "none":
        _each(network, lambda name, old: QuantLinear.of(old, a.quant), {p.name for p in whole})
    elif s.run.precision == "bf16" and a.method != "pissa":
        _each(network, lambda name, old: _narrow(old), {p.name for p in whole})
    for p in pairs:
        generator = torch.Generator().manual_seed(s.run.seed * 1_000_003 + table.index(p))
        home, _, leaf = p.name.removesuffix(".weight").rpartition(".")
        parent = network.get_submodule(home) if home else network
        rank = _rank(a, p)
        if rank > min(p.shape):
            raise InputError(f"adapter.rank = {rank}: {p.name} is {list(p.shape)}, so {min(p.shape)} is the largest")
        alpha = s.alpha * (rank / a.rank if a.alpha == 0 else 1)
        setattr(parent, leaf, METHODS[a.method](getattr(parent, leaf), rank, alpha, a.dropout, generator))


def groups(network: Network, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, for AdamW: whole tensors with the scales and decay of the version's table, adapters decay."""
    table = {p.name: (p.lr, p.decay) for p in _table(network)}

    def rule(name: str, tensor: Tensor) -> tuple[float, bool]:
        return table.get(name, (1.0, not name.startswith("initial.") and tensor.ndim > 1))

    return optimiser.grouped(network, rule, weight_decay)


def parts(network: Network) -> dict[str, Part]:
    """What was trained, by the names of the tensors."""
    found: dict[str, Part] = {f"{n}.weight": m.part() for n, m in network.named_modules() if isinstance(m, Adapted)}
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    whole = {p.name: p.file_shape for p in _table(network) if p.name in trained}
    return found | {n: Whole(trained[n].detach().float().cpu().numpy().reshape(s).copy()) for n, s in whole.items()}


def _table(network: Network) -> list[Param]:
    """The tensors that the network holds."""
    c = network.config
    return [p for p in version(c).params(c) if not p.optional and p.kind != "state"]


def _rank(a: AdapterSettings, p: Param) -> int:
    return next((rank for glob, rank in reversed(a.ranks.items()) if means(glob, p)), a.rank)


def _each(network: Network, make: Any, but: set[str]) -> None:
    """Put make(name, linear) in the place of every linear of a block, but for the tensors `but`."""
    for p in _table(network):
        if p.kind in ("att", "ffn") and p.name not in but:
            home, _, leaf = p.name.removesuffix(".weight").rpartition(".")
            parent = network.get_submodule(home)
            setattr(parent, leaf, make(p.name, getattr(parent, leaf)))


def _narrow(linear: nn.Linear) -> nn.Linear:
    """Its matrix in bfloat16, where that loses nothing: autocast would make it so at every step."""
    narrow = linear.weight.detach().to(torch.bfloat16)
    if bool((narrow.float() == linear.weight).all()):
        linear.weight = nn.Parameter(narrow, requires_grad=False)
    return linear
