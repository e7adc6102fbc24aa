"""What `rookery plan` says, beside what tuning then takes here, and beside a published table.

    python benchmarks/plan.py                        # on this machine: a few minutes
    python benchmarks/plan.py --published            # RWKV-PEFT's table of a GPU: counted alone
    python benchmarks/plan.py --only gosling --methods lora,full

Measured: a fresh process makes the tuner, takes two steps, and says how far its own memory (resident pages of no
file) rose above what it held after tuning a tiny model. Twice: with an allocator that gives freed pieces back at once,
which is what the plan counts, and with the C library's default, which keeps some and is faster.

Published: theirs is what a whole process takes on the card, ours what tensors take. At 0.1B, where there is little
else, theirs is 1.6 GB more: the CUDA context, DeepSpeed's buffers, what the allocator keeps, and probably the logits of
all rows at once (1024 x 65,536), of which ours makes 64 MB at a time. From there they grow by less a parameter than
ours: embedding, head and the model's own low-rank pairs are 16 bits there and float32 here (0.8 GB more at 2.9B), and
the base that PiSSA changes stays float32 here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rookery.architecture import Config

EAGER = {"MALLOC_MMAP_THRESHOLD_": "65536"}
SIZES = {  # layers, width, tokens, ranks; then sequences and their length
    "gosling": ((6, 192, 4096), (4, 256)),
    "6 x 512": ((6, 512, 4096), (2, 512)),
    "6 x 512, 16k": ((6, 512, 16384), (1, 1024)),
}
RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {},
    "miss": {},
    "qlora-int8": {},
    "qlora-nf4": {},
    "state": {},
    "full": {},
    "lora, grad_cp": {"grad_cp": True},
    "lora, slice 128": {"slice": 128},
    "lora, bf16": {"precision": "bf16"},
    "lora, 2 micro batches": {"pieces": 2},
}
# GB on an RTX 4090: bf16, ctx 1024, 1 sequence, r 64 (DiSHA 32), recomputation on; RWKV-PEFT's README.
PUBLISHED = {
    "none": {"0.1b": (2.6, 2.7, 2.7, 2.6), "0.4b": (3.1, 3.4, 3.1, 3.4), "1.5b": (5.3, 5.6, 5.6, 5.6),
             "2.9b": (8.2, 8.8, 8.8, 8.8)},
    "int8": {"0.1b": (2.4, 2.5, 2.5, 2.5), "0.4b": (2.9, 2.9, 2.9, 3.0), "1.5b": (4.1, 4.6, 4.5, 4.6),
             "2.9b": (5.7, 6.7, 6.7, 6.7)},
    "nf4": {"0.1b": (2.5, 2.4, 2.4, 2.4), "0.4b": (2.8, 2.7, 2.7, 2.7), "1.5b": (3.7, 3.9, 3.9, 3.9),
            "2.9b": (4.7, 5.7, 5.7, 5.7)},
}  # fmt: skip
PUBLISHED_METHODS = ("state", "lora", "miss", "pissa")


def config(layers: int, width: int, vocabulary: int) -> Config:
    small = width < 256
    ranks = {"w": 32, "a": 32, "v": 16, "g": 32} if small else {"w": 64, "a": 64, "v": 32, "g": 128}
    return Config("7", layers, width, vocabulary, 4 * width, width // 64, ranks)


def settings(run: str, batch: int, length: int, out: str = "", model: str = "") -> Any:
    from rookery.tune import plan
    from rookery.tune.config import Settings

    method, said = run.partition(",")[0], RUNS[run]
    s, pieces = Settings(), said.get("pieces", 1)
    s = replace(
        s,
        model=replace(s.model, load_model=model),
        data=replace(s.data, train=(f"{out}/data.jsonl",), ctx_len=length, tokenizer="bytes", mask="all"),
        optimiser=replace(s.optimiser, batch=batch, micro_batch=batch // pieces, steps=9),
        run=replace(
            s.run, out=f"{out}/run", device="cpu", grad_cp=said.get("grad_cp", False), slice=said.get("slice", 0),
            precision=said.get("precision", "fp32"),
        ),
    )  # fmt: skip
    return plan.with_method(s, method)


# the measured process


def taken(run: str, size: str, batch: int, length: int) -> dict[str, float]:
    """In this process: bytes that a real tuner and two steps take at once, and seconds of the second."""
    import torch

    from rookery.bench import memory
    from rookery.train.estimate import real
    from rookery.tune.tuner import Tuner

    with tempfile.TemporaryDirectory() as folder:

        def steps(name: str, c: Config, batch: int, length: int) -> float:
            out, model = f"{folder}/{name}", f"{folder}/{name}.safetensors"
            Path(out).mkdir()
            network = real(c, torch.device("cpu"))
            network.save(model, dtype="bf16")
            del network
            rows = [json.dumps({"text": "ab cd ef " * (length // 4)})] * 16
            Path(out, "data.jsonl").write_text("\n".join(rows) + "\n")
            tuner = Tuner(settings(run, batch, length, out, model), live=False)
            tuner.step()
            begin = time.perf_counter()
            tuner.step()
            return time.perf_counter() - begin

        steps("first", config(2, 64, 512), RUNS[run].get("pieces", 1), min(length, 128))
        with Peak() as peak:
            seconds = steps("second", config(*SIZES[size][0]), batch, length)
    assert memory.anonymous() is not None
    return {"bytes": peak.most - peak.before, "seconds": seconds}


class Peak:
    """The most anonymous memory of this process while inside, looked at every millisecond."""

    def __enter__(self) -> Peak:
        from rookery.bench import memory

        self._look, self._done = memory.anonymous, threading.Event()
        self.before = self.most = self._look() or 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._done.wait(0.001):
            self.most = max(self.most, self._look() or 0)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measured(run: str, size: str, batch: int, length: int, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", json.dumps([run, size, batch, length])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


# the tables


def here(sizes: list[str], runs: list[str]) -> list[dict[str, Any]]:
    from rookery.tune import plan

    head = ("model", "run", "planned MB", "taken MB", "planned/taken", "C library's own MB", "s/step")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    found = []
    for size in sizes:
        shape, (batch, length) = SIZES[size]
        for run in runs:
            at = max(batch, RUNS[run].get("pieces", 1))
            planned = plan.plan(config(*shape), settings(run, at, length)).total
            eager, default = (measured(run, size, at, length, e) for e in (EAGER, {}))
            row = {
                "model": size, "run": run, "planned": planned, "taken": eager["bytes"],
                "default": default["bytes"], "seconds": default["seconds"],
            }  # fmt: skip
            found.append(row)
            print(
                f"| {size}, {at} x {length} | {run} | {planned / 1e6:.0f} | {eager['bytes'] / 1e6:.0f} "
                f"| {planned / eager['bytes']:.2f} | {default['bytes'] / 1e6:.0f} | {default['seconds']:.2f} |",
                flush=True,
            )
    return found


def published() -> list[dict[str, Any]]:
    """Ours and theirs in GB, for the same settings."""
    from rookery.tune import plan, shapes
    from rookery.tune.config import Settings

    found = []
    print(f"| base | model | {' | '.join(f'{m}: ours / theirs' for m in PUBLISHED_METHODS)} |\n|---|---|" + "---|" * 4)
    for quant, rows in PUBLISHED.items():
        for name, theirs in rows.items():
            cells = []
            for method, gigabytes in zip(PUBLISHED_METHODS, theirs, strict=True):
                s = Settings()
                if quant != "none" and method == "pissa":
                    cells.append(f"- / {gigabytes}")  # ours changes the base itself, which is not quantised then
                    continue
                s = replace(
                    s, adapter=replace(s.adapter, method=method, quant=quant, rank=32 if method == "miss" else 64),
                    data=replace(s.data, ctx_len=1024), optimiser=replace(s.optimiser, batch=1),
                    run=replace(s.run, precision="bf16", grad_cp=True, device="cuda"),
                )  # fmt: skip
                p = plan.plan(shapes.find(f"rwkv7-g1-{name}"), s)
                found.append({"base": quant, "model": name, "method": method, "ours": p.total, "theirs": gigabytes})
                cells.append(f"{p.total / 1e9:.1f} / {gigabytes}")
            print(f"| {quant} | {name} | " + " | ".join(cells) + " |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="beside RWKV-PEFT's table")
    parser.add_argument("--only", help="models, with ; between them")
    parser.add_argument("--methods", help="runs, with ; between them")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.child:
        print(json.dumps(taken(*json.loads(o.child))))
        return
    sizes = o.only.split(";") if o.only else list(SIZES)
    runs = o.methods.split(";") if o.methods else list(RUNS)
    found = published() if o.published else here(sizes, runs)
    if o.json:
        o.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
