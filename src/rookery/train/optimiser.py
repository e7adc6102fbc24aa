"""The recipe's optimiser: AdamW in groups by the version's parameter table, and the learning rate of every step.

Source: RWKV-LM RWKV-v7/train_temp/src/{model,trainer}.py, RWKV-v4neo/src/trainer.py for v4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rookery.architecture import version
from rookery.architecture.spec import Config
from rookery.train.config import OptimiserSettings, Settings

Rule = Callable[[str, Tensor], tuple[float, bool]]  # of a parameter: its learning-rate scale, whether it decays


def grouped(network: nn.Module, rule: Rule, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, one group for each answer of `rule`; `names` says what is in it."""
    sorted_out: dict[tuple[float, bool], dict[str, Tensor]] = {}
    for name, tensor in network.named_parameters():
        if tensor.requires_grad:
            sorted_out.setdefault(rule(name, tensor), {})[name] = tensor
    return [
        {
            "params": list(members.values()),
            "names": tuple(members),
            "scale": scale,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (scale, decays), members in sorted_out.items()
    ]


def groups(network: nn.Module, config: Config, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each (learning-rate scale, decays) of the parameter table."""
    table = {p.name: (p.lr, p.decay) for p in version(config).params(config)}
    return grouped(network, lambda name, _: table[name], weight_decay)


def adamw(network: nn.Module, config: Config, o: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over `groups`; a group's rate is set before each step by `set_rate`."""
    return over(groups(network, config, o.weight_decay), o)


def over(groups: list[dict[str, Any]], o: Any) -> torch.optim.AdamW:
    """AdamW in one fused kernel, as the optimiser's settings of a run say."""
    return torch.optim.AdamW(groups, o.lr_init, (o.beta1, o.beta2), o.adam_eps, fused=True)


def set_rate(adam: torch.optim.Optimizer, rate: float) -> None:
    for group in adam.param_groups:
        group["lr"] = rate * group["scale"]


def rate(s: Settings, step: int) -> float:
    """The learning rate of step `step` (from 0), before the scales of the groups."""
    o, exponential = s.optimiser, s.model.version == "4"
    kind = o.lr_schedule if o.lr_schedule != "recipe" else ("exponential" if exponential else "cosine")
    warm = o.warmup_steps * s.tokens_a_step
    left = max(1, o.tokens - warm)
    p = min(1.0, max(0.0, (step * s.tokens_a_step - warm) / left))
    f = o.lr_final / o.lr_init
    if kind == "cosine":
        factor = (1 + f) / 2 + (1 - f) / 2 * math.cos(math.pi * p)
    else:
        factor = f**p if kind == "exponential" else 1.0
    if step < o.warmup_steps:
        begin = 0.2 if exponential else 0.01
        factor *= begin + (1 - begin) * step / o.warmup_steps
    return o.lr_init * factor
