"""A substrate on its way: what its state was after every tick, given its tokens or left to itself.

T ticks, V vocabulary. Teacher-forced: every substrate reads the same tokens. Free-running: it reads the same beginning
and then its own tokens (a language model), or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rookery.lab.metrics import log_softmax
from rookery.lab.substrates import Substrate

Array: TypeAlias = npt.NDArray[Any]
Components: TypeAlias = dict[str, Array]


@dataclass
class Path_:
    """`states[name]` [T + 1, ...], the first before tick 1; `losses`: of the tokens given, in nats; `snapshot`, taken
    after tick `struck`, and the `logits` [V] after it and each later tick where there are any."""

    states: Components
    losses: list[float] = field(default_factory=list)
    snapshot: Any = None
    logits: list[Array | None] = field(default_factory=list)


def begin(substrate: Substrate, prefix: Sequence[int], seed: int) -> None:
    """Reset, and read the prefix."""
    substrate.reset(seed)
    for token in prefix:
        substrate.step(token)


def ticks(tokens: Sequence[int], per_tick: int) -> list[Sequence[int]]:
    return [tokens[at : at + per_tick] for at in range(0, len(tokens), per_tick)]


def forced(substrate: Substrate, tokens: Sequence[int], per_tick: int, struck: int) -> Path_:
    """Go on with `tokens`, from where it stands."""
    seen, path = [substrate.components()], Path_({})
    for number, group in enumerate(ticks(tokens, per_tick), 1):
        for token in group:
            logits = substrate.logits()
            if logits is not None:
                path.losses.append(-float(log_softmax(logits)[token]))
            substrate.step(token)
        seen.append(substrate.components())
        if number == struck:
            path.snapshot = substrate.snapshot()
        if number >= struck:
            path.logits.append(substrate.logits())
    path.states = stacked(seen)
    return path


def free(substrate: Substrate, count: int, per_tick: int) -> Path_:
    """Go on by itself for `count` ticks."""
    seen = [substrate.components()]
    for _ in range(count):
        for _ in range(per_tick):
            substrate.step()
        seen.append(substrate.components())
    return Path_(stacked(seen))


def follow(
    substrate: Substrate, tokens: Sequence[int], per_tick: int, look: Callable[[int, Substrate], object]
) -> None:
    """Go on with `tokens` and call `look(ticks done, substrate)` after each tick, and with 0 before the first."""
    look(0, substrate)
    for number, group in enumerate(ticks(tokens, per_tick), 1):
        for token in group:
            substrate.step(token)
        look(number, substrate)


def stacked(seen: Sequence[Components]) -> Components:
    return {name: np.stack([components[name] for components in seen]) for name in seen[0]}
