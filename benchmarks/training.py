"""Speed of a whole training step on this CPU: forward, backward, clip, AdamW; side by side with plain PyTorch.

    python benchmarks/training.py [--shapes L12D256,L6D512] [--against sequential,huggingface] [--json FILE]
    python benchmarks/training.py --time-vs-context [--tokens 16384]

Ours runs with the WKV of the C++ core ("native") and with that of plain PyTorch ("plain"). The peers: RWKV-7 in plain
PyTorch with its recurrence token by token under autograd ("sequential", peers/sequential_v7.py; its logits are
checked against ours), and Hugging Face's RWKV-4 (`transformers`), which does the same on a CPU. All are float32, the
same batch, optimiser and threads, in one process, turn and turn about; figures are medians [least-most] over repeats.
"WKV" is the share of the step inside the recurrence and its gradient, by a clock around the operator's two
implementations.

--time-vs-context: seconds and peak memory (ru_maxrss) of a step, each in a process of its own, over lengths of 512 to
16,384: at a fixed number of tokens a step, where both must stay level, and for one sequence, where both must be linear.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.backends.torch import Network, wkv
from rookery.backends.torch.wkv import ops
from rookery.train import optimiser, shape
from rookery.train.config import ModelSettings, OptimiserSettings, Settings
from rookery.train.loss import loss_of

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
LENGTHS = [2**i for i in range(9, 15)]
OPTIMISER = OptimiserSettings()

Losses = Callable[[Tensor, Tensor], Tensor]  # tokens, targets [B,T] -> the mean loss


class Engine:
    """Something that trains: `step` does one step and gives its seconds and, of them, those inside the recurrence."""

    def __init__(self, name: str, model: nn.Module, losses: Losses, form: str = "auto", narrow: bool = False) -> None:
        self.name, self.model, self.losses, self.form, self.narrow = name, model, losses, form, narrow
        if isinstance(model, Network):
            self.adam = optimiser.adamw(model, model.config, OPTIMISER)
        else:
            o = OPTIMISER
            self.adam = torch.optim.AdamW(model.parameters(), o.lr_init, (o.beta1, o.beta2), o.adam_eps, fused=True)

    def step(self, batch: Tensor) -> tuple[float, float]:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        inside, begin = CLOCK.seconds, time.perf_counter()
        with wkv.using(self.form):
            self.adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
                loss = self.losses(tokens, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMISER.grad_clip)
            self.adam.step()
        return time.perf_counter() - begin, CLOCK.seconds - inside


class Clock:
    """Adds up the time spent in every form of every WKV operator."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for forms in ops.FORMS.values():
            for name, pair in forms.items():
                forms[name] = self.around(pair[0]), self.around(pair[1])

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


CLOCK = Clock()


def ours(version: str, layers: int, width: int, vocab: int, form: str, narrow: bool = False) -> Engine:
    settings = Settings(ModelSettings(version, layers, width, vocab_size=vocab))
    network = Network.fresh(shape.config(settings, vocab), 1)

    def losses(tokens: Tensor, targets: Tensor) -> Tensor:
        x, _ = network.hidden(tokens)
        return loss_of(network.head, x.flatten(0, 1), targets.flatten(), OPTIMISER.l2wrap)

    return Engine(f"v{version} {form}{' bf16' * narrow}", network, losses, form, narrow)


def plain_losses(logits_of: Callable[[Tensor], Tensor]) -> Losses:
    return lambda tokens, targets: functional.cross_entropy(logits_of(tokens).flatten(0, 1), targets.flatten())


def sequential(layers: int, width: int, vocab: int) -> Engine:
    from sequential_v7 import Sequential7

    same: Any = ours("7", layers, width, vocab, "auto").model
    model = Sequential7(same.state_dict(), layers, same.config.n_head, same.config.group_norm_eps)
    with torch.no_grad():  # a fresh model's outputs are zero, which would hide a difference
        loud = {n: p + 0.05 * torch.randn(p.shape) for n, p in same.named_parameters()}
        same.load_state_dict(loud)
        twin = Sequential7(loud, layers, same.config.n_head, same.config.group_norm_eps)
        tokens = batch_of(1, 32, vocab)
        off = (same(tokens)[0] - twin(tokens)).abs().max().item()
    if off > 2e-3:
        raise SystemExit(f"the sequential peer is another model: its logits are {off:.1e} away")
    return Engine("v7 sequential", model, plain_losses(model))


def huggingface(layers: int, width: int, vocab: int, length: int) -> Engine:
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=vocab, context_length=length, hidden_size=width, num_hidden_layers=layers, use_cache=False
    )
    model = RwkvForCausalLM(config).train()
    return Engine("v4 Hugging Face", model, plain_losses(lambda tokens: model(tokens).logits))


def sizes(name: str) -> tuple[int, int]:
    found = re.fullmatch(r"L(\d+)D(\d+)", name)
    if not found:
        raise SystemExit(f"{name!r}: a shape is L<layers>D<width>, for example L12D256")
    return int(found[1]), int(found[2])


def batch_of(batch: int, length: int, vocab: int) -> Tensor:
    return torch.randint(vocab, (batch, length + 1), generator=torch.Generator().manual_seed(1))


# side by side


def side_by_side(name: str, args: argparse.Namespace) -> dict[str, Any]:
    layers, width = sizes(name)
    engines = [ours(version, layers, width, args.vocab, form) for version in "74" for form in ("native", "plain")]
    if args.bf16:
        engines.insert(0, ours("7", layers, width, args.vocab, "native", narrow=True))
    if "sequential" in args.against:
        engines.append(sequential(layers, width, args.vocab))
    if "huggingface" in args.against:
        engines.append(huggingface(layers, width, args.vocab, args.length))
    batch = batch_of(args.batch, args.length, args.vocab)
    for engine in engines:
        engine.step(batch)  # the first is slower
    seconds: dict[str, list[tuple[float, float]]] = {e.name: [] for e in engines}
    for i in range(args.repeats):
        for engine in engines if i % 2 else reversed(engines):
            seconds[engine.name].append(engine.step(batch))
    return {
        "shape": name,
        "engines": {
            n: {
                "tokens_per_second": [batch[:, 1:].numel() / s for s, _ in times],
                "wkv": [inside / s for s, inside in times],
                "parameters": sum(p.numel() for p in e.model.parameters()),
            }
            for e in engines
            for n, times in [(e.name, seconds[e.name])]
        },
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"


def show(found: dict[str, Any]) -> None:
    engines = found["engines"]
    print(f"{found['shape']}          parameters  tokens/s              WKV    times the peer [least-most]")
    for name, e in engines.items():
        share = f"{statistics.median(e['wkv']):5.1%}" if any(e["wkv"]) else "    -"
        peer = "v7 sequential" if name[:2] == "v7" else "v4 Hugging Face"
        ratio = ""
        if peer in engines and peer != name:
            over = [a / b for a, b in zip(e["tokens_per_second"], engines[peer]["tokens_per_second"], strict=True)]
            ratio = f"{statistics.median(over):.2f} [{min(over):.2f}-{max(over):.2f}]"
        print(
            f"  {name:<15}  {e['parameters']:>11,}  {spread(e['tokens_per_second']):<20}  {share}  {ratio}", flush=True
        )


# against context


def one(shape_name: str, batch: int, length: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of a step, measured in this process."""
    engine = ours(args.version, *sizes(shape_name), args.vocab, args.form)
    tokens = batch_of(batch, length, args.vocab)
    engine.step(tokens[:1, :65])  # code, threads and AdamW's moments
    seconds = [engine.step(tokens)[0] for _ in range(args.repeats)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"batch": batch, "length": length, "seconds": statistics.median(seconds), "megabytes": memory}


def against_context(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for kind, batches in (("fixed tokens", [args.tokens // n for n in LENGTHS]), ("one sequence", [1] * len(LENGTHS))):
        for batch, length in zip(batches, LENGTHS, strict=True):
            command = [sys.executable, __file__, "--one", f"{batch},{length}", "--shapes", args.shapes]
            for name in ("version", "form", "vocab", "repeats", "threads", "matmul"):
                command += [f"--{name}", str(getattr(args, name))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append({"kind": kind, **json.loads(done.stdout)})
            f = found[-1]
            print(f"{kind:<12}  B={batch:<3} T={length:<6} {f['seconds']:7.2f} s  {f['megabytes']:7.0f} MB", flush=True)
    return found


def fits(found: list[dict[str, Any]]) -> str:
    """How level and how linear."""
    lines = []
    for what, unit in (("seconds", "s"), ("megabytes", "MB")):
        level = [f[what] for f in found if f["kind"] == "fixed tokens"]
        single = [f for f in found if f["kind"] == "one sequence"]
        x, y = (np.array([f[key] for f in single]) for key in ("length", what))
        slope, begin = np.polyfit(x, y, 1)
        left = 1 - ((y - slope * x - begin) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        power = np.polyfit(np.log(x), np.log(np.maximum(y - begin if what == "megabytes" else y, 1e-9)), 1)[0]
        lines.append(
            f"{what}: fixed tokens {min(level):.2f} to {max(level):.2f} {unit}; "
            f"one sequence {begin:.3g} + {1000 * slope:.3g} {unit} per 1,000 tokens, "
            f"R^2 {left:.4f}, exponent {power:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="L12D256,L6D512", help="several with commas; of a context test one")
    parser.add_argument("--against", default="sequential,huggingface", help="peers; '' for none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--matmul", default="highest", help="float32 products of all engines: highest, high or medium")
    parser.add_argument("--bf16", action="store_true", help="also ours with precision=bf16 (autocast)")
    parser.add_argument("--time-vs-context", action="store_true")
    parser.add_argument("--tokens", type=int, default=16384, help="of a step, for --time-vs-context")
    parser.add_argument("--version", default="7", help="for --time-vs-context")
    parser.add_argument("--form", default="auto", help="for --time-vs-context: auto, native or plain")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul)
    torch.set_flush_denormal(True)
    if args.one:
        batch, length = map(int, args.one.split(","))
        print(json.dumps(one(args.shapes, batch, length, args)))
        return
    print(
        f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, "
        f"float32 products {args.matmul}, vocabulary {args.vocab}"
    )
    if args.time_vs_context:
        args.shapes = args.shapes.split(",")[0]
        found: list[dict[str, Any]] = against_context(args)
        print(fits(found))
    else:
        print(f"B={args.batch} T={args.length}, {args.repeats} repeats")
        found = []
        for name in args.shapes.split(","):
            found.append(side_by_side(name, args))
            show(found[-1])
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "found": found}, indent=1))


if __name__ == "__main__":
    main()
