"""A model tuned by each method on the same rows: what was learnt, and what it took.

    python benchmarks/tune.py ../shared/data/instruct/{gsm8k_train.jsonl.gz,self_instruct_seed_tasks.jsonl}

Each method is a `rookery tune` of its own, in a fresh process, on the first `--rows` rows of each file, of which a
tenth are held out; each with its own default learning rate. Time is that of the whole command, loading and both
validations included. Memory is the process's peak (the kernel's own figure), torch and NumPy included; the first line
is a process that imports torch and opens the model, and trains nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS: dict[str, list[str]] = {
    "lora": [],
    "rslora": ["method=rslora"],
    "dora": ["method=dora"],
    "pissa": ["method=pissa"],
    "miss": ["method=miss"],
    "lora over int8": ["quant=int8"],
    "lora over nf4": ["quant=nf4"],
    "state": ["method=state"],
    "full": ["method=full"],
}
IDLE = "import rookery.tune.tuner; from rookery.backends.torch import Network; from rookery import weights; "


def measured(command: list[str], log: Path) -> tuple[float, int]:
    """Seconds, and the peak of resident bytes."""
    begin = time.perf_counter()
    with log.open("wb") as out:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{log.read_text()}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def rows(source: Path, count: int) -> list[bytes]:
    with gzip.open(source) if source.suffix == ".gz" else source.open("rb") as file:
        return [line for _, line in zip(range(count), file, strict=False)]


def run(o: argparse.Namespace, name: str, data: list[Path], folder: Path) -> dict[str, Any]:
    out = folder / name.replace(" ", "-")
    settings = [
        f"load_model={o.model}", f"train={json.dumps([str(path) for path in data])}", "hold_out=0.1", f"out={out}",
        f"ctx_len={o.context}", f"batch={o.batch}", f"steps={o.steps}", f"threads={o.threads}", *METHODS[name],
    ]  # fmt: skip
    command = [sys.executable, "-m", "rookery", "tune", "--json", *settings, *o.set]
    seconds, peak = measured(command, folder / "log")
    said = json.loads((folder / "log").read_text().splitlines()[-1])
    first = next(line for line in (folder / "log").read_text().splitlines() if " numbers to train" in line)
    trained = int(first.split(" numbers to train")[0].split(", ", 1)[1].replace(",", ""))
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if "loss" in row]
    return {
        "method": name, "trained": trained, "file": Path(said["file"]).stat().st_size,
        "first": sum(losses[:5]) / 5, "last": sum(losses[-5:]) / 5,
        "before": said["held_out_before"], "after": said["held_out_after"], "seconds": seconds, "peak": peak,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="more settings, for all")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = []
        for i, source in enumerate(o.data):
            data.append(folder / f"{i}.jsonl")
            data[-1].write_bytes(b"".join(rows(source, o.rows)))
        idle = f"{IDLE} Network.of(weights.load({o.model!r}))"
        seconds, peak = measured([sys.executable, "-c", idle], folder / "log")
        print(f"{o.steps} steps of {o.batch} x {o.context} tokens; {o.rows} rows of each of {len(data)} files")
        print("| method | trained | file, kB | loss, first 5 | last 5 | held out before | after | time, s | peak, MB |")
        print("|---|---|---|---|---|---|---|---|---|")
        print(f"| (nothing) | | | | | | | {seconds:.0f} | {peak / 1e6:.0f} |")
        for method in o.methods:
            f = run(o, method, data, folder)
            print(
                f"| {method} | {f['trained']:,} | {f['file'] / 1e3:,.0f} | {f['first']:.3f} | {f['last']:.3f} | "
                f"{f['before']:.4f} | {f['after']:.4f} | {f['seconds']:.0f} | {f['peak'] / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
