"""Multi-query associative recall: pairs of key and value are read, then every key is asked for once.

    python examples/tasks/mqar.py [--versions 4,5.2,6,7] [--seeds 5] [--pairs 8] [--steps 900]

The matrix states of v5, v6 and v7 bind a value to its key; v4's averages over channels cannot keep 8 such pairs apart.
Under a minute a run on one core. After Arora et al., "Zoology", arXiv 2312.04927.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from loop import Batch, right, settings, train

from rookery.train.config import ModelSettings, Settings

VOCAB, WIDTH, HEAD, LAYERS, BATCH, RATE = 64, 64, 16, 2, 64, 2e-3


def draw(pairs: int, batch: int, generator: torch.Generator) -> Batch:
    """key value key value ..., then the keys in another order, each before an empty slot in which nothing is asked."""

    def some(begin: int, end: int) -> torch.Tensor:
        """`pairs` different tokens a row."""
        return torch.rand(batch, end - begin, generator=generator).argsort(1)[:, :pairs] + begin

    keys, values = some(1, VOCAB // 2), some(VOCAB // 2, VOCAB)
    order = torch.rand(batch, pairs, generator=generator).argsort(1)
    tokens = torch.zeros(batch, 4 * pairs, dtype=torch.long)
    targets = torch.full_like(tokens, -1)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    tokens[:, 2 * pairs :: 2] = keys.gather(1, order)
    targets[:, 2 * pairs :: 2] = values.gather(1, order)
    return tokens, targets


def run(version: str, seed: int, pairs: int = 8, steps: int = 900) -> float:
    """Train one network; its accuracy on 1,024 new sequences."""
    network = train(setting(version, pairs, steps), lambda _, g: draw(pairs, BATCH, g), seed)
    unseen = torch.Generator().manual_seed(1_000_000 + seed)
    return right(network, draw(pairs, 1024, unseen)).float().mean().item()


def setting(version: str, pairs: int, steps: int) -> Settings:
    model = ModelSettings(version, LAYERS, WIDTH, head_size=HEAD, vocab_size=VOCAB)
    return settings(model, 4 * pairs, BATCH, steps, RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default="4,5.2,6,7")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8, help=f"at most {VOCAB // 2 - 1}")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("version  median  range          seconds a run")
    for version in args.versions.split(","):
        found, begin = [], time.perf_counter()
        for seed in range(1, args.seeds + 1):
            found.append(run(version, seed, args.pairs, args.steps))
            print(f"  v{version} seed {seed}: {found[-1]:.3f}", file=sys.stderr, flush=True)
        seconds = (time.perf_counter() - begin) / args.seeds
        print(
            f"v{version:<6}  {statistics.median(found):.3f}   {min(found):.3f} to {max(found):.3f}  {seconds:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
