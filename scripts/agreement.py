"""How far each op set lies from other people's references, over every shared fixture and prompt.

    python scripts/agreement.py [SHARED]

Logits: largest absolute difference from the float64 references; state: largest difference over each piece's largest
element (the references are float32 there); first: largest difference from rwkv.cpp's logits after three tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import rookery


def reference_of(model: Path) -> str:
    return model.stem.removeprefix("tiny-rwkv-").removesuffix("-FP32")


def differences(shared: Path, path: Path, backend: str, dtype: str) -> tuple[float, float, float]:
    """(logits, state, first three tokens) of one model file on one op set."""
    model = rookery.load(path, backend=backend, dtype=dtype)
    logits, states = [], []
    with np.load(shared / f"refs/{reference_of(path)}.npz") as golden:
        for prompt in sorted({key.split("/")[0] for key in golden} - {"greedy"}):
            ours, state = model.forward(golden[f"{prompt}/tokens"].astype(np.int64), every=True)
            truth = golden[f"{prompt}/logits_f64"]
            logits.append(np.abs((ours if truth.ndim == 2 else ours[-1]) - truth).max())
            for i, piece in enumerate(state.to_reference()):
                wanted = golden[f"{prompt}/state_{i:02}"]
                states.append(np.abs(piece - wanted).max() / max(float(np.abs(wanted).max()), 1e-9))
    published = shared / f"expected/expected-logits-{reference_of(path)}.bin"
    if not published.exists():
        return max(logits), max(states), float("nan")
    eps = 1e-5 if "5v2" in path.name else None  # what rwkv.cpp ran v5 with
    first, _ = rookery.load(path, backend=backend, dtype=dtype, group_norm_eps=eps).forward([34, 105, 110])
    return max(logits), max(states), float(np.abs(first - np.fromfile(published, "<f4")).max())


def main() -> None:
    shared = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared") / "fixtures"
    print(f"{'model':34} {'version':7} {'op set':20} {'logits':>8} {'state':>8} {'first':>8}")
    for path in sorted((shared / "models").iterdir()):
        for backend in ("reference", "torch"):
            for dtype in ("float32", "float64"):
                logits, state, first = differences(shared, path, backend, dtype)
                version = rookery.weights.load(path).config.version
                last = f"{first:8.1e}" if first == first else "       -"
                print(f"{path.name:34} {version:7} {backend + ' ' + dtype:20} {logits:8.1e} {state:8.1e} {last}")


if __name__ == "__main__":
    main()
