"""Reverse a row of digits: 3 1 4 = 4 1 3. What is asked for is exact and in the order opposite to that of reading.

    python examples/tasks/reverse.py                 # 1 to 20 digits
    python examples/tasks/reverse.py --digits 60 --steps 12000     # an hour or more

An RWKV-7 of fewer than 40,000 parameters learns it, though the whole row has to lie in its state when the answer
begins. After BlinkDL's demo of the same size (12 tokens, 32 channels, 2 layers).
"""

from __future__ import annotations

import argparse
import time

import torch
from loop import Batch, right, settings, train

from rookery.backends.torch import Network
from rookery.train.config import ModelSettings, Settings

EQUALS, END, VOCAB = 10, 11, 12  # digits are themselves
RANKS = {"w": 16, "a": 16, "v": 16, "g": 16}


def draw(lengths: torch.Tensor, most: int, generator: torch.Generator) -> Batch:
    """Rows of lengths[b] digits, the equals sign, the same backwards, and ends up to 2 `most` + 1 tokens.

    What is asked for is the digits of the answer and the end after them.
    """
    batch, width = len(lengths), 2 * most + 1
    digits = torch.randint(10, (batch, most), generator=generator)
    at, n = torch.arange(width + 1), lengths[:, None]
    mirrored = torch.where(at < n, at, 2 * n - at).clamp(0, most - 1)
    rows = digits.gather(1, mirrored)
    rows[at == n] = EQUALS
    rows[at > 2 * n] = END
    targets = rows[:, 1:].clone()
    targets[(at[:-1] < n) | (at[:-1] > 2 * n)] = -1
    return rows[:, :-1], targets


def setting(most: int, steps: int, batch: int, rate: float) -> Settings:
    model = ModelSettings("7", 2, 32, head_size=32, vocab_size=VOCAB, ranks=RANKS)
    return settings(model, 2 * most + 1, batch, steps, rate)


def learn(most: int, steps: int, batch: int = 64, rate: float = 4e-3, seed: int = 1, every: int = 0) -> Network:
    """A network trained on rows of 1 to `most` digits."""
    begin = time.perf_counter()

    def batch_of(_: int, generator: torch.Generator) -> Batch:
        return draw(torch.randint(1, most + 1, (batch,), generator=generator), most, generator)

    def say(step: int, loss: float) -> None:
        if every and (step + 1) % every == 0:
            print(f"step {step + 1}: {loss:.4f} nats a token, {time.perf_counter() - begin:.0f} s", flush=True)

    return train(setting(most, steps, batch, rate), batch_of, seed, say)


def accuracy(network: Network, length: int, rows: int = 200, seed: int = 2) -> float:
    """The share of right tokens in the answers to `rows` new rows of `length` digits."""
    batch = draw(torch.full((rows,), length), length, torch.Generator().manual_seed(1_000_003 * seed + length))
    return right(network, batch).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, default=20, help="at most")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    begin = time.perf_counter()
    network = learn(args.digits, args.steps, args.batch, args.rate, args.seed, every=200)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {time.perf_counter() - begin:.0f} s")
    found = [accuracy(network, n, seed=args.seed + 1) for n in range(1, args.digits + 1)]
    print("digits  right")
    for n, share in enumerate(found, 1):
        print(f"{n:6}  {share:.4f}")
    print(f"mean    {sum(found) / len(found):.4f}")


if __name__ == "__main__":
    main()
