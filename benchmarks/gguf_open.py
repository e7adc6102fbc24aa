"""Opening a GGUF of a 1.5B model, against `import numpy`; and the peak memory of a conversion to GGUF and back.

    python benchmarks/gguf_open.py [--repeats 7]

The file has the header of a real one (24 layers of width 2048, World's vocabulary) and is sparse: no tensor's bytes are
ever written, or read by what is measured. Times are of fresh processes, medians, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rookery import formats, weights
from rookery.architecture import VERSIONS, Config, version
from rookery.formats import gguf as room
from rookery.formats.tensor import Deferred, Tensor
from rookery.weights.names import gguf

RANKS = {"w": 96, "a": 96, "v": 64, "g": 256}
NUMPY = "import numpy"
OPEN = "from rookery import formats; formats.read({path!r})"
MODEL = "from rookery import weights; weights.load({path!r})"
ONLY = "import time, numpy, rookery.weights; t = time.perf_counter(); rookery.weights.load({path!r})"
TIMED = "import time; start = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
PEAK = """
import threading, time
from rookery import weights
def own():
    return [int(row.split()[1]) for row in open('/proc/self/status') if row.startswith('RssAnon')][0]
seen = [own()]
def watch():
    while True:
        seen.append(own())
        time.sleep(0.0005)
threading.Thread(target=watch, daemon=True).start()
weights.convert({source!r}, {target!r}, force=True)
print(max(seen) - seen[0])
"""


def sparse(path: Path) -> None:
    """The GGUF of an RWKV-7 of 1.5B parameters, F16, without its bytes."""
    config = Config("7", 24, 2048, 65536, 8192, 32, RANKS)
    zero: dict[str, Tensor] = {
        p.name: Deferred("f16", p.file_shape, lambda: Tensor("f16", (0,), np.empty(0, np.uint8)))
        for p in version(config).params(config)
        if not p.optional
    }
    tensors, metadata = gguf.from_blinkdl(zero, config, {})
    head = room._head_bytes(str(path), tensors, metadata)
    size = sum(-(-t.nbytes // room.ALIGNMENT) * room.ALIGNMENT for t in tensors.values())
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def fresh(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def times(path: Path, repeats: int) -> dict[str, float]:
    codes = {"import numpy": NUMPY, "read file": OPEN, "load weights": MODEL}
    found: dict[str, list[float]] = {name: [] for name in [*codes, "load weights, all imported"]}
    for _ in range(repeats):
        for name, code in codes.items():
            found[name].append(fresh(TIMED.format(code=code.format(path=str(path)))))
        only = ONLY.format(path=str(path)) + "; print(time.perf_counter() - t)"
        found["load weights, all imported"].append(fresh(only))
    return {f"{name}, ms": round(1000 * statistics.median(took), 1) for name, took in found.items()}


def memory(folder: Path) -> dict[str, Any]:
    """Peak memory of a conversion's own (anonymous, sampled), which leaves out the pages of the mapped source."""
    config = Config("6", 12, 512, 65536, 1792, 8, {"maa": 32, "decay": 64})
    rng = np.random.default_rng(0)
    made = {
        p.name: Tensor.of(0.1 * rng.standard_normal(p.file_shape, np.float32), "bf16")
        for p in version(config).params(config)
    }
    paths = [folder / "a.pth", folder / "b.gguf", folder / "c.pth"]
    formats.write(paths[0], made)
    largest = max(t.nbytes for t in made.values())
    found: dict[str, Any] = {"file, MB": round(paths[0].stat().st_size / 1e6, 1), "largest tensor, MB": largest / 1e6}
    for source, target in pairwise(paths):
        kilobytes = fresh(PEAK.format(source=str(source), target=str(target)))
        found[f"{source.suffix} to {target.suffix}, peak MB"] = round(kilobytes * 1024 / 1e6, 1)
    assert weights.load(paths[2]).config == VERSIONS["6"].config({n: t.shape for n, t in made.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "1.5B.gguf"
        sparse(path)
        facts = {"parameters": weights.load(path).parameters, "bytes claimed": path.stat().st_size}
        print(json.dumps(facts | times(path, arguments.repeats)))
        print(json.dumps(memory(Path(folder))))


if __name__ == "__main__":
    main()
