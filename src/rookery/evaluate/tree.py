"""A batch of token sequences is a tree: what several begin with is read once.

The choices of a question share its context, few-shot questions their examples, needles their haystack. On back ends
that keep the law of rows (native, reference) the figures are the same to the bit as of each sequence alone.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.errors import ModelError
from rookery.model import Model
from rookery.state import State

Array = npt.NDArray[Any]
PIECE = 256  # rows of one sequence whose logits are held at once, at most


@dataclass
class Row:
    """`ids` to be read, of which those from `first` on (at least 1) are scored."""

    ids: list[int]
    first: int
    ends: bool = False  # whether the state and the logits after the last id are wanted
    logprobs: Array = field(init=False)  # float64 [len(ids) - first], nats
    greedy: bool = True  # whether each scored token was the likeliest (of tied ones the lowest id)
    logits: Array | None = None  # [V]
    state: State | None = None

    def __post_init__(self) -> None:
        self.logprobs = np.zeros(max(0, len(self.ids) - self.first))


@dataclass
class Node:
    """ids[begin:end] of `rows`, which are equal so far. `state`, `logits` [V]: before `begin`."""

    begin: int
    end: int
    rows: list[Row]
    state: State | None = None
    logits: Array | None = None

    @property
    def ids(self) -> list[int]:
        """What must be read: not the last id where nothing comes after it."""
        over = not any(row.ends or len(row.ids) > self.end for row in self.rows)
        return self.rows[0].ids[self.begin : self.end - over]


def read(model: Model, rows: Sequence[Row], at_once: int, logits_bytes: int = 128 << 20) -> None:
    """Fill in what the rows want. `at_once`: sequences that are read side by side; what lies open is depth first, so
    that few states are held. `logits_bytes`: of logits held at once.
    """
    open_nodes = _split(0, sorted((row for row in rows if row.ids), key=lambda row: row.ids))
    while open_nodes:
        nodes, open_nodes = open_nodes[-at_once:], open_nodes[:-at_once]
        states, logits = _advance(model, nodes, logits_bytes)
        for node, state, last in zip(nodes, states, logits, strict=True):
            deeper = []
            for row in node.rows:
                if len(row.ids) > node.end:
                    deeper.append(row)
                elif row.ends:
                    row.state, row.logits = state, last
            open_nodes += _split(node.end, deeper, state, last)


def _split(begin: int, rows: list[Row], state: State | None = None, logits: Array | None = None) -> list[Node]:
    """Nodes of sorted `rows` that go on differently from `begin` on, each as far as its rows agree."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and groups[-1][0].ids[begin] == row.ids[begin]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [Node(begin, _agree(group, begin), group, state, logits) for group in groups]


def _agree(rows: list[Row], begin: int) -> int:
    """Where sorted rows first differ: the first and the last differ most, and the first ends first."""
    low, high = rows[0].ids, rows[-1].ids
    at = begin + 1
    while at < len(low) and low[at] == high[at]:
        at += 1
    return at


def _advance(model: Model, nodes: list[Node], logits_bytes: int) -> tuple[list[State | None], list[Array | None]]:
    """Read every node's ids; the states and the last logits [V] after them."""
    states, last = [node.state for node in nodes], [node.logits for node in nodes]
    ids, at = [node.ids for node in nodes], [0] * len(nodes)
    # logits are wanted from the id before the first that any row scores, and after the last
    bare = [min(len(i), min(row.first for row in n.rows) - 1 - n.begin) for i, n in zip(ids, nodes, strict=True)]
    for node in nodes:
        if node.logits is not None:
            _score(node, node.begin, node.logits[None])
    while waiting := [i for i in range(len(nodes)) if at[i] < len(ids[i])]:
        plain = [i for i in waiting if at[i] < bare[i]]
        reading = plain or waiting
        most = max(1, min(PIECE, logits_bytes // (4 * model.config.n_vocab * len(reading))))
        parts = [ids[i][at[i] : bare[i] if plain else at[i] + most] for i in reading]
        done = model.forward_batch(parts, [states[i] for i in reading], every=not plain)
        for i, part, (logits, state) in zip(reading, parts, done, strict=True):
            at[i] += len(part)
            if not plain:
                _score(nodes[i], nodes[i].begin + at[i] - len(part) + 1, logits)
            states[i], last[i] = state, logits if plain else logits[-1].copy()
    return states, last


def _score(node: Node, at: int, logits: Array) -> None:
    """The tokens at `at` and after, as far as the node has them, by the logits [T,V] before each."""
    for place, row_logits in enumerate(logits[: node.end - at], at):
        wanting = [row for row in node.rows if place >= row.first]
        if wanting:
            token = wanting[0].ids[place]
            value, likeliest = logprob(row_logits, token)
            for row in wanting:
                row.logprobs[place - row.first] = value
                row.greedy = row.greedy and likeliest


def logprob(logits: Array, token: int) -> tuple[float, bool]:
    """Of `token` by the logits [V] in nats, summed in float64, and whether it is the likeliest. Raises ModelError."""
    top = logits.max()
    value = float(logits[token]) - float(top) - float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    if not np.isfinite(value):
        raise ModelError(f"the model's logits for token {token} are not finite; its weights are damaged or overflow")
    return value, bool(logits.argmax() == token)
