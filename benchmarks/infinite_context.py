"""The gradient of one long text: exact by slices, beside one pass over all of it and beside truncated slices.

    python benchmarks/infinite_context.py [--model gosling] [--slice 512] [--lengths 1024 ...] [--most-in-one 8192]

Each figure is of a process of its own: seconds of one gradient (a first, short one warms up) and by how much its
resident memory rose meanwhile at most (VmHWM, begun anew before it). "truncated" runs the same slices with detached
states, as infctx trainers do. "off" is the distance of a gradient from the exact one, relative L2 over all parameters.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

import rookery
from rookery import weights
from rookery.backends.torch import Network
from rookery.bench import memory
from rookery.train.loss import loss_of
from rookery.tune import slices

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("one pass", "slices", "truncated")


def one_pass(network: Network, tokens: Tensor, targets: Tensor, share: Tensor, size: int) -> None:
    x, _ = network.hidden(tokens)
    torch.autograd.backward(loss_of(network.head, x.flatten(0, 1), targets.flatten(), weights=share.flatten()))


def exact(network: Network, tokens: Tensor, targets: Tensor, share: Tensor, size: int) -> None:
    slices.backward(network, tokens, targets, share, size=size)


def truncated(network: Network, tokens: Tensor, targets: Tensor, share: Tensor, size: int) -> None:
    states = network.start(len(tokens))
    for ids, wanted, weight in zip(*(torch.split(x, size, 1) for x in (tokens, targets, share)), strict=True):
        x, states = network.hidden(ids, [{n: piece.detach() for n, piece in layer.items()} for layer in states])
        torch.autograd.backward(loss_of(network.head, x.flatten(0, 1), wanted.flatten(), weights=weight.flatten()))


def measure(o: argparse.Namespace) -> None:
    """One figure, in this process."""
    network = Network.of(weights.load(o.model))
    text = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md")))
    ids = rookery.load(o.model, backend="reference").tokenizer.encode(text[:200_000])
    length = o.lengths[0]
    ids = torch.tensor((ids * (1 + (length + 1) // len(ids)))[: length + 1])[None]
    batch = ids[:, :-1], ids[:, 1:], torch.full((1, length), 1 / length)
    do = {"one pass": one_pass, "slices": exact, "truncated": truncated}[o.way]
    do(network, *(x[:, :64] for x in batch), o.slice)
    network.zero_grad()
    if not memory.forget_peak():
        sys.exit("this system does not let a process begin its peak of memory anew")
    before, begin = memory.peak() or 0, time.perf_counter()
    do(network, *batch, o.slice)
    seconds = time.perf_counter() - begin
    rose = (memory.peak() or 0) - before
    torch.save(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]), o.gradient)
    print(json.dumps({"seconds": seconds, "bytes": rose}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--slice", type=int, default=512)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**i for i in range(10, 17)])
    parser.add_argument("--most-in-one", type=int, default=8192, help="tokens up to which one pass is tried")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--gradient", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.way:
        measure(o)
        return
    print(f"{o.model}, slices of {o.slice}, float32, {torch.get_num_threads()} threads")
    print(f"{'tokens':>8}" + "".join(f"{way + ': s':>16}{'MB':>8}{'off':>10}" for way in WAYS))
    for length in o.lengths:
        with tempfile.TemporaryDirectory() as folder:
            found = {way: child(o, way, length, folder) for way in WAYS if way != "one pass" or length <= o.most_in_one}
            true = torch.load(Path(folder) / "slices")
            cells = []
            for way in WAYS:
                if way not in found:
                    cells.append(f"{'-':>16}{'-':>8}{'-':>10}")
                    continue
                off = float((torch.load(Path(folder) / way) - true).norm() / true.norm())
                row = found[way]
                cells.append(f"{row['seconds']:>16.2f}{row['bytes'] / 1e6:>8.0f}{off:>10.1e}")
        print(f"{length:>8,}" + "".join(cells), flush=True)


def child(o: argparse.Namespace, way: str, length: int, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--model", o.model, "--slice", str(o.slice), "--lengths", str(length)]
    command += ["--way", way, "--gradient", str(Path(folder) / way)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
