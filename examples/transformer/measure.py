"""Bits per byte of a Transformer beside gosling's, on the same text and vocabulary: the table in README.md.

    python examples/transformer/measure.py gander BOOK ... [--tokens 40000]

A Transformer's context is bounded, so it reads windows: each token after the first is scored once, with at least half a
context before it where the text has that much. gosling reads the same windows, each from an empty state, and the whole
text with its state carried on, as on its card.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import rookery
from rookery.lab.substrates.transformer import folder, open_folder

Read = Callable[[list[int]], npt.NDArray[Any]]  # ids [T] -> logits [T, V]
card = runpy.run_path(str(Path(__file__).parents[1] / "gosling" / "card.py"))


def windowed(read: Read, ids: list[int], context: int) -> float:
    """Nats of all tokens but the first."""
    nats, scored = 0.0, 1
    while scored < len(ids):
        start = max(0, scored - context // 2)
        part = ids[start : start + context + 1]
        logits = read(part[:-1]).astype(np.float64)[scored - start - 1 :]
        right = part[scored - start :]
        nats += float((np.logaddexp.reduce(logits, 1) - logits[np.arange(len(right)), right]).sum())
        scored += len(right)
    return nats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a folder, or gander")
    parser.add_argument("books", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=40_000, help="of each book, at most (default: 40000)")
    o = parser.parse_args()
    torch.set_num_threads(1)
    net, gosling = open_folder(folder(o.model)), rookery.load("gosling")
    context = net.config.max_position_embeddings

    def transformer(ids: list[int]) -> npt.NDArray[Any]:
        with torch.no_grad():
            logits: npt.NDArray[Any] = net(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        return logits

    def rwkv(ids: list[int]) -> npt.NDArray[Any]:
        return gosling.forward(ids, every=True)[0]

    print(f"{'bits per byte':<32}{'Transformer':>14}{'gosling, windows':>18}{'gosling, carried':>18}")
    for path in o.books:
        text = card["plain"](path)
        ids = gosling.tokenizer.encode(text)[: o.tokens]
        bits = np.log(2) * len(gosling.tokenizer.decode_bytes(ids[1:]))
        row = [windowed(read, ids, context) / bits for read in (transformer, rwkv)]
        row.append(card["bits_per_byte"](gosling, text, o.tokens))
        print(f"{path.name:<32}{row[0]:>14.3f}{row[1]:>18.3f}{row[2]:>18.3f}", flush=True)


if __name__ == "__main__":
    main()
