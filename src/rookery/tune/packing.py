"""Documents cut and laid into rows of at most ctx_len tokens.

A window is a piece of a document: T inputs and, one further, T targets. A document that is trained throughout is cut
into as many as it needs, each of which begins from an empty state. One with a prompt keeps its first window only, for
a reply whose question was cut away teaches nothing; a window without a trained target is left out. D documents, W
windows, R rows.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rookery.tune.documents import Documents

OPEN = 1024  # rows at a time into which a window may still go

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Windows:
    """begins, lengths and targets (how many are trained) [W]; how many documents were cut short or left out."""

    begins: Array
    lengths: Array
    targets: Array
    cut: int  # had a prompt and were longer than ctx_len
    left_out: int  # no target was trained


def windows(documents: Documents, ctx_len: int) -> Windows:
    """The windows of all documents, in their order."""
    found: list[tuple[int, int, int]] = []
    cut = left_out = 0
    for begin, size in zip(documents.begins.tolist(), documents.sizes.tolist(), strict=True):
        marks = documents.trained[begin + 1 : begin + size]
        last = size - 1  # targets, none for the first token
        trained = int(np.count_nonzero(marks))
        if trained == last:
            found += [(begin + at, n, n) for at in range(0, last, ctx_len) if (n := min(ctx_len, last - at))]
            left_out += last < 1
            continue
        cut += last > ctx_len
        n = min(ctx_len, last)
        if targets := int(np.count_nonzero(marks[:n])):
            found.append((begin, n, targets))
        else:
            left_out += 1
    columns = np.array(found, np.int64).reshape(-1, 3).T
    return Windows(columns[0], columns[1], columns[2], cut, left_out)


def single(count: int) -> list[list[int]]:
    """A row for each window."""
    return [[n] for n in range(count)]


def packed(lengths: Array, ctx_len: int, seed: int | None) -> list[list[int]]:
    """Rows of windows, taken in an order shuffled by `seed` (None: as they come), each laid where least room is left
    over, among the last OPEN rows.
    """
    order = list(range(len(lengths)))
    if seed is not None:
        random.Random(f"{seed} rows").shuffle(order)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that are free, row), sorted
    for window in order:
        size = int(lengths[window])
        at = bisect_left(room, (size, 0))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row = ctx_len, len(rows)
            rows.append([])
        rows[row].append(window)
        if free > size:
            insort(room, (free - size, row))
        if len(room) > OPEN:
            room.pop(0)
    return rows


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The rows of an epoch, shuffled."""
    rows = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(rows)
    return rows


def spread(count: int, tokens: int, limit: int) -> list[int]:
    """Of `count` rows with so many `tokens`, those to look at where `limit` tokens (0: all) are enough: always the same
    ones, from all over them.
    """
    most = count if not limit or tokens <= limit else max(1, count * limit // tokens)
    return [n * count // most for n in range(most)]
