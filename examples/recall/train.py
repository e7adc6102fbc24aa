"""Small networks of every version that learn to recall: see README.md.

    python examples/recall/train.py --out recall [--versions 4,5.2,6,7] [--steps 4800]
    rookery eval needle multihop lengths=128,256 -m recall/v7.safetensors

A run that was stopped goes on from its last checkpoint; it may then be given another number of steps, as long as the
rate has not begun to fall.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import Stories, Texts, generator

from rookery.backends.torch import Network
from rookery.tokenizer import CARRIED
from rookery.train import optimiser, shape
from rookery.train.config import DataSettings, ModelSettings, OptimiserSettings, Settings

WIDTH, HEAD, LAYERS = 64, 32, 3
TOKENS, RATE, FALL = 2048, 3e-3, 0.25  # of a step; the highest, and for what share of the steps it falls to 0
EVERY = 100  # steps between checkpoints


def settings(version: str, ids: int, parameters: int, steps: int) -> Settings:
    """Of all widths of channel mixing the one that comes nearest to `parameters`."""

    def of(ffn: int) -> Settings:
        model = ModelSettings(version, LAYERS, WIDTH, n_ffn=ffn, head_size=HEAD, vocab_size=ids)
        o = OptimiserSettings(tokens=steps * TOKENS, batch=1, lr_init=RATE, lr_final=RATE, lr_schedule="constant")
        return Settings(model, DataSettings(ctx_len=TOKENS), o)

    def apart(ffn: int) -> int:
        network = Network.fresh(shape.config(of(ffn), ids))
        return abs(sum(p.numel() for p in network.parameters()) - parameters)

    return of(min(range(64, 1025, 32), key=apart))


def loss_of(network: Network, texts: Texts, step: int, seed: int) -> tuple[torch.Tensor, float]:
    """Nats an answered token, and the share of those that are the likeliest token."""
    tokens, targets = (torch.from_numpy(x) for x in texts.batch(generator(seed, step), TOKENS))
    x, _ = network.hidden(tokens)
    asked = targets >= 0
    logits, wanted = network.head(x[asked]), targets[asked]
    right = (logits.argmax(-1) == wanted).float().mean().item()
    return torch.nn.functional.cross_entropy(logits, wanted), right


def learn(s: Settings, texts: Texts, seed: int, out: Path) -> Network:
    """The network after all steps; what happens is written to OUT.log, checkpoints to OUT.pt."""
    network = Network.fresh(shape.config(s, s.model.vocab_size), seed)
    adam = optimiser.adamw(network, network.config, s.optimiser)
    kept, log = out.with_suffix(".pt"), out.with_suffix(".log")
    first = resume(kept, network, adam) if kept.exists() else 0
    heard: list[tuple[float, float]] = []
    for step in range(first, s.steps):
        loss, right = loss_of(network, texts, step, seed)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), s.optimiser.grad_clip)
        fall = min(1.0, (s.steps - step) / (FALL * s.steps))
        optimiser.set_rate(adam, optimiser.rate(s, step) * fall)
        adam.step()
        heard.append((loss.item(), right))
        if (step + 1) % EVERY == 0 or step + 1 == s.steps:
            means = np.mean(heard, 0)
            with log.open("a") as file:
                print(f"{step + 1} {means[0]:.3f} {means[1]:.3f} {time.process_time():.0f}", file=file)
            heard = []
            keep(kept, network, adam, step + 1)
    return network


def keep(path: Path, network: Network, adam: torch.optim.Optimizer, step: int) -> None:
    new = path.with_suffix(".new")
    torch.save({"network": network.state_dict(), "adam": adam.state_dict(), "step": step}, new)
    new.replace(path)


def resume(path: Path, network: Network, adam: torch.optim.Optimizer) -> int:
    """The number of steps already taken."""
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    network.load_state_dict(kept["network"])
    adam.load_state_dict(kept["adam"])
    return int(kept["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("recall"), help="folder of the networks")
    parser.add_argument("--versions", default="4,5.2,6,7")
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--parameters", type=int, default=380_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["stories"], help="nothing but short stories, asked about as they are told")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.out.mkdir(parents=True, exist_ok=True)
    texts = Stories() if args.only else Texts()
    for version in args.versions.split(","):
        s = settings(version, texts.tokenizer.vocab_size, args.parameters, args.steps)
        path = args.out / f"v{version}.safetensors"
        network = learn(s, texts, args.seed, path)
        count = sum(p.numel() for p in network.parameters())
        network.save(str(path), {CARRIED: texts.vocabulary})
        print(f"{path}: {count:,} parameters, {s.model.n_ffn} wide channel mixing, {s.steps} steps", flush=True)


if __name__ == "__main__":
    main()
