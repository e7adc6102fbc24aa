"""How far back a gradient reaches: |d loss at position T / d embedding of position T-d| against d, on a fresh model.

python benchmarks/gradient_distance.py [--versions 4,5.2,6,7] [--seeds 8] [--reach 512] [--json] [--plot FILE]

Three beginnings of the decays, all else alike: the recipe's curve over channels and layers; flat, every channel at the
median of that curve; and zeros, every decay's parameter at 0. With one decay everywhere the gradient dies off
exponentially and nothing far away can be learned, although nothing else looks wrong: the known pitfall of beginning
an RWKV by the defaults of a library.

The matrices that the recipe begins at zero (each block's outputs) are begun orthogonal here, as after the first steps
of training: through zeros no gradient passes at any distance. Every position holds another token, so the rows of
the embedding's gradient are the positions' own. float64; geometric means over seeds; norms are relative to d = 1.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from rookery.backends.torch import Network
from rookery.train import shape
from rookery.train.config import ModelSettings, Settings

DISTANCES = (1, 16, 64, 256, 512)
BEGINNINGS = ("recipe", "median", "zeros")


def decays(network: Network) -> dict[str, nn.Parameter]:
    """The tensors whose first values are the decays: v7's w0, the others' time_decay."""
    return {n: p for n, p in network.named_parameters() if n.rpartition(".")[2] in ("w0", "time_decay")}


def median(network: Network) -> float:
    """Of the decays' parameters over all channels and layers."""
    return torch.cat([p.flatten() for p in decays(network).values()]).median().item()


def kept(network: Network) -> float:
    """The share of a channel that one token keeps, by the median channel."""
    middle = median(network)
    if network.config.version == "7":
        return math.exp(-math.exp(-0.5) / (1 + math.exp(-middle)))
    return math.exp(-math.exp(middle))


def open_gates(network: Network, generator: torch.Generator) -> None:
    """Begin the matrices that are zero so that gradients pass."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(".weight") and p.dim() == 2 and not p.any():
                p.copy_(nn.init.orthogonal_(torch.empty(p.shape), generator=generator))


def norms(version: str, beginning: str, seed: int, reach: int, layers: int, width: int) -> tuple[Tensor, float]:
    """[reach] gradient norms at distances 1, 2, ..., reach, and what the median channel keeps of a token."""
    vocab = reach + 1
    settings = Settings(ModelSettings(version, layers, width, vocab_size=vocab))
    network = Network.fresh(shape.config(settings, vocab), seed, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    open_gates(network, generator)
    if beginning != "recipe":
        value = median(network) if beginning == "median" else 0.0
        with torch.no_grad():
            for p in decays(network).values():
                p.fill_(value)
    tokens = torch.randperm(vocab, generator=generator)
    logits, _ = network(tokens[None])
    target = torch.randint(vocab, (1,), generator=generator)
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits[0, -1:], target), [network.get_parameter("emb.weight")]
    )
    return gradient[tokens].norm(dim=-1).flip(0)[1:], kept(network)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for version in args.versions.split(","):
        for beginning in BEGINNINGS:
            runs = [
                norms(version, beginning, seed, args.reach, args.layers, args.width)
                for seed in range(1, args.seeds + 1)
            ]
            curves = torch.stack([curve / curve[0] for curve, _ in runs]).clamp_min(1e-300).log()
            low, mean, high = (x.exp().tolist() for x in (curves.amin(0), curves.mean(0), curves.amax(0)))
            found.append(
                {"version": version, "beginning": beginning, "kept": runs[0][1],
                 "norm": mean, "least": low, "most": high}
            )  # fmt: skip
    return found


def table(found: list[dict[str, Any]]) -> str:
    reach = len(found[0]["norm"])
    shown = [d for d in DISTANCES if d <= reach]
    lines = [
        "gradient norm at distance d, relative to d = 1; keeps: of a channel, by one token, in the median channel",
        "version  decays  keeps   " + "".join(f"{d:>10}" for d in shown),
    ]
    for f in found:
        numbers = "".join(f"{x:10.1e}" if x > 1e-99 else "   < 1e-99" for x in (f["norm"][d - 1] for d in shown))
        lines.append(f"v{f['version']:<6}  {f['beginning']:<6}  {f['kept']:.3f}   {numbers}")
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    versions = list(dict.fromkeys(f["version"] for f in found))
    figure, axes = pyplot.subplots(
        1, len(versions), sharey=True, figsize=(3 * len(versions), 3.6), layout="constrained"
    )
    look = {"recipe": ("#0072b2", "-"), "median": ("#d55e00", "--"), "zeros": ("#333333", ":")}
    for axis, version in zip(axes if len(versions) > 1 else [axes], versions, strict=True):
        for f in (f for f in found if f["version"] == version):
            color, line = look[f["beginning"]]
            at = range(1, len(f["norm"]) + 1)
            what = "recipe's curve" if f["beginning"] == "recipe" else f"all {f['kept']:.3f} ({f['beginning']})"
            axis.plot(at, f["norm"], color=color, linestyle=line, linewidth=1.6, label=what)
            axis.fill_between(at, f["least"], f["most"], color=color, alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_ylim(1e-12, 10)
        axis.set_xlim(0, args.reach)
        axis.set_title(f"RWKV-{version}")
        axis.set_xlabel("distance d, tokens")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right", title="decays begin as", title_fontsize=8)
    figure.supylabel("|d loss(T) / d embedding(T - d)|, relative to d = 1", fontsize=9)
    figure.suptitle(
        f"Fresh model, L{args.layers} D{args.width}: mean and range of {args.seeds} seeds", fontsize=10
    )  # fmt: skip
    figure.savefig(args.plot, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default="4,5.2,6,7")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--reach", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args)
    print(json.dumps(found) if args.json else table(found))
    if args.plot:
        plot(found, args)


if __name__ == "__main__":
    main()
