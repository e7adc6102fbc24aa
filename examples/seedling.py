"""Train a byte-level RWKV-7 on a folder of books, with nothing but a plain torch loop.

    python examples/seedling.py ../shared/data/stories --held-out ../shared/data/books/alice.txt --minutes 50

The network, its first values, learning-rate scales and weight decay all come from the parameter table of
src/rookery/architecture/v7.py; this file adds data, AdamW and a schedule. The result is a .safetensors file that
`rookery generate -m FILE` runs. The packaged model `gosling` was made with it.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from rookery.architecture import Config, version
from rookery.backends.torch import Network

# Names of books to leave out: their texts name no translator, so the rights in the translation are uncertain.
LEFT_OUT = ("heidi", "pinocchio", "old_french")


def books(folder: Path) -> torch.Tensor:
    """All books as one line of bytes, uint8."""
    paths = [p for p in sorted(folder.glob("*.txt*")) if not any(word in p.name for word in LEFT_OUT)]
    texts = [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in paths]
    print(f"{len(paths)} books, {sum(map(len, texts)):,} bytes", flush=True)
    return torch.from_numpy(np.frombuffer(b"\n\n\n".join(texts), np.uint8).copy())


def plain(book: str) -> bytes:
    """A book in the form of the training text: ASCII, one paragraph a line."""
    for mark, typed in {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--"}.items():
        book = book.replace(mark, typed)
    paragraphs = (" ".join(part.split()) for part in book.split("\n\n"))
    return "\n\n".join(p for p in paragraphs if p).encode("ascii", "ignore")


def groups(network: Network, decay: float) -> list[dict[str, object]]:
    """Optimiser groups by the table's learning-rate scale and weight decay."""
    table = {p.name: p for p in version(network.config).params(network.config)}
    out: dict[tuple[float, bool], list[torch.Tensor]] = {}
    for name, tensor in network.named_parameters():
        out.setdefault((table[name].lr, table[name].decay), []).append(tensor)
    return [
        {"params": t, "scale": lr, "weight_decay": decay if decays else 0.0} for (lr, decays), t in out.items()
    ]  # fmt: skip


def loss_of(network: Network, window: torch.Tensor) -> torch.Tensor:
    """Mean loss in nats per byte over windows [B, T+1]."""
    logits, _ = network(window[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(network: Network, text: torch.Tensor, length: int = 4096) -> float:
    """Over the whole windows of `length` bytes in the first 128 KiB, each read from an empty state."""
    windows = text[: 2**17].long().unfold(0, length + 1, length)
    return float(np.mean([loss_of(network, w[None]).item() for w in windows])) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="books as .txt or .txt.gz")
    parser.add_argument("--held-out", type=Path, help="a book for the final measurement")
    parser.add_argument("--out", default="seedling.safetensors")
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 64")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="bytes of one training window")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("medium")  # picks a faster float32 product on some CPUs
    torch.set_flush_denormal(True)  # the first gradients are tiny, and tiny numbers are slow

    ranks = {"w": 16, "a": 16, "v": 16, "g": 32}
    config = Config("7", args.layers, args.width, 256, 4 * args.width, args.width // 64, ranks)
    network = Network.fresh(config, args.seed)
    text = books(args.folder)
    adam = torch.optim.AdamW(groups(network, args.decay), lr=args.lr, betas=(0.9, 0.99), eps=1e-18)
    offsets = torch.arange(args.length + 1)
    begin, step, smooth = time.time(), 0, None
    while (done := (time.time() - begin) / (60 * args.minutes)) < 1:
        lr = args.lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in adam.param_groups:
            group["lr"] = lr * group["scale"]
        starts = torch.randint(len(text) - args.length - 1, (args.batch, 1))
        loss = loss_of(network, text[starts + offsets].long())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        step += 1
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 20 == 0:
            seen = step * args.batch * args.length
            print(f"step {step} {seen / 1e6:.1f} MB {smooth / math.log(2):.3f} bits/byte lr {lr:.1e} "
                  f"{seen / (time.time() - begin):,.0f} bytes/s", flush=True)  # fmt: skip
    network.save(args.out, {"format": "pt", "rookery.tokenizer": "bytes"}, dtype="bf16")
    print(f"wrote {args.out}: {Path(args.out).stat().st_size:,} bytes, {step} steps")
    if args.held_out:
        unseen = torch.from_numpy(np.frombuffer(plain(args.held_out.read_text()), np.uint8).copy())
        print(f"{args.held_out.name}: {bits_per_byte(network, unseen):.3f} bits/byte")


if __name__ == "__main__":
    main()
