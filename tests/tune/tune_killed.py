"""Tunes once undisturbed and once killed again and again, and compares what is left to the byte.

    python tune_killed.py FOLDER METHOD ...

The last line is a JSON object: by method, how many runs were killed, and which files differ. See train/killed.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "train")]
from killed import KINDS, train

from rookery.train import report
from rookery.tune import config
from rookery.tune.tuner import Tuner
from training_runs import metrics

MODEL = Path(__file__).parents[1] / "fixtures" / "v7.safetensors"
SETTINGS = [
    f"load_model={MODEL}", "tokenizer=bytes", "template=plain", "rank=2", "dropout=0.1", "ctx_len=32", "steps=6",
    "batch=2", "hold_out=0.2", "device=cpu", "threads=1", "save_every=1", "validate_every=3",
]  # fmt: skip


def compare(folder: Path, method: str) -> dict[str, object]:
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"say {n}", "completion": f"it is {n * n}"}) + "\n" for n in range(9))
    )
    out = {name: folder / method / name for name in ("whole", "broken")}
    whole, broken = (
        config.load(None, [*SETTINGS, f"train={rows}", f"method={method}", f"out={path}"]) for path in out.values()
    )
    assert train(whole, trainer=Tuner) == 0
    killed = [kind for n, kind in enumerate(KINDS) if train(broken, kind, n, Tuner) == -9]
    assert train(broken, trainer=Tuner) == 0
    names = [path.name for path in out["whole"].glob("*.safetensors")]
    differ = [name for name in names if (out["broken"] / name).read_bytes() != (out["whole"] / name).read_bytes()]
    differ += ["metrics"] if metrics(out["whole"]) != metrics(out["broken"]) else []
    return {"killed": killed, "differ": differ, "files": names}


if __name__ == "__main__":
    report.plot = lambda *_: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    print(json.dumps({method: compare(Path(sys.argv[1]), method) for method in sys.argv[2:]}))
