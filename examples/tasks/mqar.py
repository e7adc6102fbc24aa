"""Multi-query associative recall: pairs of key and value are read, then every key is asked for once.

    python examples/tasks/mqar.py [--versions 4,5.2,6,7] [--seeds 5] [--pairs 8] [--steps 900]
    python examples/tasks/mqar.py --pairs 4,8,16 --widths 32,64 --seeds 3 --out mqar
    rookery eval mqar pairs=4,8,16 -m mqar/v7-32-1.safetensors

A network is trained on all the numbers of pairs in turn. The matrix states of v5, v6 and v7 bind a value to its key;
v4's averages over channels cannot keep such pairs apart. Half a minute a run on one core.
After Arora et al., "Zoology", arXiv 2312.04927.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from loop import Batch, right, settings, train

from rookery.backends.torch import Network
from rookery.evaluate.tasks.mqar import draw, kinds_of
from rookery.state import size
from rookery.train.config import ModelSettings, Settings

WIDTH, HEAD, LAYERS, BATCH, RATE = 64, 16, 2, 64, 2e-3
UNSEEN = 1 << 32  # a step that no training reaches


def vocab(pairs: Sequence[int]) -> int:
    """Ids of a network: the empty slot, and twice as many keys and values as its longest sequence has, 63 or more."""
    return max(64, 4 * max(pairs))


def batch_of(pairs: int, count: int, ids: int, seed: int, step: int) -> Batch:
    """tokens and targets [count, 4 pairs] of one step, of `ids` ids."""
    rng = np.random.Generator(np.random.PCG64([seed, step]))
    tokens, targets = draw(rng, pairs, count, *kinds_of(ids))
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def setting(version: str, pairs: Sequence[int], width: int, steps: int) -> Settings:
    model = ModelSettings(version, LAYERS, width, head_size=HEAD, vocab_size=vocab(pairs))
    return settings(model, 4 * max(pairs), BATCH, steps, RATE)


def learn(version: str, seed: int, pairs: Sequence[int] = (8,), width: int = WIDTH, steps: int = 900) -> Network:
    """A network that has seen each number of pairs equally often."""

    def of(step: int, _: torch.Generator) -> Batch:
        return batch_of(pairs[step % len(pairs)], BATCH, vocab(pairs), seed, step)

    return train(setting(version, pairs, width, steps), of, seed)


def accuracy(network: Network, pairs: int, seed: int) -> float:
    """On 1,024 new sequences."""
    return right(network, batch_of(pairs, 1024, network.config.n_vocab, seed, UNSEEN)).float().mean().item()


def run(version: str, seed: int, pairs: int = 8, steps: int = 900) -> float:
    """The accuracy of one network that was trained on one number of pairs."""
    return accuracy(learn(version, seed, (pairs,), steps=steps), pairs, seed)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default="4,5.2,6,7")
    parser.add_argument("--widths", type=numbers, default=(WIDTH,))
    parser.add_argument("--pairs", type=numbers, default=(8,))
    parser.add_argument("--seeds", type=int, default=5, help="runs of each")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--out", type=Path, help="a folder for the networks")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    heads = "".join(f" | {pairs} pairs" for pairs in args.pairs)
    print(f"median (least to most) of {args.seeds} seeds, {args.steps} steps\n")
    print(f"| version | width | parameters | state{heads} | seconds a run |")
    print("|---" * (5 + len(args.pairs)) + "|")
    for width in args.widths:
        for version in args.versions.split(","):
            found: list[list[float]] = []
            begin = time.perf_counter()
            for seed in range(1, args.seeds + 1):
                network = learn(version, seed, args.pairs, width, args.steps)
                found.append([accuracy(network, pairs, seed) for pairs in args.pairs])
                if args.out:
                    network.save(str(args.out / f"v{version}-{width}-{seed}.safetensors"))
                shown = " ".join(f"{share:.3f}" for share in found[-1])
                print(f"  v{version} width {width} seed {seed}: {shown}", file=sys.stderr, flush=True)
            seconds = (time.perf_counter() - begin) / args.seeds
            cells = [f"{statistics.median(x):.3f} ({min(x):.3f} to {max(x):.3f})" for x in zip(*found, strict=True)]
            count = sum(p.numel() for p in network.parameters())
            row = [f"v{version}", width, f"{count:,}", f"{size(network.config):,}", *cells, f"{seconds:.0f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
